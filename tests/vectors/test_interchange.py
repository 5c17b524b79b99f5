"""Files of other tools: exact round trips, and what others write."""

import pickle
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from builders import make_vector

from persona_callbacks import InputError, PersonaVector, PreventativeSteering
from persona_callbacks.vectors import (
    ORIGINS,
    Calibration,
    Counts,
    Evidence,
    incremental_directions,
    read_gguf,
    read_pt,
    steering_layers,
    write_gguf,
    write_pt,
)

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "qwen3-4b_evil_response_avg_diff.pt"
FULL = replace(
    make_vector(), probes=("Why?", "Größe?"), counts=Counts(5, 6), evidence=Evidence(auc=(0.5,) * 5), model_id="a/b",
    calibration=Calibration((0.1,), (0.5,), 2.0, 0.3, 0.9, 0.05), model_revision="abc", trait_fingerprint="f",
    probes_also_evaluate=True,
)  # fmt: skip
FIELDS = ("trait", "layer", "model_id", "model_revision", "position", "probes", "counts", "evidence", "calibration",
          "trait_fingerprint", "last_row_normed", "probes_also_evaluate", "library_version")  # fmt: skip


def same(first, second):
    return torch.equal(first.directions, second.directions) and all(
        getattr(first, name) == getattr(second, name) for name in FIELDS
    )


def others_gguf(path, tensors, **kwargs):
    writer = gguf.GGUFWriter(path, kwargs.get("architecture", "controlvector"))
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("normed", [False, True])
def test_native_file_holds_everything(normed, tmp_path):
    vector = replace(FULL, last_row_normed=normed)
    assert same(PersonaVector.load(vector.save(tmp_path / "v.safetensors")), vector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pt_round_trip_is_exact_and_the_last_row_is_not_for_use(dtype, tmp_path):
    tensor = FULL.directions.to(dtype)
    torch.save(tensor, tmp_path / "theirs.pt")
    vector = read_pt(tmp_path / "theirs.pt", trait="evil", layer=3, model_id="a/b")
    assert torch.equal(vector.directions.to(dtype), tensor)
    assert torch.equal(torch.load(write_pt(vector, tmp_path / "ours.pt"), weights_only=True), tensor.float())
    assert steering_layers([vector], "all") == {"evil": [1, 2, 3]}
    for use in (lambda: vector.direction(4), lambda: replace(vector, layer=4), lambda: vector.unit_direction(4),
                lambda: incremental_directions(vector, [1, 4]),
                lambda: steering_layers([vector], [2, 4])):  # fmt: skip
        with pytest.raises(InputError, match="read after the final norm"):
            use()
    assert read_pt(tmp_path / "ours.pt", trait="e", layer=4, model_id="", last_row_normed=False).direction(4).any()


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference vector is not part of the repository")
def test_a_real_vector_of_the_papers_code(tmp_path):
    vector = read_pt(REFERENCE, trait="evil", layer=20, model_id="Qwen/Qwen3-4B")
    norms = vector.directions.norm(dim=1)
    assert norms[-1] < 0.6 * norms[-2], "the final norm has changed the scale of the last row"
    assert steering_layers([vector], "all")["evil"] == list(range(1, vector.num_layers))
    original = torch.load(REFERENCE, weights_only=True)
    assert torch.equal(torch.load(write_pt(vector, tmp_path / "v.pt"), weights_only=True), original.float())
    for path in (vector.save(tmp_path / "v.safetensors"), write_gguf(vector, tmp_path / "v.gguf", model_hint="qwen3")):
        read = PersonaVector.load(path) if path.suffix == ".safetensors" else read_gguf(path)
        assert same(read, vector)
    assert PreventativeSteering([vector])


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("normed", [False, True])
def test_gguf_round_trip_is_exact_and_holds_only_what_llama_cpp_takes(origin, normed, tmp_path):
    vector = replace(FULL, last_row_normed=normed)
    path = write_gguf(vector, tmp_path / "v.gguf", model_hint="llama", origin=origin)
    assert same(read_gguf(path), vector)
    again = write_gguf(read_gguf(path), tmp_path / "w.gguf", model_hint="llama", origin=origin)
    assert again.read_bytes() == path.read_bytes()
    names = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    shift = 1 if origin == "repeng" else 0
    assert set(names) == {f"direction.{n - shift}" for n in range(1 + shift, 4 if normed else 5)}
    for name, data in names.items():
        assert np.array_equal(data, vector.directions[int(name.split(".")[1]) + shift].numpy())


def test_gguf_of_others(tmp_path):
    values = {f"direction.{i}": np.arange(6) + i for i in (1, 2, 3)}
    path = others_gguf(tmp_path / "v.gguf", values)
    with pytest.raises(InputError, match="whose control vector is it"):
        read_gguf(path, trait="happy")
    with pytest.raises(InputError, match="does not name its trait"):
        read_gguf(path, origin="repeng")
    theirs = read_gguf(path, origin="repeng", trait="happy", num_layers=5)
    assert theirs.directions[:, 0].tolist() == [0, 0, 1, 2, 3, 0]
    assert (theirs.trait, theirs.layer, theirs.model_id) == ("happy", 2, "mistral")
    cpp = read_gguf(path, origin="llama.cpp", trait="happy", model_id="m", layer=1)
    assert cpp.directions[:, 0].tolist() == [0, 1, 2, 3]
    assert (cpp.layer, cpp.model_id) == (1, "m")
    with pytest.raises(InputError, match="expected layers 1 to 2"):
        read_gguf(path, origin="repeng", trait="happy", num_layers=2)
    with pytest.raises(InputError, match=r"unknown tensor 'mean\.1'"):
        read_gguf(others_gguf(tmp_path / "x.gguf", {"mean.1": [1.0]}), origin="repeng", trait="happy")
    with pytest.raises(InputError, match="layers 0 to 1"):
        read_gguf(others_gguf(tmp_path / "z.gguf", {"direction.0": [1.0], "direction.1": [1.0]}),
                  origin="llama.cpp", trait="happy")  # fmt: skip
    with pytest.raises(InputError, match="found 'llama'"):
        read_gguf(others_gguf(tmp_path / "y.gguf", values, architecture="llama"), origin="repeng", trait="happy")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("code.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(torch.arange(6).view(2, 3), "whole-numbers.pt")
    torch.save({"a": torch.ones(2, 2)}, "mapping.pt")
    torch.save(torch.full((3, 2), torch.nan), "nan.pt")
    good = write_pt(FULL, "good.pt").read_bytes()
    Path("cut.pt").write_bytes(good[: len(good) // 2])
    for name, message in (
        ("none.pt", "no such file"), ("code.pt", "without running code"), ("cut.pt", "without running code"),
        ("whole-numbers.pt", r"found \[2, 3\] in torch.int64"), ("mapping.pt", "found dict"), ("nan.pt", "not finite"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message) as raised:
            read_pt(name, trait="t", layer=1, model_id="m")
        assert name in str(raised.value)
    assert not Path("ran").exists()
    whole = write_gguf(FULL, "good.gguf", model_hint="llama").read_bytes()
    Path("cut.gguf").write_bytes(whole[: len(whole) // 2])
    Path("junk.gguf").write_bytes(b"GGUF" + bytes(40))
    for name in ("none.gguf", "cut.gguf", "junk.gguf"):
        with pytest.raises(InputError, match=name):
            read_gguf(name)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="origin: unknown"):
        write_gguf(FULL, "new.gguf", model_hint="llama", origin="ours")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_gguf(FULL, "new.gguf", model_hint="llama")
    assert {path.name for path in tmp_path.iterdir()} == before, "nothing half-written is left"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.eye(4).to_sparse(), "expected a dense tensor"),
        (torch.ones(1).expand(1 << 20, 1 << 20), "found 1 in the file"),
        (torch.empty(4, 4, device="meta"), "dense tensor|without running code"),
        (torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)]), "expected a tensor|without running code"),
    ],
    ids=["sparse", "expanded", "meta", "nested"],
)
def test_a_tensor_that_is_not_what_it_seems_is_refused_before_it_takes_memory(tensor, message, tmp_path):
    torch.save(tensor, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=message):
        read_pt(tmp_path / "odd.pt", trait="evil", layer=1, model_id="m")
