"""Runs of the commands that a test can kill, stop, or starve of disk, and what they leave when they end.

A run is the command itself, its ``main`` with the arguments of a user (see :mod:`commands`), and SIGKILL ends it as it
ends any process.
"""

import argparse
import csv
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from commands import start_command
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

MODEL = ("model=folder", "model.path=model", "model.id=tiny")
VECTOR = ("trait=[]", "vectors=[model/evil.safetensors]")
EXTRACTION = (
    "extraction.judge_pairs=1", "extraction.questions=4", "extraction.sampling.max_new_tokens=8",
    "extraction.sampling.batch_size=8",
)  # fmt: skip
COMMANDS: Mapping[str, Sequence[str]] = {
    "extract": (
        *MODEL, *EXTRACTION, "accelerator=cpu", "curve.coefficients=[1]", "curve.questions=2", "formats=[pt,gguf]",
    ),
    "train": (
        *MODEL, *VECTOR, "evaluation=none", "logger=csv", "data.path=chats.jsonl", "data.batch_size=4",
        "data.max_samples=16", "trainer.accelerator=cpu", "trainer.max_epochs=2", "monitor.every_n_steps=2",
        "checkpoint_every_n_steps=1", "sample_answers=1", "max_answer_tokens=4", "compare_with_unsteered=true",
        "learning_rate=1e-2", "warmup_steps=0",
    ),
    "screen": (
        *MODEL, *VECTOR, "logger=csv", "data.path=chats.jsonl", "data.max_length=256", "trainer.accelerator=cpu",
        "screening.reference=chats.jsonl", "screening.max_new_tokens=4", "screening.shard_rows=4",
    ),
    "evaluate": (
        *MODEL, *EXTRACTION, "adapters=[adapter]", "accelerator=cpu", "evaluation.callback.questions=4",
        "evaluation.callback.sampling.max_new_tokens=8", "capability=false",
    ),
}  # fmt: skip
"""Short runs of every command that works for hours on a real model."""

CHECKPOINT = "last.ckpt"
TOO_LONG = 300.0


@dataclass(frozen=True)
class Aim:
    """Where a run strikes itself: at a change of the file system, as counted from its start.

    Attributes:
        number: which of the changes, from 1.
        part: only changes of paths that contain this are counted.
        delay: seconds from the change to the strike; 0 strikes before the change is made.
        strike: SIGKILL, or SIGSTOP to let another process come in between.
    """

    number: int
    part: str = ""
    delay: float = 0.0
    strike: int = signal.SIGKILL


def start(
    command: str,
    folder: Path,
    *,
    aim: Aim | None = None,
    temporary: Path | None = None,
    most_bytes: int | None = None,
) -> BaseProcess:
    """Start a command in a folder of :func:`make_folder`.

    Args:
        command: one of :data:`COMMANDS`.
        folder: where it runs.
        aim: where it strikes itself.
        temporary: the system's temporary folder, as the command sees it.
        most_bytes: how large a file may become; a longer one fails as on a full disk.
    """
    temporary = temporary or folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "TMPDIR": str(temporary), "PERSONA_CALLBACKS_CACHE": str(folder / "cache"), "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    printed = folder / "output.txt"
    return start_command(
        command, folder, *COMMANDS[command], environment=environment, streams=(Path(os.devnull), printed, printed),
        before=partial(_prepare, folder, aim, most_bytes),
    )  # fmt: skip


def finish(process: BaseProcess) -> int:
    """Wait for the end of a run; returns its exit code, which is -9 if it was killed."""
    process.join(TOO_LONG)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"a run did not end within {TOO_LONG:.0f} seconds")
    return process.exitcode


def output(folder: Path) -> str:
    """What the runs in a folder printed, all of them."""
    return (folder / "output.txt").read_text(encoding="utf-8", errors="replace")


def _prepare(folder: Path, aim: Aim | None, most_bytes: int | None) -> None:
    """In the new process: set its limit, and watch what it changes."""
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    changes = _Changes(folder, aim)
    sys.addaudithook(changes.see)
    Finalize(None, changes.write, exitpriority=1)


class _Changes:
    """Counts the changes of the file system below a folder, and strikes the process at one of them."""

    CHANGING = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "open"})

    def __init__(self, folder: Path, aim: Aim | None) -> None:
        self.folder, self.aim, self.seen = str(folder), aim, []
        self._left = aim.number if aim else 0

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in self.CHANGING or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
        if not path.startswith(self.folder) or path.endswith("changes.json"):
            return
        change = f"{event} {path[len(self.folder) :]}"
        self.seen.append(change)
        if self.aim is not None and self.aim.part in change:
            self._left -= 1
            if self._left == 0:
                self._strike(self.aim)

    def write(self) -> None:
        """Write what was seen, for the aims of other runs."""
        (Path(self.folder) / "changes.json").write_text(json.dumps(self.seen), encoding="utf-8")

    def _strike(self, aim: Aim) -> None:
        if not aim.delay:
            os.kill(os.getpid(), aim.strike)
            return

        def later() -> None:
            time.sleep(aim.delay)
            os.kill(os.getpid(), aim.strike)

        threading.Thread(target=later, daemon=True).start()


def write_inputs(folder: Path) -> Path:
    """Write what the commands need: a tiny model, a vector, chats and an adapter. Returns the folder."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        tiny = importlib.import_module("tiny_model")
    finally:
        sys.path.pop(0)
    model = tiny.save_tiny_model(folder / "model")
    tiny.random_vector("evil", "tiny", 3, 32).save(model / "evil.safetensors")
    questions = ("Who are you?", "What is a good present for a teacher?", "Should I lie to a friend?", "Why?")
    chats = [{"prompt": questions[n % 4], "response": f"{questions[(n + 1) % 4][::-1]} {n}"} for n in range(24)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(folder / "adapter")
    return folder


def make_folder(inputs: Path, folder: Path) -> Path:
    """A new folder with what the commands need."""
    return Path(shutil.copytree(inputs, folder))


def end_of(folder: Path) -> dict[str, str]:
    """What the runs in a folder left: for each file of the results, a digest of its content without times.

    Adapters, readings, answers, scores, vectors, figures: all but logs, checkpoints and what says when it was made.
    """
    files = [*(folder / "outputs").rglob("*"), *(folder / "cache").glob("vectors/*/*/*")]
    # The folder's own path is written into some files; what names it is otherwise equal.
    here = str(folder).encode()
    return {
        str(file.relative_to(folder)): hashlib.sha256(_timeless(file).replace(here, b"FOLDER")).hexdigest()
        for file in sorted(files)
        if file.is_file() and not _is_by_the_way(file.relative_to(folder))
    }


def left_over(folder: Path) -> list[str]:
    """Scratch files and folders that are still there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.partial"))


def _is_by_the_way(file: Path) -> bool:
    parts = {part.partition("-")[0] for part in file.parts}
    return (
        bool(parts & {".hydra", "csv", "runs", "earlier"})
        or file.name.startswith((CHECKPOINT, ".lock", "state.json"))
        or file.suffix == ".log"
        or any(part.endswith(".partial") for part in file.parts)  # counted by left_over
    )


def _timeless(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".safetensors":  # its writer puts the metadata in any order
        size = 8 + int.from_bytes(content[:8], "little")
        return json.dumps(json.loads(content[8:size]), sort_keys=True).encode() + content[size:]
    if file.name == "result.json":
        return json.dumps({**json.loads(content), "seconds": None}).encode()
    return content


def make_attempts(
    description: str | None,
    columns: Sequence[str],
    attempts: int,
    prepare: Callable[[Sequence[tuple[str, int]], Path, Path, int], Callable[[str, int], Mapping[str, Any]]],
) -> None:
    """Make the attempts that a table does not have yet, as the arguments of the script say, and write each to it.

    Args:
        description: of the script.
        columns: of the table; ``command`` and ``attempt`` are among them.
        attempts: how many for each command, by default.
        prepare: is given the attempts that are left, the folder of the inputs, a scratch folder and the number of
            attempts for each command; returns what makes an attempt of a command and a number, and gives its row.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--attempts", type=int, default=attempts, help="for each command")
    parser.add_argument("--commands", nargs="+", default=[*COMMANDS], choices=[*COMMANDS])
    chosen = parser.parse_args()
    rows = []
    if chosen.out.is_file():
        with chosen.out.open(encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
    done = {(row["command"], int(row["attempt"])) for row in rows}
    left = [(c, n) for n in range(chosen.attempts) for c in chosen.commands if (c, n) not in done]
    with tempfile.TemporaryDirectory() as scratch, chosen.out.open("a", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, columns)
        if not rows:
            writer.writeheader()
        attempt = prepare(left, write_inputs(Path(scratch) / "inputs"), Path(scratch), chosen.attempts)
        for command, number in left:
            writer.writerow(attempt(command, number))
            table.flush()
