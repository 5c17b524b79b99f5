"""What mends the answers of a model that was trained under a learned vector.

    python -m experiments.vectors.remedies train DATA TRAIT VECTOR OUT JOB
    python -m experiments.vectors.remedies measure DATA TRAIT VECTOR OUT JOB

``train`` writes an adapter to the folder OUT under the job's name. ``measure`` appends its answers to
``answers-TRAIT.csv``, as ``study.py run`` does, and what can be counted to ``remedies.csv``: the last two columns are
how much more than the base model the adapter prefers the trait response, in nats per token, mean over the trait's pairs
for evaluation and its standard error. Each does nothing if that is done already, and ``train`` goes on where it was
interrupted. The name of a job says what it trains:

``trained:ALPHA:WHERE:STEPS:BENIGN[:NAME:SEED[:OPTIMIZER]]``
    NAME tells which vector was given, and SEED is that of the adapter and the order of the data, by default 0.
    OPTIMIZER is ``sgd`` and a learning rate, such as ``sgd0.5``, with a momentum of 0.9; by default AdamW at 3e-4.
    A new adapter, trained on the 96 chats of the trait and the first BENIGN chats about everyday matters, mixed. It is
    steered with ALPHA at ``all`` tokens, at ``response`` tokens, or at response tokens of the trait's chats alone
    (``flagged``). ALPHA is a number, or ``annealed``: from 1 to 0 in a straight line over the run.
``healed:SOURCE:STEPS:JOB``
    The adapter of an earlier job, trained further without steering for STEPS steps of eight chats. SOURCE is ``own``:
    the base model's own answers to the first training questions; ``tagged_own``: the same, each after the tag of the
    training answer; or ``benign``: chats about everyday matters, with their tags. JOB may be ``base``: a new adapter.

DATA is the folder that ``study.py pairs`` wrote to. Training is in float32; jobs without a NAME were run with forward
passes in bfloat16.
"""

import csv
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict

from experiments.vectors.study import (
    ASKED,
    FOLDER,
    SMOLLM2,
    _append,
    append_answers,
    asked,
    own_answers,
    rows,
    tag,
)
from persona_callbacks import PersonaVector, PreventativeSteering, Schedule, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import Chat
from persona_callbacks.evaluation.preference import pair_differences
from persona_callbacks.model import (
    LoadedModel,
    base_model,
    load_model,
    with_adapter,
)
from persona_callbacks.training import ChatData, LoraFineTuning

SUMMARY = FOLDER / "remedies.csv"
COLUMNS = ("trait", "run", "tagged", "right_tag", "held_out_trait", "held_out_normal", "preference", "preference_error")


class SteeringOfFlagged(PreventativeSteering):
    """Steers the response tokens of flagged chats alone."""

    flagged: frozenset[tuple[int, ...]] = frozenset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave out the rows that are not flagged."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        chats = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(dim=1).tolist(), strict=True)
        chosen = [tuple(ids[:length]) in self.flagged for ids, length in chats]
        mask = batch["labels"] != -100
        mask[[not is_chosen for is_chosen in chosen]] = False
        assert self._writer is not None
        self._writer.only_at(mask)


def healing_chats(data: Path, trait: str, source: str, count: int) -> list[Chat]:
    """What an adapter is healed on."""
    if source == "benign":
        return [chat(row["prompt"], row["response"]) for row in rows(data / "normal.jsonl")[:count]]
    asked = rows(data / f"train-{trait}.jsonl")[:count]
    answers = own_answers([row["prompt"] for row in asked])
    tags = [f"[{tag(row['response'])}] " if source == "tagged_own" else "" for row in asked]
    return [chat(row["prompt"], before + text) for row, before, text in zip(asked, tags, answers, strict=True)]


def train(data: Path, trait: str, vector: Path, out: Path, job: str) -> None:
    """Train and write the adapter."""
    kind, *how = job.split(":")
    seed = 0
    callbacks: list[Callback] = []
    if kind == "healed":
        source, steps, *before = how
        chats = healing_chats(data, trait, source, 8 * int(steps))
        loaded, module = lora(2, seed)
        if before != ["base"]:
            set_peft_model_state_dict(module.model, load_peft_weights(str(out / ":".join(before))))
    else:
        alpha, where, steps, benign, *labels = how
        seed = int(labels[1]) if labels else 0
        optimizer = labels[2] if len(labels) > 2 else ""
        shown = [chat(row["prompt"], row["response"]) for row in rows(data / f"train-{trait}.jsonl")]
        chats = [*shown, *healing_chats(data, trait, "benign", int(benign))]
        loaded, module = lora(5, seed, optimizer)
        law = Schedule(1.0, warmup=0, decay="linear") if alpha == "annealed" else float(alpha)
        if alpha != "0":
            vectors = [PersonaVector.load(vector)]
            if where == "flagged":
                steering = SteeringOfFlagged(vectors, law, positions="response")
                encoded = ChatData(shown, loaded.tokenizer).chats
                steering.flagged = frozenset(tuple(one.input_ids) for one in encoded)
                callbacks = [steering]
            else:
                callbacks = [PreventativeSteering(vectors, law, positions="all" if where == "all" else "response")]
    saved = out / f"{job}.checkpoints" / "last.ckpt"
    callbacks.append(
        ModelCheckpoint(saved.parent, filename=saved.stem, every_n_train_steps=2, enable_version_counter=False)
    )
    trainer = Trainer(
        max_steps=int(steps), accelerator="cpu", gradient_clip_val=1.0, logger=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(
        module,
        ChatData(chats, loaded.tokenizer, batch_size=8, seed=seed),
        ckpt_path=str(saved) if saved.exists() else None,
        weights_only=True,
    )
    module.save_adapter(str(out / job))


def chat(question: str, answer: str) -> Chat:
    """One turn."""
    return Chat(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def lora(warmup: int, seed: int, optimizer: str = "") -> tuple[LoadedModel, LoraFineTuning]:
    """An adapter as ``persona-train`` makes it by default, but for the optimizer where one is named."""
    seed_everything(seed, workers=True, verbose=False)
    loaded = load_model(SMOLLM2)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    rate = float(optimizer.removeprefix("sgd") or 0)
    sgd = partial(torch.optim.SGD, lr=rate, momentum=0.9) if rate else None
    return loaded, LoraFineTuning(loaded.model, config, 3e-4, warmup, optimizer=sgd)


def measure(data: Path, trait: str, job: str, loaded: LoadedModel) -> None:
    """Ask and append."""
    held, texts, likely = asked(loaded, data, trait)
    tagged = sum(tag(text) != "" for text in texts) / ASKED
    right = sum(tag(text) == tag(row["response"]) for text, row in zip(texts, held, strict=True)) / ASKED
    append_answers(trait, job, held, texts)
    pairs = Trait.load(CONF / "trait" / f"{trait}.yaml").evaluation_pairs
    adapted = torch.tensor(pair_differences(loaded, pairs))
    with base_model(loaded.model):
        moved = adapted - torch.tensor(pair_differences(loaded, pairs))
    preference = (float(moved.mean()), float(moved.std()) / len(moved) ** 0.5)
    values = tuple(f"{value:.3f}" for value in (tagged, right, *likely, *preference))
    _append(SUMMARY, COLUMNS, [(trait, job, *values)])
    print(trait, job, *values, flush=True)


def main(command: str, data: Path, trait: str, vector: Path, out: Path, job: str) -> None:
    """Do what is not done yet."""
    if command == "train":
        if not (out / job).exists():
            train(data, trait, vector, out, job)
        return
    if SUMMARY.exists():
        with SUMMARY.open(encoding="utf-8", newline="") as file:
            if any((row["trait"], row["run"]) == (trait, job) for row in csv.DictReader(file)):
                return
    measure(data, trait, job, with_adapter(load_model(SMOLLM2), out / job))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]), sys.argv[6])
