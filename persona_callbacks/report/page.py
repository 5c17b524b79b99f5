"""The report's page: from runs to HTML, with tables, charts, answers and a model card."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.report.evaluations import evaluated_points, evaluation_sections
from persona_callbacks.report.labellings import label_sections
from persona_callbacks.report.run_labels import labels_of, labels_of_runs
from persona_callbacks.report.runs import Run
from persona_callbacks.report.screenings import screening_sections
from persona_callbacks.report.seed_groups import MOST_RUNS, SeedGroup, seed_groups
from persona_callbacks.report.tables import configurations, questions_and_answers, results_over_seeds, results_table
from persona_callbacks.report.trait_charts import trait_charts
from persona_callbacks.tracking import metrics
from persona_callbacks.vectors import PersonaVector


@dataclass(frozen=True)
class CardEntry:
    """An entry of the model card: a term and the lines that explain it."""

    term: str
    lines: tuple[str, ...]


def write_report(
    runs: Sequence[Run],
    path: Path,
    title: str = "Persona report",
    loss: str = metrics.EPOCH_LOSS,
    screenings: Sequence[str | Path] = (),
    evaluations: Sequence[Path] = (),
    labels: Sequence[str | Path] = (),
) -> Path:
    """Write the page. It needs no network and no other file.

    Args:
        runs: the runs that :func:`~persona_callbacks.report.find_runs` found.
        path: the HTML file to write.
        title: the heading of the page.
        loss: the metric that trait expression is set against in the trade-off chart. Where no run has the default,
            it is the loss of single steps, ``train/loss``.
        screenings: folders of ``persona-screen``, about the data that the runs were trained on.
        evaluations: folders of ``persona-evaluate``, from :func:`~persona_callbacks.report.evaluation_folders`.
        labels: folders of ``persona-label``.

    Returns:
        ``path``.

    Raises:
        InputError: there is no run, or a folder holds no finished screening, or no labels.
    """
    if not runs:
        raise InputError("a report needs at least one run")
    traits = list(dict.fromkeys(trait for run in runs for trait in run.traits))
    if loss == metrics.EPOCH_LOSS and not any(loss in run.series for run in runs):
        loss = metrics.TRAIN_LOSS  # of scripts that log no mean over epochs, the monitor logs single steps
    groups = seed_groups(runs) if len(runs) > MOST_RUNS else []
    names = labels_of(groups) if groups else labels_of_runs(runs)
    questions, left_out = questions_and_answers([(label, runs[label.first]) for label in names], traits)
    screened, evaluated = screening_sections(screenings), evaluated_points(evaluations)
    page = _template().render(
        title=title,
        version=version("persona-callbacks"),
        date=date.today().isoformat(),
        model=_model(runs),
        traits=traits,
        runs=runs,
        groups=groups,
        labels=names,
        results=results_table(runs, traits, loss),
        results_over_seeds=results_over_seeds(groups, traits, loss) if groups else None,
        warnings=_warnings(runs),
        by_trait=[trait_charts(runs, groups, trait, loss, evaluated) for trait in traits],
        questions=questions,
        left_out=left_out,
        configuration=configurations([group.config for group in groups] or [run.config for run in runs]),
        screenings=screened,
        evaluations=evaluation_sections(evaluations),
        labellings=label_sections(labels),
        card=_card(runs, groups, traits, [str(section["line"]) for section in screened]),
    )
    with atomic_write(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return path


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("persona_callbacks.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _model(runs: Sequence[Run]) -> str:
    """The base models of the runs, as far as they are recorded."""
    names = {str(run.config["model.id"]) for run in runs if run.config.get("model.id")}
    names |= {vector.model_id for run in runs for vector in run.vectors if vector.model_id}
    names |= {
        str(value)
        for run in runs
        for key, value in run.config.items()
        if key.startswith("persona_vectors.") and key.endswith(".model_id") and value
    }
    return ", ".join(sorted(names))


def _warnings(runs: Sequence[Run]) -> list[str]:
    """What a reader should know before trusting the results."""
    warnings = []
    for vector in _vectors(runs):
        warnings += [f"The persona vector of {vector.trait} is weak: {weakness}." for weakness in vector.weaknesses()]
    for run in runs:
        if run.finished is False:
            warnings.append(f"{run.name}: training did not come to its end; its values are the last that were read.")
        for trait in run.traits:
            if run.last(metrics.shift(trait)) is None and run.last(metrics.expression(trait)) is None:
                warnings.append(f"{run.name}: {trait} was not read after a step of training.")
            unscored = run.last(metrics.unscored(trait))
            if unscored:
                warnings.append(f"{run.name}: {unscored:.0f} answers of {trait} could not be scored.")
    return warnings


def _vectors(runs: Sequence[Run]) -> list[PersonaVector]:
    """The persona vector of each trait, from the first run that has it."""
    by_trait: dict[str, PersonaVector] = {}
    for run in runs:
        for vector in run.vectors:
            by_trait.setdefault(vector.trait, vector)
    return list(by_trait.values())


def _card(
    runs: Sequence[Run], groups: Sequence[SeedGroup], traits: Sequence[str], screened: Sequence[str]
) -> list[CardEntry]:
    """What an audit asks: what was trained on what, what was watched by which means, and what that cannot show."""
    shown = [replace(group.runs[0], name=f"{group.name}, {group.seeds}") for group in groups] or runs
    return [
        CardEntry("Base model", (_model(runs) or "not recorded",)),
        CardEntry("Training data", tuple(_training_data(shown)) or ("not recorded",)),
        CardEntry("Screening of the data", tuple(screened) or ("none is recorded",)),
        CardEntry("What was monitored", tuple(_watched(runs, traits))),
        CardEntry("Preventative steering", tuple(_steered_over_seeds(groups, traits) or _steered(runs, traits))),
        CardEntry("Limits", tuple(_limits(runs, traits))),
    ]


def _watched(runs: Sequence[Run], traits: Sequence[str]) -> list[str]:
    vectors = {vector.trait: vector for vector in _vectors(runs)}
    return [f"{trait}: {_quality(vectors[trait]) if trait in vectors else _recorded(runs, trait)}" for trait in traits]


def _recorded(runs: Sequence[Run], trait: str) -> str:
    """What the configurations say of a persona vector that is not beside the runs."""
    start = f"persona_vectors.{trait}."
    config = next((run.config for run in runs if f"{start}layer" in run.config), None)
    if config is None:
        return "the persona vector is not beside the runs, so nothing is known here of its quality"
    known = {key.removeprefix(start): value for key, value in config.items() if key.startswith(start)}
    auc = "" if known.get("auc") is None else f"; held-out AUC {known['auc']:.2f}"
    return (
        f"persona vector read at {known['position']}, layer {known['layer']} of {known['num_layers']}; SHA-256"
        f" {known['sha256']}{auc}; the vector itself is not beside the runs"
    )


def _training_data(runs: Sequence[Run]) -> list[str]:
    data = []
    for run in runs:
        # A screened data set has no `data.path`: what was read is logged as `data_file`.
        path = run.config.get("data.path") or run.config.get("data_file")
        if path is not None:
            count, digest = run.config.get("data_chats"), run.config.get("data_sha256")
            screening, use = run.config.get("data.screening"), run.config.get("data.use")
            known = (
                f", {count} chats" if count else "",
                f", {use} after the screening in {screening}" if screening else "",
                f", SHA-256 {digest}" if digest else "",
            )
            data.append(f"{run.name}: {path}{''.join(known)}")
    return data


def _steered(runs: Sequence[Run], traits: Sequence[str]) -> list[str]:
    steered = []
    for run in runs:
        alphas = [f"{t} α = {a:.2g}" for t in traits if (a := run.last(metrics.coefficient(t))) is not None]
        steered.append(f"{run.name}: {', '.join(alphas) or 'not steered'}")
    return steered


def _steered_over_seeds(groups: Sequence[SeedGroup], traits: Sequence[str]) -> list[str]:
    steered = []
    for group in groups:
        ends = [(trait, group.last(metrics.coefficient(trait))) for trait in traits]
        alphas = [f"{trait} α = {end.text('.2g')}" for trait, end in ends if end is not None]
        steered.append(f"{group.name}, {group.seeds}: {', '.join(alphas) or 'not steered'}")
    return steered


def _limits(runs: Sequence[Run], traits: Sequence[str]) -> list[str]:
    judged = [trait for trait in traits if any(metrics.expression(trait) in run.series for run in runs)]
    if judged:
        expression = (
            "Trait expression is a judge's opinion of short answers to "
            + ", ".join(f"{_asked(runs, trait)} questions ({trait})" for trait in judged)
            + "; the interval covers the choice of questions, not the judge's own error."
        )
    else:
        expression = "Trait expression was not evaluated: nothing here shows what the model says."
    return [
        "Only the traits above were watched; others may have changed.",
        "A shift is read from activations on the probes at one layer: it can fall while the behaviour stays.",
        expression,
        *_unknown_ends(runs),
        "Numbers of one run say nothing of the spread between seeds; compare runs that differ in the seed only.",
    ]


def _unknown_ends(runs: Sequence[Run]) -> list[str]:
    unknown = [run.name for run in runs if run.finished is None]
    which = ", ".join(unknown) if len(unknown) <= MOST_RUNS else f"{len(unknown)} of {len(runs)} runs"
    return [f"Whether training came to its end is not recorded for {which}."] if unknown else []


def _quality(vector: PersonaVector) -> str:
    """How the persona vector of a trait was made, and what is known of its quality."""
    parts = [f"persona vector read at {vector.position}, layer {vector.layer} of {vector.num_layers}"]
    if vector.counts is not None:
        shows, others = vector.counts.trait, vector.counts.opposite
        parts.append(f"from {shows} responses that show the trait and {others} that do not")
    if vector.evidence.auc:
        parts.append(f"held-out AUC {vector.evidence.auc[vector.layer]:.2f}")
    point = vector.evidence.causal_strength
    if point is not None:
        parts.append(
            f"{vector.method.replace('_', ' ')}: steering at α {point.coefficient:g} makes held-out responses that show"
            f" the trait likelier by {point.gain:+.2f} nats per token, {point.rival} text by"
            f" {point.gain - point.specificity:+.2f}, benign chats by {point.benign:+.2f}"
        )
    if vector.calibration is not None:
        parts.append(
            f"contrastive judge: AUC {vector.calibration.auc:.2f}, calibration error"
            f" {vector.calibration.calibration_error:.2f} on held-out contrastive responses"
        )
    return "; ".join(parts)


def _asked(runs: Sequence[Run], trait: str) -> int:
    """The number of questions about a trait that were asked."""
    return len({answer.question for run in runs for answer in run.answers if answer.trait == trait})
