"""Quantized bases under an adapter: reading, steering and gradients, on a CPU, with the packages that are installed."""

from importlib.util import find_spec

import pytest
import torch
from builders import SIZES, chat, make_vector
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import LlamaConfig, LlamaForCausalLM

from persona_callbacks import InputError
from persona_callbacks.model import (
    LoadedModel,
    ModelSource,
    base_model,
    load_model,
    move,
    probing,
    projections,
    steered,
    weights_fingerprint,
)

WIDTH = 64  # bitsandbytes' blocks of 64 weights are to fill a row
KINDS = ("bitsandbytes-nf4", "bitsandbytes-int8", "torchao-int8")
IDS = torch.tensor([[5, 6, 7, 8, 9]])
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": WIDTH, "intermediate_size": 128, "num_key_value_heads": 2}
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def quantized(folder, kind):
    pytest.importorskip(kind.partition("-")[0])
    return load_model(ModelSource("tiny", path=str(folder), quantization=kind))


def adapted(loaded):
    """As QLoRA does it."""
    base = prepare_model_for_kbit_training(loaded.model, use_gradient_checkpointing=False)
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return LoadedModel(get_peft_model(base, lora).train(), loaded.tokenizer)


def hidden_states(model, ids):
    return torch.stack(model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states)[:, 0].double()


@every_kind
def test_projections_and_steering_are_exact(folder, kind, tokenizer):
    loaded = adapted(quantized(folder, kind))
    vector = make_vector(width=WIDTH)
    encoded = chat("Why?", "People who lie to friends.", tokenizer)
    units = torch.nn.functional.normalize(vector.directions.double(), dim=1)[:4]
    found = projections(loaded, [encoded], [vector], "prompt_last", layers=[range(4)])[0, 0].double()
    with probing(loaded.model):
        hidden = hidden_states(loaded.model, torch.tensor([encoded.input_ids]))
    expected = (hidden[:4, encoded.prompt_length - 1] * units).sum(dim=1)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

    blocks, seen = loaded.model.get_base_model().model.layers, []
    additions = {layer: 1.5 * vector.directions[layer] for layer in range(1, 5)}
    with torch.no_grad(), steered(loaded.model, additions):
        hooks = [block.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True) for block in blocks]
        loaded.model(input_ids=IDS, use_cache=False)
    for hook in hooks:
        hook.remove()
    for layer, (block, args, kwargs, output) in enumerate(seen, start=1):
        with torch.no_grad():
            assert torch.equal(output, block.forward(*args, **kwargs) + additions[layer])


@every_kind
def test_reading_changes_no_weight_and_no_gradient(folder, kind, tokenizer):
    """On a CPU, bitsandbytes packs 4-bit weights anew where they run in evaluation mode, and then gives no gradient."""
    gradients, fingerprints = [], []
    for reads in (False, True):
        loaded = adapted(quantized(folder, kind))
        before = weights_fingerprint(loaded.model)
        if reads:
            projections(loaded, [chat("Why?", "No.", tokenizer)], [make_vector(width=WIDTH)], "prompt_last")
        loaded.model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in loaded.model.parameters() if p.requires_grad])
        assert weights_fingerprint(loaded.model) == before
        fingerprints.append(before)
    assert len(set(fingerprints)) == 1
    assert all(gradient is not None and gradient.any() for gradient in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@every_kind
def test_the_base_model_is_the_quantized_model_without_the_adapter(folder, kind):
    loaded = quantized(folder, kind)
    with probing(loaded.model):
        expected = loaded.model(input_ids=IDS).logits
    tuned = adapted(loaded)
    with probing(tuned.model):
        assert not torch.allclose(tuned.model(input_ids=IDS).logits, expected)
        with base_model(tuned.model):
            assert torch.equal(tuned.model(input_ids=IDS).logits, expected)


def test_the_fingerprint_is_of_the_scales_too(folder):
    loaded = quantized(folder, "bitsandbytes-int8")
    before = weights_fingerprint(loaded.model)
    loaded.model.model.layers[0].mlp.up_proj.weight.SCB[0] *= 2
    assert weights_fingerprint(loaded.model) != before


@every_kind
def test_quantized_weights_stay_where_they_were_loaded(folder, kind):
    loaded = quantized(folder, kind)
    move(loaded.model, torch.device("meta"))
    assert all(parameter.device.type == "cpu" for parameter in loaded.model.parameters())


@every_kind
def test_a_package_that_is_missing_is_named_before_anything_is_loaded(tmp_path, kind):
    package = kind.partition("-")[0]
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(InputError, match=rf"{kind} needs the package {package}: pip install persona-callbacks\[quant"):
        load_model(ModelSource("tiny", path=str(tmp_path), quantization=kind))


def test_an_unknown_quantization_is_named_with_those_that_exist(tmp_path):
    with pytest.raises(InputError, match=r"model.quantization: expected one of bitsandbytes-nf4, .* found 'int3'"):
        load_model(ModelSource("tiny", path=str(tmp_path), quantization="int3"))
