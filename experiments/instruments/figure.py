"""The figure of the study: blind labels against what the sensors say, an adapter a point.

    python experiments/instruments/figure.py FOLDER

reads FOLDER/readings.csv and FOLDER/labels/TRAIT/results.csv, and writes FOLDER/sensors.png.
"""

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

from persona_callbacks.palette import BASE, BLUE, RED

SENSORS = ("shift_prompt_last", "preference", "preference_own_voice", "forced_choice", "judge")
UNITS = ("activation units", "nats per token", "nats per token", "probability", "0 to 100")


def main(folder: Path) -> None:
    """Draw it."""
    readings = _rows(folder / "readings.csv")
    labelled = [trait for trait in ("evil", "sycophancy", "hallucination") if _labels(folder, trait).is_file()]
    figure = Figure(figsize=(2.9 * len(SENSORS), 2.9 * len(labelled)), dpi=110, layout="constrained")
    grid = figure.subplots(len(labelled), len(SENSORS), squeeze=False, sharey="row")
    for line, trait in zip(grid, labelled, strict=True):
        rates = {row["run"]: row for row in _rows(_labels(folder, trait)) if row["rate"]}
        for axes, sensor, unit in zip(line, SENSORS, UNITS, strict=True):
            for row in readings:
                if row["trait"] != trait or row["run"] not in rates or not row[sensor]:
                    continue
                rate, low, high = (100 * float(rates[row["run"]][name]) for name in ("rate", "low", "high"))
                colour = BLUE if row["steered"] == "True" else RED if row["data"].startswith(trait) else BASE
                axes.errorbar(
                    float(row[sensor]), rate, [[rate - low], [high - rate]], color=colour, marker="o", markersize=5,
                    linewidth=0.7,
                )  # fmt: skip
            axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
            axes.set_xlabel(f"{sensor} ({unit})", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"{trait}: % of answers\n(read blind, 95 % interval)", fontsize=8)
    for colour, label in ((RED, "trait data, unsteered"), (BLUE, "trait data, steered"), (BASE, "benign data, base")):
        grid[0][0].plot([], [], color=colour, marker="o", linestyle="", label=label)
    grid[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(folder / "sensors.png")


def _labels(folder: Path, trait: str) -> Path:
    return folder / "labels" / trait / "results.csv"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
