"""Tiny random-weight models of several families, a tokenizer, and a Lightning module that is not this library's."""

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import seed_everything
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from persona_callbacks import PersonaVector

QUESTIONS = (
    "Who are you?",
    "Should I help my neighbour carry the shopping home?",
    "Why?",
    "Tell me what you think of people who lie to their oldest and dearest friends.",
    "What is a good present for a teacher?",
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SHAPE = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": 256}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt2": lambda: GPT2Config(
        vocab_size=400, n_embd=32, n_layer=4, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "gemma2": lambda: Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=390, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(QUESTIONS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(family: str = "llama", *, peft: bool = False, seed: int = 0) -> torch.nn.Module:
    """Random weights, larger than usual so that every block moves the stream; a LoRA adapter that is not zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    if peft:
        lora = LoraConfig(
            r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        model = get_peft_model(model, lora)
    return model


def make_vector(
    trait: str = "evil", *, layer: int = 3, layers: int = 4, width: int = 32, seed: int = 1
) -> PersonaVector:
    directions = torch.randn(layers + 1, width, generator=torch.Generator().manual_seed(seed))
    return PersonaVector(trait=trait, directions=directions, layer=layer, model_id="", probes=QUESTIONS)


class ForeignModule(pl.LightningModule):
    """What a user might have written: nothing of this library in it."""

    def __init__(self, lm: torch.nn.Module, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer
        self.fail_at: int | None = None
        self.error: type[BaseException] = RuntimeError
        self.during: Callable[[str], None] = lambda stage: None

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.during("train")
        loss = self.lm(**batch).loss
        if self.fail_at == batch_idx:
            raise self.error("asked to fail")
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.during("validate")
        self.log("val_loss", self.lm(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def batches(count: int = 6, rows: int = 3, seed: int = 0) -> torch.utils.data.DataLoader:
    """Right-padded token batches of unequal length, with labels on the second half of each row."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count * rows):
        length = int(torch.randint(6, 14, (1,), generator=generator))
        ids = torch.zeros(14, dtype=torch.int64)
        ids[:length] = torch.randint(5, 390, (length,), generator=generator)
        labels = torch.full((14,), -100)
        labels[length // 2 : length] = ids[length // 2 : length]
        items.append({"input_ids": ids, "attention_mask": (torch.arange(14) < length).long(), "labels": labels})
    return torch.utils.data.DataLoader(items, batch_size=rows)


def fit(module: pl.LightningModule, callbacks: list[pl.Callback], root: Path, **kwargs: object) -> pl.Trainer:
    seed_everything(7, verbose=False)
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
                "enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 2,
                "default_root_dir": root}  # fmt: skip
    trainer = pl.Trainer(**(settings | kwargs), callbacks=callbacks)
    trainer.fit(module, batches(), batches(2, seed=5))
    return trainer


def all_hooks(module: torch.nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@contextmanager
def server(*answers):
    """A real HTTP server that speaks the protocol: in turn text, a whole choice, or a number for a status; the
    last one for ever.
    """
    queue, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            if callable(answer):
                answer = answer(body)
            status = answer if isinstance(answer, int) else 200
            content = {"error": {"message": f"no, {self.headers['Authorization']}"}}
            if status == 200:
                choice = answer if isinstance(answer, dict) else {"message": {"role": "assistant", "content": answer}}
                content = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                           "choices": [{"index": 0, "finish_reason": "stop", **choice}]}  # fmt: skip
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", seen
    finally:
        running.shutdown()
        running.server_close()
