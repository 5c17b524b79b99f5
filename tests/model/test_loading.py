"""What `ModelSource` can ask for besides the name: revision, attention, device; in Python and on the command line."""

import pytest
import torch
from builders import tiny_model
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from persona_callbacks import InputError
from persona_callbacks.apps.configs import CONF
from persona_callbacks.model import ModelSource, load_model, move


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_attention_is_chosen(folder):
    for name in ("eager", "sdpa"):
        loaded = load_model(ModelSource("tiny", path=folder, attn_implementation=name))
        assert loaded.model.config._attn_implementation == name
    with pytest.raises(InputError, match=r"not a loadable causal language model: .*no_such_attention"):
        load_model(ModelSource("tiny", path=folder, attn_implementation="no_such_attention"))


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_weights_that_a_device_map_placed_stay_there(folder, device_map):
    placed = load_model(ModelSource("tiny", path=folder, device_map=device_map)).model
    move(placed, torch.device("meta"))
    assert all(parameter.device.type == "cpu" for parameter in placed.parameters())
    free = load_model(ModelSource("tiny", path=folder)).model
    move(free, torch.device("meta"))
    assert all(parameter.device.type == "meta" for parameter in free.parameters())


def test_a_revision_is_of_the_hub_only(folder):
    for source in (ModelSource("x", path=folder, revision="v2"), ModelSource("x", gguf="p/x.gguf", revision="v2")):
        with pytest.raises(InputError, match=r"model.revision: expected a model of the hub, found .* 'v2'"):
            load_model(source)


def test_the_revision_is_the_one_that_is_loaded(tokenizer, tmp_path, monkeypatch):
    """From a cache of the hub, as a machine without a network has it."""
    repository = tmp_path / "models--someone--tiny"
    models = {"main": tiny_model(), "v2": tiny_model(seed=1)}
    for number, (name, model) in enumerate(models.items()):
        commit = str(number) * 40
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        model.save_pretrained(repository / "snapshots" / commit)
        tokenizer.save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, source in (
        ("main", ModelSource("someone/tiny")),
        ("v2", ModelSource("someone/tiny", revision="v2")),
    ):
        loaded = load_model(source).model.state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in models[name].state_dict().items())
    with pytest.raises(InputError, match="someone/tiny"):
        load_model(ModelSource("someone/tiny", revision="v3"))


@pytest.mark.parametrize("group", ["hub", "folder", "gguf", "smollm2"])
def test_every_group_takes_them_on_the_command_line(group):
    given = ["model.quantization=torchao-int8", "model.device_map=auto", "model.attn_implementation=eager"]
    path = [] if group in ("hub", "smollm2") else ["model.path=/m"]
    name = ["model.id=a/b", "model.revision=v2"] if group == "hub" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        source = instantiate(compose("extract", [f"model={group}", *path, *name, *given]).model)
    assert (source.quantization, source.device_map, source.attn_implementation) == ("torchao-int8", "auto", "eager")
    assert source.revision == ("v2" if group == "hub" else None)
