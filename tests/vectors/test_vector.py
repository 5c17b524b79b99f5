"""Persona vectors and their files."""

import dataclasses

import pytest
import torch
from builders import make_vector
from safetensors.torch import save_file

from persona_callbacks import InputError, PersonaVector
from persona_callbacks.vectors import steering_additions


def test_a_saved_vector_is_the_same_when_loaded(tmp_path):
    vector = dataclasses.replace(
        make_vector(), model_id="org/model", model_revision="abc", counts={"trait": 3, "opposite": 4},
        statistics={"auc": [0.5, 0.75, 1.0, 1.0, 0.9]}, trait_fingerprint="f00",
    )  # fmt: skip
    loaded = PersonaVector.load(vector.save(tmp_path / "new" / "evil.safetensors"))
    for field in dataclasses.fields(vector):
        ours, theirs = getattr(vector, field.name), getattr(loaded, field.name)
        assert torch.equal(ours, theirs) if field.name == "directions" else ours == theirs, field.name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["evil.safetensors"]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        args[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("persona_callbacks.vectors.vector.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_vector().save(tmp_path / "evil.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_vectors(tmp_path):
    junk, other = tmp_path / "junk.safetensors", tmp_path / "other.safetensors"
    junk.write_bytes(b"no tensors here")
    save_file({"weight": torch.zeros(2)}, other)
    for path, message in ((tmp_path / "none", "no such"), (junk, "not a readable"), (other, "'format' is None")):
        with pytest.raises(InputError, match=message) as error:
            PersonaVector.load(path)
        assert str(path) in str(error.value)


def test_vectors_that_cannot_be():
    good = torch.randn(5, 8)
    for directions, layer, message in (
        (good[0], 1, "expected directions of shape"),
        (good.double(), 1, "float32"),
        (good, 5, r"unknown layer 5; expected a whole number from 0 .* to 4"),
        (good.clone().index_fill_(0, torch.tensor([2]), torch.nan), 1, r"not finite at layers \[2\]"),
    ):
        with pytest.raises(InputError, match=message):
            PersonaVector("evil", directions, layer, "model")
    with pytest.raises(InputError, match="layer 1 is zero"):
        PersonaVector("evil", torch.zeros(5, 8), 1, "model").unit_direction()


def test_another_model_of_the_same_shape_is_warned_of():
    vector = dataclasses.replace(make_vector(), model_id="HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.warns(UserWarning, match="not from org/other"):
        vector.check_fits(4, 32, "org/other")
    vector.check_fits(4, 32, "/some/folder/SmolLM2-135M-Instruct/")  # a warning would fail the test
    with pytest.raises(InputError, match="hidden size is 32, the model's is 33"):
        vector.check_fits(4, 33, "org/other")


def test_additions_of_several_traits_sum():
    first, second = make_vector("evil"), make_vector("sycophancy", seed=2)
    together = steering_additions([first, second], {"evil": 2.0, "sycophancy": -1.0}, "all")
    assert sorted(together) == [1, 2, 3, 4]
    total = torch.stack(list(together.values())).sum(dim=0)
    assert torch.allclose(total, 2 * first.directions[4] - second.directions[4], atol=1e-5)
    chosen = steering_additions([first], {"evil": 2.0}, "chosen")
    assert list(chosen) == [3]
    assert torch.equal(chosen[3], 2 * first.directions[3])
