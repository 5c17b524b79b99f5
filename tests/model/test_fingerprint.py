"""What a model's weights are told apart by."""

import pytest
import torch
from builders import tiny_model

from persona_callbacks.model import weights_fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_any_single_weight_changes_the_fingerprint(dtype):
    model = tiny_model().to(dtype)
    before = weights_fingerprint(model)
    assert weights_fingerprint(tiny_model().to(dtype)) == before
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for index in torch.randint(len(flat), (3,), generator=generator).tolist():
            kept = flat[index].clone()
            flat[index] += 1
            assert weights_fingerprint(model) != before
            flat[index] = kept
    assert weights_fingerprint(model) == before


def test_rows_that_change_places_change_the_fingerprint():
    model = tiny_model()
    before = weights_fingerprint(model)
    embedding = next(model.parameters()).data
    embedding[[5, 9]] = embedding[[9, 5]]
    assert weights_fingerprint(model) != before
