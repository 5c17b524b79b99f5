"""A tiny project for the commands."""

import json
import os

import pytest
from builders import CHATS, make_vector, tiny_model


@pytest.fixture
def tiny(tokenizer, tmp_path):
    """What ``persona-train`` needs for a tiny model, and the environment to run it in."""
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    make_vector().save(tmp_path / "evil.safetensors")
    settings = [
        "model=folder", "model.path=model", "trait=[]", "vectors=[evil.safetensors]", "data.path=chats.jsonl",
        "steering=constant", "steering.callback.coefficient=0.2", "logger=csv", "trainer.accelerator=cpu",
        "evaluation=none", "sample_answers=1", "max_answer_tokens=4", "checkpoint_every_n_steps=2",
    ]  # fmt: skip
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return settings, {**own, "PERSONA_CALLBACKS_CACHE": str(tmp_path / "cache")}
