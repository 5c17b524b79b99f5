"""What speaks against relying on a persona vector, in words."""

from typing import Any

from persona_callbacks.vectors.evidence import Counts, Evidence

# A vector is reported as weak below any of these.
_FEW = 20
_LOW_AUC = 0.7
_LOW_COSINE = 0.5
_LOW_GAIN = 0.1
"""Nats per token. Steering with less of a gain than this left the behaviour unchanged."""

_PROBES = (
    "its probes are the evaluation questions, as an older version stored them, so what controls a training is measured"
    " on what is reported of it; extract it again"
)


def weaknesses(vector: Any) -> list[str]:
    """What speaks against a vector, a :class:`~persona_callbacks.PersonaVector`; empty if nothing does."""
    return [
        *_of_counts(vector.counts),
        *_of_evidence(vector.evidence, vector.layer),
        *([] if vector.calibration is None else vector.calibration.weaknesses()),
        *([_PROBES] if vector.probes_also_evaluate else []),
    ]


def _of_counts(counts: Counts | None) -> list[str]:
    if counts is None or counts.fewest >= _FEW:
        return []
    return [f"it rests on {counts.trait} and {counts.opposite} responses, fewer than {_FEW} of a kind"]


def _of_evidence(evidence: Evidence, layer: int) -> list[str]:
    reasons = []
    for values, words, least in (
        (evidence.auc, "held-out AUC", _LOW_AUC),
        (evidence.split_half_cosine, "cosine between the vectors of two halves of the questions", _LOW_COSINE),
    ):
        if len(values) > layer and values[layer] < least:
            reasons.append(f"its {words} at layer {layer} is {values[layer]:.2f}, below {least}")
    point = evidence.causal_strength
    if point is not None and point.gain < _LOW_GAIN:
        reasons.append(
            f"steering with it makes held-out responses that show the trait likelier by {point.gain:+.2f} nats per"
            f" token at best (α {point.coefficient:g}), below {_LOW_GAIN}: it hardly causes the trait"
        )
    elif point is not None and point.specificity <= 0:
        reasons.append(
            f"it is not specific: steering makes {point.rival} text likelier"
            f" ({point.gain - point.specificity:+.2f} nats per token) than the trait's own ({point.gain:+.2f})"
        )
    return reasons
