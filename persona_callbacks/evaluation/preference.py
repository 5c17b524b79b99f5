"""Which responses of held-out minimal pairs a model prefers."""

from collections.abc import Sequence

from persona_callbacks.model import LoadedModel, encode_pair, preferences, probing
from persona_callbacks.traits import MinimalPair


def pair_differences(loaded: LoadedModel, pairs: Sequence[MinimalPair]) -> tuple[float, ...]:
    """For each minimal pair the log-probability per token of the trait response minus that of the other, in nats, under
    the model in its present state: adapter included, unsteered, without dropout.
    """
    encoded = [encode_pair(pair, loaded.tokenizer) for pair in pairs]
    with probing(loaded.model):
        return tuple(preferences(loaded, encoded).tolist())
