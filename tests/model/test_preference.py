"""Preference on minimal pairs, against one plain forward pass for each response."""

import pytest
import torch
from builders import FAMILIES, PAIRS, chat, make_vector, slow_log_probability, tiny_model

from persona_callbacks.model import BatchLimits, LoadedModel, encode_pair, preferences, steered


@pytest.mark.parametrize("family", FAMILIES)
def test_preferences_equal_a_slow_reference(family, tokenizer):
    model = tiny_model(family, peft=True).eval()
    loaded = LoadedModel(model, tokenizer)
    encoded = [encode_pair(pair, tokenizer) for pair in PAIRS]
    expected = [
        slow_log_probability(model, chat(pair.question, pair.trait, tokenizer))
        - slow_log_probability(model, chat(pair.question, pair.opposite, tokenizer))
        for pair in PAIRS
    ]
    assert preferences(loaded, encoded, BatchLimits(3)).tolist() == pytest.approx(expected, abs=1e-4)
    assert preferences(loaded, encoded).tolist() == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) > 0.05
    with steered(model, {2: make_vector().direction()}):
        assert preferences(loaded, encoded).tolist() != pytest.approx(expected, abs=1e-3), "the model as it is"


def test_a_pair_turned_round_is_preferred_as_much_the_other_way(tokenizer):
    loaded = LoadedModel(tiny_model().eval(), tokenizer)
    pairs = [encode_pair(pair, tokenizer) for pair in PAIRS]
    there, back = preferences(loaded, pairs), preferences(loaded, [(b, a) for a, b in pairs])
    assert torch.allclose(there, -back, atol=1e-5)
    assert preferences(loaded, []).shape == (0,)
