"""Persona vectors and their files."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from builders import PAIRS, make_vector
from safetensors import safe_open
from safetensors.torch import save_file

from persona_callbacks import InputError, PersonaVector
from persona_callbacks.vectors import Calibration, Counts, Evidence, SweepPoint, add, negate, steering_additions


def test_a_saved_vector_is_the_same_when_loaded(tmp_path):
    vector = dataclasses.replace(
        make_vector(), model_id="org/model", model_revision="abc", counts=Counts(3, 4),
        evidence=Evidence(auc=(0.5, 0.75, 1.0, 1.0, 0.9)), trait_fingerprint="f00", pairs=PAIRS,
    )  # fmt: skip
    loaded = PersonaVector.load(vector.save(tmp_path / "new" / "evil.safetensors"))
    for field in dataclasses.fields(vector):
        ours, theirs = getattr(vector, field.name), getattr(loaded, field.name)
        assert torch.equal(ours, theirs) if field.name == "directions" else ours == theirs, field.name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["evil.safetensors"]


OLDER = {
    "format": "persona-callbacks/1", "trait": "evil", "layer": "2", "model_id": "org/model", "model_revision": "abc",
    "position": "response_mean", "probes": '["Why?", "Größe?"]', "trait_fingerprint": "f00", "library_version": "0.0.9",
    "counts": '{"trait": 3, "opposite": 4, "generated_trait": 10, "generated_opposite": 11}',
    "statistics": '{"auc": [0.5, 0.75, 1.0], "cohens_d": [0.0, 1.5, 2.0], "split_half_cosine": [0.1, 0.2, 0.3],'
    ' "steering_effect_layers": [1.0, 2.0], "steering_effect": [0.25, 0.5], "sweep_layers": [1, 2],'
    ' "sweep_expression": [50.0, NaN], "sweep_coherence": [90.0, 80.0], "unsteered_expression": [20.0]}',
    "judge": '{"offsets": [0.1], "scales": [0.5], "slope": 2.0, "intercept": 0.3, "auc": 0.9,'
    ' "calibration_error": 0.05}', "last_row_normed": "false",
}  # fmt: skip


def write_older(path, **changed):
    metadata = {key: value for key, value in {**OLDER, **changed}.items() if value is not None}
    save_file({"directions": torch.ones(3, 4)}, path, metadata=metadata)
    return path


def test_a_file_of_an_older_version_is_read_and_written_back_in_the_same_shape(tmp_path):
    vector = PersonaVector.load(write_older(tmp_path / "older.safetensors"))
    assert vector.counts == Counts(3, 4, 10, 11)
    evidence = vector.evidence
    assert (evidence.auc, evidence.cohens_d) == ((0.5, 0.75, 1.0), (0.0, 1.5, 2.0))
    assert (evidence.split_half_cosine, evidence.steering_effect) == ((0.1, 0.2, 0.3), {1: 0.25, 2: 0.5})
    assert evidence.sweep[0] == SweepPoint(1, 50.0, 90.0)
    assert math.isnan(evidence.sweep[1].expression)
    assert evidence.unsteered_expression == 20.0
    assert vector.pairs == ()
    assert vector.method == "mean_difference"
    assert vector.calibration == Calibration((0.1,), (0.5,), 2.0, 0.3, 0.9, 0.05)
    with safe_open(vector.save(tmp_path / "again.safetensors"), framework="pt") as file:
        written = file.metadata()
    assert written.keys() - OLDER.keys() == {"checksum", "method", "pairs", "probes_also_evaluate"}
    assert OLDER.keys() <= written.keys()
    for key in ("counts", "statistics", "judge", "probes"):
        older, again = (json.dumps(json.loads(text[key]), sort_keys=True) for text in (OLDER, written))
        assert again == older.replace("[1.0, 2.0]", "[1, 2]"), key
    early = write_older(tmp_path / "early.safetensors", judge=None, last_row_normed=None, counts="{}", statistics="{}")
    bare = PersonaVector.load(early)
    assert (bare.counts, bare.evidence, bare.calibration, bare.last_row_normed) == (None, Evidence(), None, False)


def test_a_file_from_before_probes_had_their_own_questions_says_so(tmp_path):
    older = PersonaVector.load(write_older(tmp_path / "older.safetensors"))
    said = [weakness for weakness in older.weaknesses() if "its probes are the evaluation questions" in weakness]
    assert len(said) == 1
    for kept in (
        PersonaVector.load(older.save(tmp_path / "again.safetensors")),
        negate(older),
        add([older], [2.0], "x"),
    ):
        assert said[0] in kept.weaknesses()
    new = make_vector()
    assert not new.weaknesses()
    assert not PersonaVector.load(new.save(tmp_path / "new.safetensors")).weaknesses()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("counts", '{"trait": 3}', "expected the keys trait, opposite"),
        ("counts", '{"trait": 3, "opposite": "many"}', "opposite: expected a whole number of responses, found 'many'"),
        ("counts", "three", "Expecting value"),
        ("statistics", "[0.5]", "expected lists of numbers by name"),
        ("statistics", '{"auc": ["high"]}', r"auc: expected a list of numbers, found \['high'\]"),
        ("statistics", '{"sweep_layers": [1], "sweep_expression": []}', "sweep_expression: expected 1 numbers"),
        ("statistics", '{"causal_coefficient": [1.0], "causal_gain": []}', "causal_gain: expected 1 numbers"),
        ("judge", '{"slope": 1.0}', "no calibration of a contrastive judge"),
        ("layer", '"two"', "expected a whole number, found 'two'"),
        ("probes", '"Why?"', "expected a list of texts"),
        ("pairs", '[{"question": "Why?"}]', "expected a list of opposite, question, register, trait, each a text"),
        ("pairs", '"Why?"', "found 'Why"),
        ("last_row_normed", "1", "expected true or false, found 1"),
        ("probes_also_evaluate", '"no"', "expected true or false, found 'no'"),
        ("model_id", None, "is missing; expected trait, layer"),
    ],
)
def test_bad_metadata_is_named_with_file_and_key(key, value, message, tmp_path):
    path = write_older(tmp_path / "bad.safetensors", **{key: value})
    with pytest.raises(InputError, match=message) as error:
        PersonaVector.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert f"metadata key {key!r}" in str(error.value)


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(path, content):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": "Why?"}, "pairs: expected a sequence of MinimalPair, found 'Why[?]'"),
        ({"probes": "Why?"}, "probes: expected a sequence of questions, found 'Why[?]'"),
        ({"probes": ("Why?", 3)}, "probes, number 2: expected text, found 3"),
        ({"probes": ("\ud800",)}, "half of a surrogate pair"),
        ({"counts": (3, 4)}, "counts: expected Counts or None"),
        ({"evidence": None}, "evidence: expected Evidence, found None"),
        ({"calibration": {"slope": 1.0}}, "calibration: expected Calibration or None"),
        ({"model_id": None}, "model_id: expected text, found None"),
        ({"directions": [[1.0]]}, "directions: expected a tensor"),
    ],
)
def test_fields_of_another_type_are_named(changed, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(make_vector(), **changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("statistics", '{"sweep_layers": [1e999], "sweep_expression": [1], "sweep_coherence": [1]}'),
        ("statistics", '{"auc": [0.5, ' + "9" * 400 + "]}"),
        ("statistics", '{"steering_effect_layers": [1.5], "steering_effect": [1]}'),
        ("judge", '{"offsets": "123", "scales": "456", "slope": 1, "intercept": 0, "auc": 1, "calibration_error": 0}'),
        ("judge", '{"offsets": [1], "scales": [], "slope": 1, "intercept": 0, "auc": 1, "calibration_error": 0}'),
        ("judge", "[1]"),
        ("counts", "[1]"),
        ("probes", "[" * 100_000),
        ("layer", "9" * 5_000),
    ],
)
def test_odd_metadata_is_named(key, value, tmp_path):
    with pytest.raises(InputError, match=f"metadata key '{key}'"):
        PersonaVector.load(write_older(tmp_path / "bad.safetensors", **{key: value}))


def test_a_file_with_one_changed_value_is_told(tmp_path):
    path = make_vector().save(tmp_path / "evil.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # of a direction
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"evil\.safetensors: the content does not match its checksum"):
        PersonaVector.load(path)
