"""What loggers record of a persona vector."""

from typing import Any

from persona_callbacks.vectors.vector import PersonaVector


def vector_facts(vector: PersonaVector) -> dict[str, Any]:
    """Return what tells a vector from others, and how good it is, in a few plain values.

    Example:
        >>> import torch
        >>> facts = vector_facts(PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="tiny"))
        >>> facts["model_id"], facts["layer"], facts["origin"], facts["auc"]
        ('tiny', 3, 'mean_difference', None)
    """
    auc, point = vector.evidence.auc, vector.evidence.causal_strength
    return {
        "model_id": vector.model_id,
        "sha256": vector.fingerprint,
        "layer": vector.layer,
        "num_layers": vector.num_layers,
        "position": vector.position,
        "origin": vector.method,
        "auc": round(float(auc[vector.layer]), 4) if auc else None,
        "specificity": None if point is None else round(float(point.specificity), 4),
    }
