"""Reading the residual stream, against an independent slow reference."""

import copy

import pytest
import torch
from builders import FAMILIES, QUESTIONS, make_vector, slow_reference, tiny_model
from peft import LoraConfig, get_peft_model

from persona_callbacks.chats import Chat, encode_chat, encode_prompt
from persona_callbacks.model import BatchLimits, LoadedModel, activations, base_model, projections
from persona_callbacks.vectors import POSITIONS

ANSWERS = ("I am a very helpful friend.", "No.", "Because I say so, and nobody may ask twice.", "Hm", "Some flowers!")


def encoded_chats(tokenizer):
    return [
        encode_chat(Chat(({"role": "user", "content": q}, {"role": "assistant", "content": a})), tokenizer)
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]


def close(found, expected, tolerance=1e-4):
    return bool((found.double() - expected.double()).norm() <= tolerance * expected.double().norm())


@pytest.mark.parametrize("peft", [False, True], ids=["bare", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_equal_slow_reference(family, peft, tokenizer):
    model = tiny_model(family, peft=peft).eval()
    chats = encoded_chats(tokenizer)
    assert len({len(chat.input_ids) for chat in chats}) > 2, "the test needs unequal lengths"
    layers = [0, 1, 2, 3]  # the last entry of hidden_states is after the final norm: see the next test
    found = activations(LoadedModel(model, tokenizer), chats, layers, POSITIONS, limits=BatchLimits(3))
    for row, chat in enumerate(chats):
        for p, position in enumerate(POSITIONS):
            for n, layer in enumerate(layers):
                assert close(found[row, p, n], slow_reference(model, chat, layer, position)), (row, position, layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_layer_is_before_the_final_norm(family, tokenizer):
    model = tiny_model(family).eval()
    norm = next(m for n, m in model.named_modules() if n.endswith((".norm", "ln_f", "final_layer_norm")))
    chats = encoded_chats(tokenizer)
    found = activations(LoadedModel(model, tokenizer), chats, [4], ["prompt_last"])
    for row, chat in enumerate(chats):
        normed = slow_reference(model, chat, 4, "prompt_last")
        assert close(norm(found[row, 0, 0]).detach(), normed)
        assert not close(found[row, 0, 0], normed, tolerance=1e-2)


def test_batch_order_and_size_do_not_matter(tokenizer):
    model = tiny_model().eval()
    chats = encoded_chats(tokenizer)
    forward = activations(LoadedModel(model, tokenizer), chats, [2, 4], POSITIONS, limits=BatchLimits(5))
    backward = activations(LoadedModel(model, tokenizer), chats[::-1], [2, 4], POSITIONS, limits=BatchLimits(2)).flip(0)
    assert torch.allclose(forward, backward, rtol=1e-4, atol=1e-5)


def test_projections_of_several_vectors_at_their_own_layers(tokenizer):
    model = tiny_model("qwen3").eval()
    vectors = [make_vector("evil", layer=3), make_vector("sycophancy", layer=1, seed=2)]
    chats = [encode_prompt([{"role": "user", "content": q}], tokenizer) for q in QUESTIONS]
    found = projections(LoadedModel(model, tokenizer), chats, vectors, "prompt_last", limits=BatchLimits(2))
    for row, chat in enumerate(chats):
        for column, vector in enumerate(vectors):
            direction = vector.directions[vector.layer].double()
            at = slow_reference(model, chat, vector.layer, "prompt_last")
            expected = at @ direction / direction.norm()
            assert found[row, column].item() == pytest.approx(expected.item(), rel=1e-4)
    by_layer = projections(LoadedModel(model, tokenizer), chats, vectors, "prompt_last", layers=[[1, 3], [4, 1]])
    assert torch.allclose(by_layer[:, 0, 1], found[:, 0, 0], rtol=1e-4)
    assert torch.allclose(by_layer[:, 1, 1], found[:, 1, 0], rtol=1e-4)


def test_reading_runs_no_more_than_it_needs_and_leaves_nothing(tokenizer):
    model = tiny_model().train()
    model.model.layers[0].eval()  # a mode of the user's that must survive
    modes = [module.training for module in model.modules()]
    ran = []
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(model.model.layers)]
    handles.append(model.lm_head.register_forward_hook(lambda *_: ran.append("head")))
    chats = encoded_chats(tokenizer)
    random_state = torch.get_rng_state()
    activations(LoadedModel(model, tokenizer), chats, [1, 2], ["prompt_last"])
    assert set(ran) == {0, 1}  # a shared prefix is a pass of its own
    for handle in handles:
        handle.remove()
    assert torch.equal(random_state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_base_model_disables_adapters_and_restores_what_is_trained(tokenizer):
    bare, wrapped = tiny_model().eval(), tiny_model(peft=True).eval()
    frozen = next(p for n, p in wrapped.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)  # the user's own choice
    trained = [parameter.requires_grad for parameter in wrapped.parameters()]
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        with base_model(wrapped):
            assert torch.equal(wrapped(input_ids=ids).logits, bare(input_ids=ids).logits)
        assert not torch.allclose(wrapped(input_ids=ids).logits, bare(input_ids=ids).logits)
    assert trained == [parameter.requires_grad for parameter in wrapped.parameters()]


@pytest.mark.parametrize("earlier", ["weights", "embedding"])
def test_frozen_adapter_belongs_to_the_base_model(earlier):
    """Two adapters are active and one is trained: the base model is the model with the other one alone."""
    size = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    targets = "all-linear" if earlier == "weights" else ["embed_tokens"]
    both = get_peft_model(tiny_model(), LoraConfig(**size, target_modules=targets), "earlier").eval()
    alone = copy.deepcopy(both)
    both.add_adapter("now", LoraConfig(**size, target_modules="all-linear"))
    both.base_model.set_adapter(["earlier", "now"])
    for name, parameter in both.named_parameters():
        parameter.requires_grad_(".now" in name)
    required = {name: parameter.requires_grad for name, parameter in both.named_parameters()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before, expected = both(input_ids=ids).logits, alone(input_ids=ids).logits
        assert not torch.allclose(before, expected)
        with base_model(both):
            assert torch.equal(both(input_ids=ids).logits, expected)
            with base_model(both):
                assert torch.equal(both(input_ids=ids).logits, expected)
            assert torch.equal(both(input_ids=ids).logits, expected)
        assert torch.equal(both(input_ids=ids).logits, before)
    assert required == {name: parameter.requires_grad for name, parameter in both.named_parameters()}
    assert both.active_adapters == ["earlier", "now"]


def test_frozen_adapter_is_left_out_where_nothing_is_trained():
    bare, wrapped = tiny_model().eval(), tiny_model(peft=True).eval().requires_grad_(False)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), base_model(wrapped):
        assert torch.equal(wrapped(input_ids=ids).logits, bare(input_ids=ids).logits)
