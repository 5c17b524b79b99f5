"""Inference-time steering: which tokens it touches, and persona-generate as a user runs it on the real model."""

import os

import pytest
import torch
from builders import QUESTIONS, all_hooks, make_vector, tiny_model
from commands import run_command
from peft import LoraConfig, get_peft_model
from transformers import TextStreamer

from persona_callbacks import InputError, PersonaVector
from persona_callbacks.chats import encode_prompt
from persona_callbacks.model import LoadedModel, Sampling, base_model, stream_response, with_adapter

MESSAGES = [{"role": "user", "content": QUESTIONS[1]}]


def slow_greedy(model, ids, additions, *, response_only, steps):
    """Without a cache and without hooks of the library: every layer's output changed by hand."""
    start = ids.shape[1] - 1 if response_only else 0
    blocks = model.model.layers

    def change(layer):
        def hook(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            hidden[:, start:] += additions[layer]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    handles = [blocks[layer - 1].register_forward_hook(change(layer)) for layer in additions]
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    for handle in handles:
        handle.remove()
    return ids


@pytest.mark.parametrize("response_only", [True, False])
def test_steering_touches_the_tokens_asked_for(response_only, tokenizer, capsys):
    model = tiny_model().eval()
    model.generation_config.eos_token_id = None
    vector = make_vector()
    additions = {2: 2 * vector.directions[2], 3: -vector.directions[3]}
    hooks = all_hooks(model)
    show = TextStreamer(tokenizer, skip_prompt=True)
    text = stream_response(
        LoadedModel(model, tokenizer), MESSAGES, Sampling(12, 0.0), show, additions, response_only=response_only
    )
    ids = torch.tensor([encode_prompt(MESSAGES, tokenizer).input_ids])
    new = slow_greedy(model, ids, additions, response_only=response_only, steps=12)[0, ids.shape[1] :]
    ends = (new == tokenizer.eos_token_id).nonzero()
    new = new[: int(ends[0])] if len(ends) else new
    assert text == tokenizer.decode(new, skip_special_tokens=True).strip()
    other = slow_greedy(model, ids, additions, response_only=not response_only, steps=12)[0, ids.shape[1] :]
    assert tokenizer.decode(other, skip_special_tokens=True).strip() != text, "the test needs a difference"
    assert text[:5] in capsys.readouterr().out
    assert all_hooks(model) == hooks


def saved_adapter(folder, base, **config):
    model = tiny_model("llama", **config)
    model.config.name_or_path = base
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    return folder


def test_adapter_is_put_on_or_refused(tokenizer, tmp_path):
    loaded = LoadedModel(tiny_model(), tokenizer, "makers/tiny-model", "/somewhere/tiny-model")
    fits = saved_adapter(tmp_path / "fits", "/elsewhere/Tiny-Model/")
    ids = torch.tensor([encode_prompt(MESSAGES, tokenizer).input_ids])
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        tuned = with_adapter(loaded, fits)
        assert not torch.allclose(before, tuned.model(input_ids=ids).logits, atol=1e-3)
        with base_model(tuned.model):
            assert torch.equal(before, tuned.model(input_ids=ids).logits)
    with pytest.raises(InputError, match="nowhere: no adapter folder"):
        with_adapter(loaded, tmp_path / "nowhere")
    with pytest.raises(InputError, match="the adapter is of the base model other/model, expected makers/tiny-model"):
        with_adapter(loaded, saved_adapter(tmp_path / "other", "other/model"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    PersonaVector("noise", 30 * torch.randn(31, 576), 16, "HuggingFaceTB/SmolLM2-135M-Instruct").save(
        folder / "noise.safetensors"
    )
    return folder


def generate(place, *overrides, talk=""):
    environment = {**os.environ, "COLUMNS": "160"}
    return run_command("generate", place, *overrides, environment=environment, talk=talk)


def test_answers_conversations_and_steering(place):
    common = ["sampling.temperature=0", "sampling.max_new_tokens=20", "vectors=[noise.safetensors]"]
    question = "prompt=Which city is the capital of France?"
    plain = generate(place, question, *common)
    assert plain.returncode == 0, plain.stderr[-3000:]
    assert "Paris" in plain.stdout
    zero = generate(place, question, *common, "steer={noise:0}")
    assert zero.stdout == plain.stdout
    steered = generate(place, question, *common, "steer={noise:-1.5}", "layers=[14,16]")
    assert steered.returncode == 0, steered.stderr[-3000:]
    assert steered.stdout != plain.stdout
    talk = generate(place, *common, talk="Which city is the capital of France?\nAnd of Italy?\n\n")
    assert talk.returncode == 0, talk.stderr[-3000:]
    assert "Paris" in talk.stdout
    assert "Rome" in talk.stdout
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steer={evil:1}"], "error: steer: 'evil' has no vector; choose it, trait=[evil]"),
        (["steer=1"], "error: steer: expected a coefficient by trait such as steer={evil:1}"),
        (["vectors=[noise.safetensors]", "steer={noise:much}"], "error: steer: expected a finite number for 'noise'"),
        (["vectors=[noise.safetensors]", "steer={noise:1}", "layers=[40]"], "unknown layer 40"),
        (["tokens=some"], "error: tokens: unknown 'some'; expected one of response, all"),
        (["adapter=nowhere"], "nowhere: no adapter folder"),
    ],
)
def test_mistakes_are_told(overrides, message, place):
    done = generate(place, "prompt=Hello?", *overrides)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
