"""Kills the commands at random moments, runs them again until they end, and compares the end with an unkilled run's.

    python tests/faults/kills.py OUT.csv --attempts 30

Each attempt is a row of OUT.csv, and its number says all of its chances: the script continues where it was stopped.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.harness import (
    CHECKPOINT,
    Aim,
    end_of,
    finish,
    left_over,
    make_attempts,
    make_folder,
    output,
    start,
)

COLUMNS = ("command", "attempt", "results_on", "kills", "strikes", "code", "equal", "different", "left_over")
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Unkilled:
    """A run that nothing disturbed: what it left, the changes of the file system that it made, and its seconds."""

    end: Mapping[str, str]
    changes: int
    checkpoint_changes: int
    seconds: float


def unkilled(command: str, inputs: Path, folder: Path) -> Unkilled:
    """Run twice, and keep the second: the first has to read the libraries from disk."""
    ends = []
    for number in (1, 2):
        made = make_folder(inputs, folder / f"{command}-{number}")
        started = time.monotonic()
        code = finish(start(command, made))
        seconds = time.monotonic() - started
        if code:
            raise RuntimeError(f"persona-{command} ended with {code} undisturbed:\n{output(made)[-3000:]}")
        ends.append(end_of(made))
        changes = json.loads((made / "changes.json").read_text(encoding="utf-8"))
        shutil.rmtree(made)
    if ends[0] != ends[1]:
        raise RuntimeError(f"persona-{command}: two undisturbed runs differ in {different(*ends)}")
    return Unkilled(ends[0], len(changes), sum(CHECKPOINT in change for change in changes), seconds)


def different(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The files that two ends do not have alike."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def attempt(command: str, number: int, inputs: Path, reference: Unkilled) -> dict[str, object]:
    """One to four kills in a row, then a run to the end. Returns a row of the table."""
    chance = random.Random(f"{command}-{number}")
    in_memory = MEMORY.is_dir() and number % 2 == 0
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if in_memory else None) as mine,
        tempfile.TemporaryDirectory(dir=None if in_memory or not MEMORY.is_dir() else MEMORY) as others,
    ):
        folder, temporary = make_folder(inputs, Path(mine, "run")), Path(others)
        another = os.stat(folder).st_dev != os.stat(temporary).st_dev  # noqa: PTH116
        strikes = []
        for _ in range(chance.randint(1, 4)):
            kind = chance.choice(["moment", "change", "checkpoint"] if command == "train" else ["moment", "change"])
            if kind == "moment":
                seconds = chance.uniform(0, reference.seconds)
                process = start(command, folder, temporary=temporary)
                process.join(seconds)
                process.kill()
                at = f"{seconds:.2f}s"
            else:
                most = reference.checkpoint_changes if kind == "checkpoint" else reference.changes
                part = CHECKPOINT if kind == "checkpoint" else ""
                aim = Aim(chance.randint(1, most), part, chance.choice([0.0, chance.uniform(0, 0.004)]))
                process = start(command, folder, aim=aim, temporary=temporary)
                at = f"{aim.number}+{aim.delay * 1000:.1f}ms"
            code = finish(process)
            if code != -signal.SIGKILL:
                break  # it ended first
            strikes.append(f"{kind}:{at}")
        if code == -signal.SIGKILL:
            code = finish(start(command, folder, temporary=temporary))
        unequal = different(end_of(folder), reference.end)
        if code or unequal:
            print(f"{command} {number}: code {code}, unequal {unequal}\n{output(folder)[-3000:]}", file=sys.stderr)
        return {
            "command": command, "attempt": number,
            "results_on": f"{'memory' if in_memory else 'disk'}, temporary folder {'elsewhere' if another else 'too'}",
            "kills": len(strikes), "strikes": " ".join(strikes), "code": code, "equal": not unequal,
            "different": " ".join(unequal), "left_over": len(left_over(folder)),
        }  # fmt: skip


def main() -> None:
    """Make the attempts that the table does not have yet."""

    def prepare(left, inputs, scratch, _):
        references = {command: unkilled(command, inputs, scratch) for command in sorted({c for c, _ in left})}
        return lambda command, number: attempt(command, number, inputs, references[command])

    make_attempts(__doc__, COLUMNS, 30, prepare)


if __name__ == "__main__":
    main()
