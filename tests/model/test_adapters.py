"""Kinds of adapters, as PEFT makes them: what is read and written with each, and what the base model is."""

import pytest
import torch
from builders import ForeignModule, chat, fit, make_vector, slow_reference, tiny_model
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)

from persona_callbacks import InputError, PersonaMonitor, PreventativeSteering
from persona_callbacks.chats import encode_prompt
from persona_callbacks.model import LoadedModel, base_model, find_language_model, projections, steered

LINEAR = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
ADAPTERS = {
    "LoRA": lambda: LoraConfig(r=2, **LINEAR),
    "DoRA": lambda: LoraConfig(r=2, use_dora=True, **LINEAR),
    "rsLoRA": lambda: LoraConfig(r=2, use_rslora=True, **LINEAR),
    "AdaLoRA": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=10, **LINEAR),
    "VeRA": lambda: VeraConfig(r=4, **LINEAR),
    "LoHa": lambda: LoHaConfig(r=2, **LINEAR),
    "LoKr": lambda: LoKrConfig(r=2, **LINEAR),
    "OFT": lambda: OFTConfig(oft_block_size=4, **LINEAR),
    "IA3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LN tuning": lambda: LNTuningConfig(
        task_type="CAUSAL_LM", target_modules=["input_layernorm", "post_attention_layernorm"]
    ),
    "modules_to_save": lambda: LoraConfig(r=2, modules_to_save=["embed_tokens", "lm_head"], **LINEAR),
    "trainable tokens": lambda: LoraConfig(r=2, trainable_token_indices=[5, 6, 7], **LINEAR),
}
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def adapted(name):
    """What is trained is not where it began."""
    model = get_peft_model(tiny_model(), ADAPTERS[name]())
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_read_steered_and_left_out_of_the_base_model(name, tokenizer):
    model, vector = adapted(name), make_vector()
    required = [parameter.requires_grad for parameter in model.parameters()]
    encoded = chat("Why?", "People who lie to friends.", tokenizer)
    found = projections(LoadedModel(model, tokenizer), [encoded], [vector], "prompt_last", layers=[range(4)])[0, 0]
    for layer, value in enumerate(found):
        direction = vector.directions[layer].double()
        expected = slow_reference(model, encoded, layer, "prompt_last") @ direction / direction.norm()
        assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)

    seen = []
    block = model.get_base_model().model.layers[2]
    with torch.no_grad(), steered(model, {3: 1.5 * vector.directions[3]}):
        hook = block.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True)
        model(input_ids=IDS, use_cache=False)
    hook.remove()
    [(_, args, kwargs, output)] = seen
    with torch.no_grad():
        assert torch.equal(output, block.forward(*args, **kwargs) + 1.5 * vector.directions[3])

        before, bare = model(input_ids=IDS).logits, tiny_model().eval()(input_ids=IDS).logits
        assert not torch.allclose(before, bare, rtol=1e-2)
        with base_model(model):
            assert torch.equal(model(input_ids=IDS).logits, bare)
        assert torch.equal(model(input_ids=IDS).logits, before)
    assert required == [parameter.requires_grad for parameter in model.parameters()]


def shift(before, after, chats, vector):
    """At the vector's layer, by transformers' own hidden states."""
    direction = vector.unit_direction().double()
    moved = [
        slow_reference(after, encoded, vector.layer, "prompt_last")
        - slow_reference(before, encoded, vector.layer, "prompt_last")
        for encoded in chats
    ]
    return (torch.stack(moved) @ direction).mean().item()


class Distilling(ForeignModule):
    """A student that is trained towards a teacher on the batch that the callbacks steer."""

    def __init__(self, lm, teacher, tokenizer):
        super().__init__(lm, tokenizer)
        self.teacher = teacher
        self.seen = []

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            wanted = self.teacher(**batch).logits
        self.seen.append((batch, wanted))
        loss = (self.lm(**batch).logits - wanted).square().mean()
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("student", ["adapted", "full"])
def test_a_teacher_beside_the_student_is_neither_steered_nor_measured(student, tokenizer, tmp_path):
    vector = make_vector()
    lm = adapted("LoRA") if student == "adapted" else tiny_model(seed=2)
    before = tiny_model() if student == "adapted" else tiny_model(seed=2)
    teacher = tiny_model("qwen3", seed=3).requires_grad_(False)
    module = Distilling(lm.train(), teacher, tokenizer)
    monitor = PersonaMonitor([vector], every_n_steps=3)
    trainer = fit(module, [monitor, PreventativeSteering([vector], 2.0)], tmp_path)
    assert module.seen
    with torch.no_grad():
        assert all(torch.equal(teacher(**batch).logits, wanted) for batch, wanted in module.seen)
    chats = [encode_prompt([{"role": "user", "content": probe}], tokenizer) for probe in vector.probes]
    expected = shift(before.eval(), module.lm.eval(), chats, vector)
    assert trainer.callback_metrics["persona/evil/shift"].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_teacher_that_is_not_frozen_is_named_with_the_way_out(tokenizer):
    module = Distilling(adapted("LoRA"), tiny_model("qwen3"), tokenizer)
    with pytest.raises(InputError, match=r"found lm, teacher; freeze those that are not trained.*requires_grad_"):
        find_language_model(module)
