"""Build a workspace and a report of a project in Weights & Biases, for those who did not train its runs.

pip install "persona-callbacks[workspaces]"
python examples/wandb_pages.py ENTITY/PROJECT evil sycophancy
"""

import sys

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from persona_callbacks.tracking import metrics

STEP = "trainer/global_step"


def over_steps(title: str, *names: str) -> reports.LinePlot:
    """A panel of metrics over optimizer steps, one line with its spread for each group of seeds."""
    return reports.LinePlot(title=title, x=STEP, y=list(names), groupby_aggfunc="mean", groupby_rangefunc="stddev")


def panels_of(trait: str) -> list[reports.LinePlot | reports.ScatterPlot]:
    """What a reviewer looks at first: what is said against the task kept, then how it came about."""
    return [
        reports.ScatterPlot(
            title=f"{trait}: expression against loss",
            x=metrics.EPOCH_LOSS,
            y=f"{metrics.expression(trait)}.last",
        ),
        over_steps(f"{trait}: expression", metrics.expression(trait)),
        over_steps(f"{trait}: shift", metrics.shift(trait)),
        over_steps(f"{trait}: preference", metrics.preference(trait)),
        over_steps(f"{trait}: α", metrics.coefficient(trait)),
    ]


def workspace(entity: str, project: str, traits: list[str]) -> workspaces.Workspace:
    """A section for each trait and one for training; runs are grouped over seeds."""
    of_training = [over_steps(n, n) for n in (metrics.TRAIN_LOSS, metrics.LEARNING_RATE, metrics.GRADIENT_NORM)]
    sections = {**{trait: panels_of(trait) for trait in traits}, "train": of_training}
    return workspaces.Workspace(
        name="Persona",
        entity=entity,
        project=project,
        sections=[workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
    )


def report(entity: str, project: str, traits: list[str]) -> reports.Report:
    """The same panels with a line on how to read them."""
    meaning = (
        "Expression is a judge's score of answers, 0 to 100. Shift is where activations lie, and can fall while the"
        " behaviour stays: read some answers. All are measured without steering; 0 of shift and preference is the base"
        " model."
    )
    blocks: list[object] = [reports.P(text=meaning)]
    for trait in traits:
        runsets = [reports.Runset(entity=entity, project=project, groupby=["Group"])]
        blocks += [reports.H2(text=trait), reports.PanelGrid(runsets=runsets, panels=panels_of(trait))]
    return reports.Report(entity=entity, project=project, title="Persona report", blocks=blocks)


if __name__ == "__main__":
    entity, _, project = sys.argv[1].partition("/")
    for page in (workspace(entity, project, sys.argv[2:]), report(entity, project, sys.argv[2:])):
        page.save()
        print(page.url)
