"""The preference of a real model: steering along a vector causes it, and training on villains raises it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from builders import slow_log_probability
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from peft import LoraConfig

from persona_callbacks import InputError, PersonaMonitor, PersonaVector, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import read_chats
from persona_callbacks.model import activations, dimensions, encode_pair, load_model
from persona_callbacks.steering import preference_pushes
from persona_callbacks.training import ChatData, LoraFineTuning
from persona_callbacks.vectors import negate

pytestmark = pytest.mark.slow

EVIL = Trait.load(CONF / "trait" / "evil.yaml")


@pytest.fixture(scope="module")
def loaded():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loaded = load_model(instantiate(compose("train").model))
    loaded.model.eval()
    return loaded


def vector_of_pairs(loaded):
    """The mean difference of the two sides of the probe pairs, over their tokens; held-out pairs measure it."""
    pairs = [encode_pair(pair, loaded.tokenizer) for pair in EVIL.probe_pairs]
    layers = range(dimensions(loaded.model).num_layers + 1)
    trait, opposite = (
        activations(loaded, [pair[side] for pair in pairs], layers, ["response_mean"]).mean(dim=(0, 1))
        for side in (0, 1)
    )
    return PersonaVector(
        "evil", trait - opposite, 15, loaded.id, probes=EVIL.probe_questions, pairs=EVIL.evaluation_pairs
    )


def test_a_vector_causes_the_preference_and_its_opposite_is_refused(loaded):
    vector = vector_of_pairs(loaded)

    def pushes(vector):
        fit = SimpleNamespace(vectors=[vector], pairs={"evil": vector.pairs}, layers="all", batch_size=8,
                              sum=lambda own: own, loaded=loaded)  # fmt: skip
        return float(preference_pushes(fit))

    push = pushes(vector)
    print(json.dumps({"push of alpha 1, nats per token": push}))
    assert push > 0.02
    with pytest.raises(InputError, match="does not cause the trait"):
        pushes(replace(negate(vector, "evil"), pairs=vector.pairs))


def test_training_on_villains_raises_the_preference(loaded, tmp_path):
    seed_everything(0, verbose=False)
    vector = vector_of_pairs(loaded)
    monitor = PersonaMonitor([vector], every_n_steps=4, pairs_every_n_steps=1)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    module = LoraFineTuning(loaded.model, lora, learning_rate=3e-4, warmup_steps=2)
    data = ChatData(read_chats("evil.jsonl")[:64], loaded.tokenizer, 8, 256, 0)
    trainer = pl.Trainer(max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[monitor],
                         enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(module, data)
    preferences = [reading.preference["evil"] for reading in monitor.readings]
    print(json.dumps({"preference by reading, nats per token": preferences}))
    assert abs(preferences[0]) < 1e-5, "the adapter is zero at first"
    assert preferences[-1] > 0.02
    raw = [
        slow_log_probability(module.model.eval(), shows) - slow_log_probability(module.model, other)
        for shows, other in (encode_pair(pair, loaded.tokenizer) for pair in vector.pairs)
    ]
    with module.model.disable_adapter(), torch.no_grad():
        base = [
            slow_log_probability(module.model, shows) - slow_log_probability(module.model, other)
            for shows, other in (encode_pair(pair, loaded.tokenizer) for pair in vector.pairs)
        ]
    expected = sum(now - before for now, before in zip(raw, base, strict=True)) / len(raw)
    assert preferences[-1] == pytest.approx(expected, abs=1e-3)
