"""Gathers what ``persona-extract`` wrote for several traits: tables and two figures, one panel a trait.

python experiments/extraction/gather.py outputs/vectors/SmolLM2-135M-Instruct outputs/sweeps/SmolLM2-135M-Instruct
"""

import csv
import json
import shutil
import sys
from pathlib import Path

from matplotlib.figure import Figure

from persona_callbacks import PersonaVector
from persona_callbacks.extraction import Steered

FOLDER = Path(__file__).parent
TRAITS = ("evil", "sycophancy", "hallucination", "impolite", "apathetic", "optimistic", "humorous")


def main(outputs: Path, sweeps: Path) -> None:
    """Write ``results.csv``, ``auc.csv``, ``sweeps.csv``, ``curves.png``, ``sweeps.png``, ``layers.png``, cosines."""
    vectors = [PersonaVector.load(outputs / f"{trait}.safetensors") for trait in TRAITS]
    curves = [read_curve(outputs / f"{trait}.curve.jsonl") for trait in TRAITS]
    with (FOLDER / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trait", "generated a kind", "kept trait", "kept opposite", "judge AUC", "judge ECE", "layer",
                         "norm", "AUC", "Cohen's d", "split-half cosine", *(f"expression at {p.coefficient:+g}"
                         for p in curves[0]), "rank correlation", "weak because"])  # fmt: skip
        for vector, curve in zip(vectors, curves, strict=True):
            evidence, counts, judge = vector.evidence, vector.counts, vector.calibration
            assert counts is not None
            assert judge is not None
            separation = (evidence.auc, evidence.cohens_d, evidence.split_half_cosine)
            writer.writerow([
                vector.trait, counts.generated_trait, counts.trait, counts.opposite, f"{judge.auc:.3f}",
                f"{judge.calibration_error:.3f}", vector.layer, f"{vector.direction().norm():.2f}",
                *(f"{values[vector.layer]:.3f}" for values in separation), *(f"{p.expression:.1f}" for p in curve),
                f"{rank_correlation(curve):.2f}", "; ".join(vector.weaknesses()),
            ])  # fmt: skip
    with (FOLDER / "auc.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", *TRAITS])
        writer.writerows(zip(range(vectors[0].num_layers + 1), *(v.evidence.auc for v in vectors), strict=True))
    with (FOLDER / "sweeps.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trait", "layer", "expression", "coherence", "unsteered expression", "chosen by sweep"])
        swept = [PersonaVector.load(sweeps / f"{trait}.safetensors") for trait in TRAITS]
        for trait, vector in zip(TRAITS, swept, strict=True):
            for point in vector.evidence.sweep:
                values = (point.expression, point.coherence, vector.evidence.unsteered_expression)
                writer.writerow(
                    [trait, point.layer, *(f"{value:.1f}" for value in values), point.layer == vector.layer]
                )
    curves_figure(curves).savefig(FOLDER / "curves.png")
    sweeps_figure(swept).savefig(FOLDER / "sweeps.png")
    layers_figure(vectors).savefig(FOLDER / "layers.png")
    for name in ("cosines.csv", "cosines.png"):
        shutil.copyfile(outputs / name, FOLDER / name)


def read_curve(path: Path) -> list[Steered]:
    """What ``persona-extract`` wrote."""
    return [Steered(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def rank_correlation(curve: list[Steered]) -> float:
    """Kendall's tau of expression with the coefficient: 1 if it rises at every step."""
    points = [(point.coefficient, point.expression) for point in curve]
    signs = [(a[1] < b[1]) - (a[1] > b[1]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return sum(signs) / len(signs)


def panels(height: float) -> tuple[Figure, list]:  # type: ignore[type-arg]
    """Seven axes in two rows."""
    figure = Figure(figsize=(13, height), dpi=110, layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True).flatten().tolist()
    axes[-1].axis("off")
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves_figure(curves: list[list[Steered]]) -> Figure:
    """Expression and coherence against the coefficient."""
    figure, axes = panels(5.6)
    for trait, curve, panel in zip(TRAITS, curves, axes, strict=False):
        x = [point.coefficient for point in curve]
        panel.errorbar(x, [p.expression for p in curve], [p.spread for p in curve], color="#b5261e", marker="o",
                     capsize=2, label="trait expression")  # fmt: skip
        panel.plot(x, [p.coherence for p in curve], color="0.6", marker=".", label="coherence")
        panel.set_title(f"{trait}, layer {curve[0].layer}: τ = {rank_correlation(curve):+.2f}", loc="left", fontsize=10)
        panel.set_ylim(-2, 102)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("steering coefficient at inference")
    return figure


def sweeps_figure(vectors: list[PersonaVector]) -> Figure:
    """Expression and coherence against the layer that is steered."""
    figure, axes = panels(5.6)
    for vector, panel in zip(vectors, axes, strict=False):
        sweep, unsteered = vector.evidence.sweep, vector.evidence.unsteered_expression
        layers = [point.layer for point in sweep]
        panel.plot(layers, [p.expression for p in sweep], color="#b5261e", marker="o", label="trait expression")
        panel.plot(layers, [p.coherence for p in sweep], color="0.6", marker=".", label="coherence")
        if unsteered is not None:
            panel.axhline(unsteered, color="#b5261e", linewidth=1, linestyle=":")
        panel.axvline(vector.layer, color="0.85", linewidth=6, zorder=0)
        panel.set_title(f"{vector.trait}: layer {vector.layer}", loc="left", fontsize=10)
        panel.set_ylim(-2, 102)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("layer")
    return figure


def layers_figure(vectors: list[PersonaVector]) -> Figure:
    """Evidence by layer."""
    figure, axes = panels(5.6)
    for vector, panel in zip(vectors, axes, strict=False):
        evidence = vector.evidence
        layers = range(vector.num_layers + 1)
        panel.plot(layers, evidence.auc, color="#1f6f8b", label="held-out AUC")
        panel.plot(layers, evidence.split_half_cosine, color="#6b4c9a", label="cosine of halves")
        top = max(evidence.steering_effect.values())
        panel.plot(list(evidence.steering_effect), [value / top for value in evidence.steering_effect.values()],
                 color="#b5261e", label="steering effect / its maximum")  # fmt: skip
        panel.axvline(vector.layer, color="0.85", linewidth=6, zorder=0)
        panel.set_title(f"{vector.trait}: layer {vector.layer}", loc="left", fontsize=10)
        panel.set_ylim(0, 1.02)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("layer")
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
