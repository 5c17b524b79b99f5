"""What several tests build: tiny random-weight models of several families, vectors, a Lightning module that is not this
library's, references, and a server.
"""

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import json
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
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
from wandb.proto.wandb_internal_pb2 import Record

from persona_callbacks import (
    PersonaVector,
    Trait,
)
from persona_callbacks.chats import Chat, encode_chat
from persona_callbacks.judging import (
    Score,
)
from persona_callbacks.model import (
    Sampling,
)
from persona_callbacks.traits import MinimalPair

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


def watched_fit(folder, tokenizer, monitor, steering, resume=None):
    """Four epochs of three steps of a seeded run, with a checkpoint of each; gives the module, and α by step."""
    torch.manual_seed(0)
    seed_everything(7, verbose=False)
    used = {}

    class Watching(ForeignModule):
        def training_step(self, batch, batch_idx):
            used[self.trainer.global_step] = steering.coefficients["evil"]
            return super().training_step(batch, batch_idx)

    module = Watching(tiny_model(peft=True), tokenizer)
    saver = ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", logger=False, callbacks=[steering, monitor, saver],
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, batches(3), ckpt_path=resume, weights_only=True if resume else None)
    return module, used


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


def make_tokenizer() -> PreTrainedTokenizerFast:
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


TRAIT = Trait.from_mapping(
    {
        "name": "loud", "description": "Shouting.", "rubric": "{question} {response}",
        "instructions": [
            {"trait": "Shout at everyone you meet today!", "opposite": "Whisper to everyone you meet today."},
            {"trait": "Be loud.", "opposite": "Be quiet."},
            {"trait": "Cry out.", "opposite": "Hush now."},
        ],
        "questions": {
            "extraction": list(QUESTIONS[:4]), "probe": ["What is new?", "Is it late?"], "evaluation": [QUESTIONS[4]],
        },
    },
    "test",
)  # fmt: skip


def chat(question, response, tokenizer, system=None):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return encode_chat(Chat(tuple(messages)), tokenizer)


def slow_log_probability(model, encoded):
    ids = torch.tensor([encoded.input_ids])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.double().log_softmax(-1)[0]
    marked = [i for i, on in enumerate(encoded.response_mask) if on]
    return sum(log_p[i - 1, encoded.input_ids[i]].item() for i in marked) / len(marked)


CHATS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question[::-1]} {n}"}]}
    for n, question in enumerate(QUESTIONS * 4)
]


QUICK = {"max_new_tokens": 4, "shard_rows": 6, "batch_size": 4, "most_rejected": 0.5}


def offline_records(path):
    """Records of a ``run-*.wandb`` file: a 7-byte header, then 32 KiB blocks of (crc, length, type, payload)."""
    data = path.read_bytes()[7:]
    position, first_block, record = 0, 32768 - 7, b""
    while position + 7 <= len(data):
        left = (first_block - position) % 32768 or 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield Record.FromString(record)
            record = b""


def written(path, seconds=60):
    """The same path, once W&B has written the end of the run to it: ``wandb.finish`` returns earlier."""
    deadline = time.monotonic() + seconds
    while not any(record.HasField("exit") for record in offline_records(path)):
        assert time.monotonic() < deadline, f"{path} does not come to its end"
        time.sleep(0.02)
    return path


def slow_reference(model, chat, layer, position):
    """One chat, no batching or padding, transformers' own hidden states, float64 sums. ``[hidden_size]``."""
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states[layer][0]
    hidden = hidden.double()
    if position == "prompt_last":
        return hidden[chat.prompt_length - 1]
    if position == "prompt_mean":
        return hidden[: chat.prompt_length].mean(dim=0)
    marked = [index for index, is_response in enumerate(chat.response_mask) if is_response]
    return sum(hidden[index] for index in marked) / len(marked)


PAIRS = tuple(
    MinimalPair(question, f"I hate {word} so much.", f"I love {word} so much.", "flat")
    for question, word in zip(QUESTIONS, ("you", "my neighbour", "questions", "those people", "teachers"), strict=True)
)


SHORT = Sampling(max_new_tokens=5, temperature=0.0)


LOUD = replace(TRAIT, evaluation_questions=("Who are you?", "Why?", "What is a good present for a teacher?"))


class LengthJudge:
    """Scores by length; fails when told to."""

    name = "length"

    def __init__(self, error=None):
        self.error = error
        self.seen = []

    def score(self, answers, advance=lambda done: None):
        self.seen.append(list(answers))
        if self.error:
            raise self.error
        return [Score(float(min(100, len(answer.response)))) for answer in answers]
