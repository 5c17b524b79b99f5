"""What the callbacks cost: real trainers that take their steps in turn, in one process.

    python benchmarks/overhead.py steps                     # SmolLM2, 1,024 tokens a batch, CPU
    python benchmarks/overhead.py run --turns 100 --vectors evil.safetensors
    python benchmarks/overhead.py steps --device cuda --shape 7b

`steps` compares a training step under each kind of watching and steering with one under none, and with the naive way to
watch: hidden states of all layers kept, and a number taken out for each trait and layer. `run` is a whole run with
adaptive steering as users have it beside one without. On a CPU time is the process's CPU time, so that other processes
count little, and memory is the peak of resident memory. Every turn is appended to `--out`, a CSV file, as it ends; with
`--table` the results of such a file are printed. `7b` is random weights of that shape in bfloat16 with gradient
checkpointing, `tiny` the same in small.
"""

import argparse
import copy
import csv
import ctypes
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig

from persona_callbacks import PersonaMonitor, PersonaVector, PreventativeSteering, Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.chats import encode_chat, pad, pad_token, read_chats
from persona_callbacks.model import LoadedModel, dimensions, load_model

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
}
TRAITS = ("evil", "sycophancy", "hallucination", "apathetic", "humorous", "impolite", "optimistic")
NEVER = 10**9
Work = Callable[[Callable[[], None]], None]
"""Does something, and calls its argument after each turn."""


class Turns:
    """Lets several pieces of work run one at a time, a turn each, and measures the turns."""

    def __init__(self, device: str, took: Callable[[str, int, float, int], None]) -> None:
        """Report each turn's kind, number, seconds and peak memory in bytes to ``took``."""
        self._device, self._took = device, took
        self._back = threading.Semaphore(0)

    def run(self, works: Mapping[str, Work]) -> None:
        """Give each its turns until all are done."""
        mine = {name: threading.Semaphore(0) for name in works}
        self._failed: BaseException | None = None
        self._running = list(works)
        for name, work in works.items():
            threading.Thread(target=self._run, args=(name, work, mine[name]), daemon=True).start()
        number = 0
        while self._running:
            for name in list(self._running):
                started = self._start()
                mine[name].release()
                self._back.acquire()
                if self._failed is not None:
                    raise self._failed
                self._took(name, number, self._clock() - started, self._peak())
            number += 1

    def _run(self, name: str, work: Work, mine: threading.Semaphore) -> None:
        def pause() -> None:
            self._back.release()
            mine.acquire()

        mine.acquire()
        try:
            work(pause)
        except BaseException as error:
            self._failed = error
        self._running.remove(name)
        self._back.release()

    def _clock(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self) -> float:
        if self._device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            ctypes.CDLL(None).malloc_trim(0)  # what other kinds freed does not count
            Path("/proc/self/clear_refs").write_text("5")
        return self._clock()

    def _peak(self) -> int:
        if self._device != "cpu":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


class Pause(Callback):
    """Ends a turn before each training batch."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the turn."""
        self._pause()


class Tuned(LightningModule):
    """A LoRA on shared weights; watched in the naive way, if vectors are given."""

    def __init__(self, loaded: LoadedModel, naive: Sequence[PersonaVector]) -> None:
        super().__init__()
        kept = {id(weight): weight for weight in loaded.model.parameters()}
        torch.manual_seed(0)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.lm = get_peft_model(copy.deepcopy(loaded.model, kept), lora)
        self.tokenizer = loaded.tokenizer
        self._naive = naive

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss."""
        outputs = self.lm(**batch, use_cache=False, output_hidden_states=bool(self._naive))
        marked = batch["labels"] != -100
        for vector in self._naive:
            for layer in range(1, vector.num_layers + 1):
                mean = outputs.hidden_states[layer][marked].float().mean(dim=0)
                (mean @ vector.unit_direction(layer).to(mean.device)).item()
        loss: torch.Tensor = outputs.loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the adapter."""
        return torch.optim.AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=3e-4)


def main() -> None:
    """Take the turns, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "run"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=["smollm2", *SHAPES], default="smollm2")
    parser.add_argument("--turns", type=int, default=9, help="steps of each kind")
    parser.add_argument("--rows", type=int, default=8, help="chats in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of each, padding included")
    parser.add_argument("--vectors", nargs="*", default=[], help="files; random directions if none")
    parser.add_argument("--out", type=Path, default=Path("overhead.csv"))
    parser.add_argument("--table", action="store_true", help="only print the results in --out")
    settings = parser.parse_args()
    if not settings.table:
        measure(settings)
    with settings.out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print_steps(rows) if settings.what == "steps" else print_run(rows)


def measure(settings: argparse.Namespace) -> None:
    """Write a row for each turn."""
    loaded = model_of(settings)
    vectors = [PersonaVector.load(path) for path in settings.vectors] or random_vectors(loaded)
    data = batches(settings, loaded)
    with settings.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "turn", "seconds", "peak_bytes"])

        def took(kind: str, number: int, seconds: float, peak: int) -> None:
            writer.writerow([kind, number, f"{seconds:.4f}", peak])
            file.flush()

        Turns(settings.device, took).run(
            {name: fit(settings, loaded, data, *kind) for name, kind in kinds(settings.what, vectors).items()}
        )


def kinds(what: str, vectors: list[PersonaVector]) -> dict[str, tuple[list[Callback], Sequence[PersonaVector]]]:
    """By name, the callbacks, and the vectors that are watched in the naive way."""
    if what == "run":
        return {"nothing": ([], ()), "adaptive": ([PersonaMonitor(vectors[:1]), PreventativeSteering(vectors[:1])], ())}
    three = vectors[:3]

    def monitor(watched: list[PersonaVector], every: int, pairs: int = 0) -> PersonaMonitor:
        return PersonaMonitor(watched, every_n_steps=every, pairs=pairs, batch_size=20)

    return {
        "nothing": ([], ()),
        "nothing, again": ([], ()),
        "monitor": ([monitor(three, NEVER)], ()),
        "steering": ([PreventativeSteering(three, 1.0)], ()),
        "monitor and steering": ([monitor(three, NEVER), PreventativeSteering(three, 1.0)], ()),
        "the naive way": ([], three),
        "reading of 1 trait's probes": ([monitor(vectors[:1], 1)], ()),
        "reading of 7 traits' probes": ([monitor(vectors, 1)], ()),
        "reading of 1 trait's probes and pairs": ([monitor(vectors[:1], 1, pairs=16)], ()),
    }


def fit(
    settings: argparse.Namespace,
    loaded: LoadedModel,
    data: list[dict[str, torch.Tensor]],
    callbacks: list[Callback],
    naive: Sequence[PersonaVector],
) -> Work:
    """A fit that pauses before each batch; its first turn is the beginning, and the last has the end in it."""

    def work(pause: Callable[[], None]) -> None:
        module = Tuned(loaded, naive)
        trainer = Trainer(
            accelerator="cpu" if settings.device == "cpu" else "gpu", devices=1, max_steps=settings.turns, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=5,
            callbacks=[Pause(pause), *callbacks],
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]  # batches are made

    return work


def model_of(settings: argparse.Namespace) -> LoadedModel:
    """The base model, frozen, with a tokenizer."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loaded = load_model(instantiate(compose("train").model))
    if settings.shape != "smollm2":
        config = LlamaConfig(**SHAPES[settings.shape], vocab_size=len(loaded.tokenizer), use_cache=False)
        with torch.device(settings.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        loaded = LoadedModel(model, loaded.tokenizer)
    return LoadedModel(loaded.model.to(settings.device).requires_grad_(False), loaded.tokenizer)


def random_vectors(loaded: LoadedModel) -> list[PersonaVector]:
    """Random directions, with the probes and pairs of the library's traits."""
    shape, made = dimensions(loaded.model), []
    for seed, name in enumerate(TRAITS):
        trait = Trait.load(Path(CONF) / "trait" / f"{name}.yaml")
        rows = 0.1 * torch.randn(shape.num_layers + 1, shape.hidden_size, generator=torch.Generator().manual_seed(seed))
        made.append(
            PersonaVector(
                name, rows, shape.num_layers // 2, shape.model_id, probes=trait.probe_questions,
                pairs=trait.probe_pairs,
            )
        )  # fmt: skip
    return made


def batches(settings: argparse.Namespace, loaded: LoadedModel) -> list[dict[str, torch.Tensor]]:
    """Villain chats, cut or padded to one length; from the beginning again where they end."""
    chats = [encode_chat(chat, loaded.tokenizer, settings.length) for chat in read_chats("evil.jsonl")]
    made = []
    for turn in range(settings.turns):
        rows = [chats[(turn * settings.rows + row) % len(chats)] for row in range(settings.rows)]
        batch = pad(rows, pad_token(loaded.tokenizer))
        lacking = settings.length - batch["input_ids"].shape[1]
        fill = {"input_ids": pad_token(loaded.tokenizer), "attention_mask": 0, "labels": -100}
        made.append({name: nn.functional.pad(part, (0, lacking), value=fill[name]) for name, part in batch.items()})
    return made


def print_steps(rows: list[dict[str, str]]) -> None:
    """Ratios to a step with nothing: the median over turns, with quartiles. The first step and the last are left out,
    since the beginning and the end are in them.
    """
    last = max(int(row["turn"]) for row in rows)
    seconds: dict[str, dict[int, float]] = defaultdict(dict)
    peaks: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if 1 < int(row["turn"]) < last:
            seconds[row["kind"]][int(row["turn"])] = float(row["seconds"])
            peaks[row["kind"]][int(row["turn"])] = float(row["peak_bytes"])
    print("| kind | turns | time | quartiles | peak memory |\n|---|---|---|---|---|")
    for kind in seconds:
        ratios = [taken / seconds["nothing"][turn] for turn, taken in seconds[kind].items()]
        memory = statistics.median(peaks[kind].values()) / statistics.median(peaks["nothing"].values())
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        print(f"| {kind} | {len(ratios)} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} | {memory:.3f} |")
    print(f"a step with nothing: {statistics.median(seconds['nothing'].values()):.2f} s")


def print_run(rows: list[dict[str, str]]) -> None:
    """The time of a run with adaptive steering, as a multiple of one with nothing."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        seconds[row["kind"]].append(float(row["seconds"]))
    steps = min(map(len, seconds.values())) - 1
    for end in sorted({26, steps}):
        if end <= steps:
            plain, adaptive = (sum(seconds[kind][: end + 1]) for kind in ("nothing", "adaptive"))
            print(f"the first {end} steps with what comes before them: {adaptive / plain:.3f} times the time")
    print(f"before the first step: {seconds['adaptive'][0] - seconds['nothing'][0]:.1f} s more")


if __name__ == "__main__":
    main()
