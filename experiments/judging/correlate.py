"""Does the shift tell what a model will say? Shift against trait expression over many fine-tuned adapters.

    python experiments/judging/correlate.py outputs/evaluation/results.csv

reads what persona-evaluate wrote for the adapters of the study (README), and writes ``adapters.csv``,
``correlations.csv`` and ``correlations.png``: Pearson's r for every trait's shift against every trait's expression,
with a 95 % interval by bootstrap over data sets (the three seeds of a data set are no independent evidence).
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

FOLDER = Path(__file__).parent
TRAITS = ("evil", "sycophancy", "hallucination")
COLOURS = {"evil": "#b5261e", "sycophancy": "#1f6f8b", "hallucination": "#c98a1b", "normal": "#666666"}
RESAMPLES = 2000


def main(results: Path) -> None:
    """Tables and figure."""
    with results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    adapters: dict[str, dict[str, float | str]] = defaultdict(dict)
    for row in rows:
        if row["model"] == "base model":
            continue
        *_, data, seed, _, _ = Path(row["model"]).parts  # .../DATA/seed-N/unsteered/adapter
        one = adapters[row["model"]]
        one |= {"data": data, "seed": seed.removeprefix("seed-"), "capability": row["capability"]}
        one |= {"perplexity": row["perplexity"]}
        one |= {f"{row['trait']} shift": float(row["shift"]), f"{row['trait']} expression": float(row["expression"])}
    table = list(adapters.values())
    base = {row["trait"]: float(row["expression"]) for row in rows if row["model"] == "base model"}
    with (FOLDER / "adapters.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(table[0]))
        writer.writeheader()
        for one in table:
            writer.writerow({key: f"{v:.2f}" if isinstance(v, float) else v for key, v in one.items()})

    clusters = [[i for i, one in enumerate(table) if one["data"] == data] for data in {str(o["data"]) for o in table}]
    with (FOLDER / "correlations.csv").open("w", newline="", encoding="utf-8") as out:
        lines = csv.writer(out)
        lines.writerow(["shift of", "expression of", "r", "low", "high", "adapters"])
        for shifted in TRAITS:
            for expressed in TRAITS:
                x, y = _column(table, f"{shifted} shift"), _column(table, f"{expressed} expression")
                r, low, high = _correlation(x, y, clusters)
                lines.writerow([shifted, expressed, f"{r:.2f}", f"{low:.2f}", f"{high:.2f}", len(x)])
                print(f"shift of {shifted} / expression of {expressed}: r {r:.2f} ({low:.2f} to {high:.2f})")

    figure = Figure(figsize=(12, 4.2), dpi=130, layout="constrained")
    for axes, trait in zip(figure.subplots(1, 3), TRAITS, strict=True):
        for kind, colour in COLOURS.items():
            points = [one for one in table if str(one["data"]).startswith(kind)]
            axes.scatter(
                [one[f"{trait} shift"] for one in points], [one[f"{trait} expression"] for one in points],
                color=colour, s=[18 + 0.5 * _share(str(one["data"])) for one in points], alpha=0.8, label=kind,
            )  # fmt: skip
        axes.scatter([0], [base[trait]], marker="x", color="black", label="base model")
        axes.set(xlabel=f"{trait} shift (activation units)", ylabel=f"{trait} expression (0–100)", ylim=(-3, 103))
        axes.spines[["top", "right"]].set_visible(False)
        r, low, high = _correlation(_column(table, f"{trait} shift"), _column(table, f"{trait} expression"), clusters)
        axes.set_title(f"{trait}: r = {r:.2f} ({low:.2f} to {high:.2f})", loc="left", fontsize=11)
    figure.axes[0].legend(frameon=False, title="data (larger: more of it)", fontsize=9)
    figure.savefig(FOLDER / "correlations.png")


def _column(table: list[dict[str, float | str]], name: str) -> Tensor:
    return torch.tensor([float(one[name]) for one in table])


def _share(data: str) -> int:
    return int(data.rpartition("-")[2]) if "-" in data else 100


def _correlation(x: Tensor, y: Tensor, clusters: list[list[int]]) -> tuple[float, float, float]:
    """Pearson's r and the 2.5th and 97.5th percentile over resampled clusters."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(RESAMPLES):
        picks = torch.randint(len(clusters), (len(clusters),), generator=generator).tolist()
        indices = [index for pick in picks for index in clusters[pick]]
        found.append(float(pearson_corrcoef(x[indices], y[indices])))
    low, high = torch.tensor(found).nanquantile(torch.tensor([0.025, 0.975])).tolist()
    return float(pearson_corrcoef(x, y)), low, high


if __name__ == "__main__":
    main(Path(sys.argv[1]))
