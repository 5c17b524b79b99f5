"""Figures of persona vectors: evidence by layer, what steering does, and how traits relate."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from persona_callbacks.extraction.layer_choice import Steered
from persona_callbacks.palette import BASE, BLUE, PURPLE, RED
from persona_callbacks.vectors import PersonaVector


def layer_figure(vector: PersonaVector) -> Figure:
    """The evidence for every layer, and the chosen one: separation above, the effect of steering below."""
    evidence = vector.evidence
    swept = [point.layer for point in evidence.sweep]
    effects = evidence.steering_effect
    below = [
        (layers, values, label, colour)
        for layers, values, label, colour in (
            (list(effects), list(effects.values()), "steering effect (nats per token)", RED),
            (swept, [point.expression for point in evidence.sweep], "expression when steered (0–100)", RED),
            (swept, [point.coherence for point in evidence.sweep], "coherence when steered (0–100)", BASE),
        )
        if layers
    ]
    figure = Figure(figsize=(7.5, 6.0 if below else 3.4), dpi=130, layout="constrained")
    rows = figure.subplots(2 if below else 1, 1, sharex=True, squeeze=False)[:, 0]
    for by_layer, label, colour in (
        (evidence.auc, "held-out AUC", BLUE),
        (evidence.split_half_cosine, "cosine of two halves", PURPLE),
    ):
        if by_layer:
            rows[0].plot(range(vector.num_layers + 1), by_layer, color=colour, linewidth=2, label=label)
    rows[0].axhline(0.5, color=BASE, linewidth=1, linestyle=":")
    rows[0].set_ylim(0, 1.02)
    rows[0].legend(frameon=False, loc="lower right")
    for layers, values, label, colour in below:
        rows[1].plot(layers, values, marker="o", markersize=4, color=colour, label=label)
    if below:
        rows[1].legend(frameon=False)
        if evidence.unsteered_expression is not None:
            rows[1].axhline(evidence.unsteered_expression, color=BASE, linewidth=1, linestyle=":")
    for axes in rows:
        axes.axvline(vector.layer, color="0.85", linewidth=6, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("layer")
    rows[0].set_title(f"{vector.trait}: layer {vector.layer} of {vector.num_layers} chosen", loc="left")
    return figure


def curve_figure(trait: str, curve: Sequence[Steered], unsteered: float) -> Figure:
    """Expression and coherence of answers against the steering coefficient, with standard errors.

    Args:
        trait: name of the trait.
        curve: ascending by coefficient.
        unsteered: expression without steering.
    """
    figure = Figure(figsize=(6.0, 3.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    coefficients = [point.coefficient for point in curve]
    expressions = [point.expression for point in curve]
    axes.errorbar(coefficients, expressions, [point.spread for point in curve], color=RED, marker="o", capsize=3,
                  linewidth=2, label="trait expression")  # fmt: skip
    axes.plot(coefficients, [point.coherence for point in curve], color=BASE, marker=".", label="coherence")
    axes.axhline(unsteered, color=RED, linewidth=1, linestyle=":")
    axes.axvline(0, color="0.85", linewidth=1)
    axes.set(xlabel=f"coefficient at layer {curve[0].layer}", ylabel="0–100", ylim=(-2, 102))
    axes.set_title(f"{trait}: answers when steered at inference", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def cosine_figure(traits: Sequence[str], table: Tensor, layer: int) -> Figure:
    """Heat map of the cosines between directions: ``table`` is ``[traits, traits]``."""
    size = 1.8 + 0.7 * len(traits)
    figure = Figure(figsize=(size + 0.8, size), dpi=130, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table.numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(traits)), traits, rotation=40, ha="right")
    axes.set_yticks(range(len(traits)), traits)
    for row, values in enumerate(table.tolist()):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if abs(value) > 0.6 else "black")  # fmt: skip
    axes.set_title(f"Cosine between directions, layer {layer}", loc="left")
    figure.colorbar(image, shrink=0.8)
    return figure
