"""Reading and steering in every family of the docs' table: bare and with an adapter, against slow references."""

from functools import cache
from pathlib import Path

import pytest
import torch
from builders import ForeignModule, chat, fit, make_vector, weights
from families import FAMILIES, QUICK, SEVERAL_STREAMS, table
from peft import LoraConfig, get_peft_model

from persona_callbacks import InputError, PersonaMonitor, PreventativeSteering
from persona_callbacks.model import BatchLimits, LoadedModel, ModelSource, dimensions, load_model, projections, steered

LAYERS = range(5)
SHARED = "You are a person who answers every question of a friend in the shortest way that there is."
every_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
bare_and_adapted = pytest.mark.parametrize("adapted", [False, True], ids=["bare", "adapted"])


@cache
def tiny(name, adapted):
    model = FAMILIES[name].make()
    if adapted:
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=FAMILIES[name].targets, init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    return model


def blocks_of(model, name):
    """By the path that the table knows, not by the library's search."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_submodule(FAMILIES[name].blocks)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def stream(model, name, ids):
    """One sequence, no padding, no cache: transformers' hidden states, and what leaves the last block, which they have
    after the final norm only. Those of Mamba begin with what leaves the first block. ``[layers, length, hidden_size]``
    float64.
    """
    last = []
    hook = blocks_of(model, name)[-1].register_forward_hook(lambda _, __, output: last.append(first(output)))
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    hook.remove()
    if "mamba" in name.split("_")[-1]:
        hidden = (model.get_input_embeddings()(torch.tensor([ids])), *hidden)
    return torch.stack([*hidden[:4], last[0]])[:, 0].detach().double()


@every_family
@bare_and_adapted
def test_projections_equal_the_slow_reference(name, adapted, tokenizer):
    """The chats begin alike, so that keys and values are shared where the family allows it, and are padded."""
    model, vector = tiny(name, adapted), make_vector()
    units = torch.nn.functional.normalize(vector.directions.double(), dim=1)
    chats = [chat(q, a, tokenizer, SHARED) for q, a in (("Why?", "No."), ("Who are you?", "I am a very old friend."))]
    streams = [stream(model, name, encoded.input_ids) for encoded in chats]
    loaded, limits = LoadedModel(model, tokenizer), BatchLimits(2)
    for position in ("prompt_last", "response_mean"):
        found = projections(loaded, chats, [vector], position, layers=[LAYERS], limits=limits)[:, 0].double()
        for row, encoded, hidden in zip(found, chats, streams, strict=True):
            answer = torch.tensor(encoded.response_mask)
            at = hidden[:, encoded.prompt_length - 1] if position == "prompt_last" else hidden[:, answer].mean(dim=1)
            expected = (at * units).sum(dim=1)
            assert (row - expected).norm() <= 1e-4 * expected.norm()


@every_family
@bare_and_adapted
def test_steering_adds_exactly_alpha_times_the_vector_at_each_layer(name, adapted):
    """Every block is run again on the very input that it got: what it passed on is its own output, and the addition."""
    model, ids = tiny(name, adapted), [5, 6, 7, 8, 9]
    blocks = blocks_of(model, name)
    additions = {layer: 1.5 * make_vector().directions[layer] for layer in LAYERS}
    calls, passed_on, hooks = [], [], []
    with torch.no_grad(), steered(model, additions):
        for block in blocks:
            hooks.append(block.register_forward_pre_hook(lambda _, a, k: calls.append((a, dict(k))), with_kwargs=True))
            hooks.append(block.register_forward_hook(lambda _, __, output: passed_on.append(first(output))))
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    entered = [args[0] if args else kwargs["hidden_states"] for args, kwargs in calls]
    assert torch.allclose(entered[0][0].double(), stream(model, name, ids)[0] + additions[0])
    for layer, (block, (args, kwargs)) in enumerate(zip(blocks, calls, strict=True), start=1):
        with torch.no_grad():
            own = first(block.forward(*args, **kwargs))
        assert torch.equal(passed_on[layer - 1], own + additions[layer])
        assert layer == 4 or torch.equal(entered[layer], passed_on[layer - 1])


@pytest.mark.parametrize("family", SEVERAL_STREAMS, ids=lambda family: family.model_type)
def test_several_streams_are_refused_by_name(family, tokenizer, tmp_path):
    """In a module, and by the configuration before any weight is loaded: the folder has none."""
    model = family.make()
    with pytest.raises(InputError, match=rf"^{type(model).__name__}: expected one residual stream, found [24] \("):
        dimensions(model)
    config = model.config
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"expected one residual stream, found .* model type '{family.model_type}'"):
        load_model(ModelSource("tiny", path=str(tmp_path)))


def test_several_streams_of_a_family_that_is_not_known_end_the_first_pass(monkeypatch):
    monkeypatch.setattr("persona_callbacks.model.architecture._NUMBERS_OF_STREAMS", ())
    model = SEVERAL_STREAMS[1].make()
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(InputError, match=r"found the shape \[1, 3, 2, 32\]"), steered(model, {2: torch.ones(32)}):
        model(input_ids=ids)
    model(input_ids=ids)


@pytest.mark.parametrize("name", ["qwen3_5", "gemma3", "internvl"])
def test_multimodal_models_are_loaded_whole_and_read_and_trained_on_text(name, tokenizer, tmp_path):
    """Of the three, transformers has for the first a causal class without images, for the second the class itself, and
    for the third none.
    """
    saved = FAMILIES[name].make()
    saved.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = load_model(ModelSource("tiny", path=str(tmp_path / "model")))
    assert type(loaded.model) is type(saved)
    assert all(torch.equal(value, loaded.model.state_dict()[key]) for key, value in saved.state_dict().items())
    assert dimensions(loaded.model).num_layers == 4

    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|up_proj)", task_type="CAUSAL_LM")
    module = ForeignModule(get_peft_model(loaded.model, lora).train(), tokenizer)
    before = weights(module)
    monitor = PersonaMonitor([make_vector()], every_n_steps=3)
    trainer = fit(module, [monitor, PreventativeSteering([make_vector()], 1.0)], tmp_path)
    assert trainer.callback_metrics["persona/evil/shift"].isfinite()
    assert trainer.callback_metrics["persona/evil/shift"] != 0
    changed = {key for key, value in weights(module).items() if not torch.equal(value, before[key])}
    assert changed
    assert all("lora" in key and "language_model" in key for key in changed)


def test_the_table_of_the_docs_is_the_list_that_is_tested():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page
