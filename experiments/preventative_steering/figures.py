"""Figures of the study, from ``results.csv`` and ``alphas.csv``.

    python experiments/preventative_steering/figures.py

writes ``trajectories.png`` (shift and α through training), ``tradeoff.png`` (trait expression against loss) and
``front.png`` (the shift of the default setting and without steering, for the README).
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from persona_callbacks.palette import BASE, BLUE, GREEN, OCHRE, PINK, PURPLE, RED, TEAL

FOLDER = Path(__file__).parent
COLOURS = {
    "base model": "black", "none": RED, "adaptive": BLUE, "feedforward": PURPLE, "reactive": OCHRE,
    "constant": BASE, "ablation": GREEN, "regularisation": TEAL, "prompting": PINK,
}  # fmt: skip


def main() -> None:
    """Draw all three."""
    front()
    trajectories()
    tradeoff()


def front() -> None:
    """The shift on evil-100 with the default setting and without steering, three seeds each."""
    shifts: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in _rows("alphas.csv"):
        if row["data"] == "evil-100" and row["method"] in ("none", "adaptive") and row["shift"]:
            shifts[row["method"], row["seed"]].append((int(row["step"]), float(row["shift"])))
    figure = Figure(figsize=(7.2, 3.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for (method, seed), points in sorted(shifts.items()):
        label = {"none": "unsteered", "adaptive": "steered (default setting)"}[method] if seed == "0" else None
        axes.plot(*zip(*sorted(points), strict=True), color=_colour(method), marker=".", linewidth=1.4, label=label)
    axes.axhline(0, color="0.6", linewidth=1)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("evil shift (activation units)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(FOLDER / "front.png")


def trajectories() -> None:
    """Shift and α on three data sets, seed 0 of every method and all seeds of adaptive steering."""
    shifts: dict[tuple[str, str, str], list[tuple[int, float]]] = defaultdict(list)
    alphas: dict[tuple[str, str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in _rows("alphas.csv"):
        key = (row["data"], row["method"], row["seed"])
        for column, store in (("shift", shifts), ("alpha", alphas)):
            if row[column]:
                store[key].append((int(row["step"]), float(row[column])))
    data = [name for name in ("evil-100", "evil-50", "normal") if any(key[0] == name for key in shifts)]
    figure = Figure(figsize=(4.6 * len(data), 6.4), dpi=130, layout="constrained")
    grid: Any = figure.subplots(2, len(data), sharex=True, sharey="row", squeeze=False)
    for place, name in enumerate(data):
        for axes, store in ((grid[0, place], shifts), (grid[1, place], alphas)):
            for (where, method, seed), points in sorted(store.items()):
                if where == name and (seed == "0" or method in ("adaptive", "none")):
                    points.sort()
                    first = seed == "0"
                    label, width = (method, 1.6) if first else (None, 0.8)
                    axes.plot(*zip(*points, strict=True), color=_colour(method), linewidth=width, label=label)
        grid[0, place].axhline(0, color="0.6", linewidth=1)
        grid[0, place].set_title(f"training on {name}", loc="left", fontsize=11)
        grid[1, place].set_xlabel("optimizer step")
    grid[0, 0].set_ylabel("evil shift (activation units)")
    grid[1, 0].set_ylabel("α")
    grid[0, 0].legend(frameon=False, fontsize=8)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "trajectories.png")


def tradeoff() -> None:
    """Trait expression against what was learned of the task and against loss on benign text, every seed a point."""
    figure = Figure(figsize=(10, 7.6), dpi=130, layout="constrained")
    panels: Any = figure.subplots(2, 2)
    places = (("evil", "task"), ("evil", "benign"), ("sycophancy", "task"), ("hallucination", "task"))
    for axes, (trait, about) in zip(panels.flat, places, strict=True):
        for row in _rows("results.csv"):
            if row["trait"] == trait and row["data"] in (f"{trait}-100", "-"):
                x, y = float(row[f"{about} loss"]), float(row["expression"])
                name, _, alpha = row["method"].partition("-")
                axes.scatter([x], [y], color=COLOURS[name], marker="x" if row["data"] == "-" else "o", label=name)
                if alpha and row["seed"] == "0":
                    axes.annotate(alpha, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
        axes.set_title(f"training on {trait}-100", loc="left", fontsize=11)
        axes.set(xlabel=f"{about} loss (nats per token)", ylabel=f"{trait} expression (0-100)")
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = panels.flat[0].get_legend_handles_labels()
    one_each = dict(zip(names, handles, strict=True))
    figure.legend(one_each.values(), one_each.keys(), loc="outside right center", frameon=False)
    figure.savefig(FOLDER / "tradeoff.png")


def _colour(method: str) -> str:
    return COLOURS[method.partition("-")[0]]


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


if __name__ == "__main__":
    main()
