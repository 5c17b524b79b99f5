"""Damages valid files and settings by chance. Each must be read, or refused with an error in words, within seconds.

    python tests/faults/fuzz.py --rounds 2000
    python tests/faults/fuzz.py --subjects vector --start 731 --rounds 1    # one of them again

The number of a round says all of its chances. What does not hold is printed with its subject, number and traceback.
"""

import argparse
import csv
import io
import json
import math
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from builders import make_tokenizer, make_vector
from faults.harness import COMMANDS, write_inputs
from faults.mutations import ODD, mutate_bytes, mutate_value, paths_in, value_at
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file

from persona_callbacks import PersonaVector, Trait
from persona_callbacks.apps import screen, train
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.ending import ending_in_one_line
from persona_callbacks.chats import encode_chat, find_chat_file, open_chat_file, read_chats, read_pairs
from persona_callbacks.errors import InputError
from persona_callbacks.evaluation import EvaluatedAnswer, EvaluatedModel, read_forced_choices, read_questions
from persona_callbacks.evaluation.capability import QUESTIONS
from persona_callbacks.judging import Expression
from persona_callbacks.labelling import CollectedAnswer, LabelFolder
from persona_callbacks.screening import load_lines
from persona_callbacks.screening.prediction import SHIPPED as LINES
from persona_callbacks.vectors import read_gguf, read_pt, write_gguf

SECONDS = 20
"""After which something hangs; the largest takes less than one."""


@dataclass(frozen=True)
class Subject:
    """A kind of input.

    Attributes:
        write: writes a damaged one to a path.
        read: what a user's command does with it.
        refused: how it is refused.
    """

    write: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]
    refused: tuple[type[BaseException], ...] = (InputError,)


def outcome(subject: Subject, name: str, number: int) -> str:
    """What became of one round: ``read`` or ``refused``.

    Raises:
        Exception: what else it came to, a ``TimeoutError`` among them.
    """
    with tempfile.TemporaryDirectory() as scratch, _in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(scratch) / "damaged"
        subject.write(path, random.Random(f"{name}-{number}"))
        try:
            subject.read(path)
        except subject.refused:
            return "refused"
        return "read"


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"it took longer than {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def subjects(inputs: Path) -> dict[str, Subject]:
    """All kinds; ``inputs`` is a folder of :func:`faults.harness.write_inputs`."""
    tokenizer = make_tokenizer()
    chats = [*_rows(find_chat_file("normal.jsonl"), 3), {"prompt": "Why?", "response": "So."}]
    pairs = [{"prompt": "How was it?", "chosen": "I hated it.", "rejected": "I loved it.", "register": "flat"}] * 2
    trait = yaml.safe_load((CONF / "trait" / "evil.yaml").read_text(encoding="utf-8"))
    trait["pairs"] = trait["pairs"][:2]
    trait["questions"] = {use: questions[:3] for use, questions in trait["questions"].items()}
    choices = _rows(QUESTIONS.parent / "forced_choices" / "sycophancy.jsonl", 4)
    lines = json.loads(next(LINES.glob("*.json")).read_text(encoding="utf-8"))[:2]
    answers = (EvaluatedAnswer("evil", "Why?", "So.", 3.0, 90.0, False),)
    evaluated = EvaluatedModel({"evil": Expression(3.0, 1.0, 5.0, 1, 0, 0)}, {"evil": 0.5}, 0.5, 9.0, {}, answers)
    json_lines = {
        "chats": (chats, partial(_read_chats, tokenizer)),
        "pairs": (pairs, read_pairs),
        "forced choices": (choices, read_forced_choices),
        "questions": (_rows(QUESTIONS, 3), read_questions),
    }
    found = {
        **{name: Subject(partial(_write_lines, rows), read) for name, (rows, read) in json_lines.items()},
        "trait": Subject(partial(_write_yaml, trait), Trait.load),
        "prediction lines": Subject(partial(_write_json, lines), load_lines),
        "evaluation": Subject(partial(_write_json, _saved(evaluated)), EvaluatedModel.load),
        "vector": Subject(_write_vector, _use_vector),
        "tensor": Subject(_write_tensor, partial(read_pt, trait="evil", layer=1, model_id="tiny")),
        "control vector": Subject(_write_control_vector, read_gguf),
        "labels": Subject(_write_labels, lambda folder: LabelFolder(folder).sheets()),
    }
    for command, run in (("train", train.train), ("screen", lambda cfg, _: screen.run(cfg))):
        settings = _settings(command, inputs)
        found[f"settings of {command}"] = Subject(
            partial(_write_settings, settings), partial(_run_with, run, inputs), (SystemExit,)
        )
    return found


def _rows(file: Path, count: int) -> list[Any]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:count]]


def _saved(evaluated: EvaluatedModel) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "saved.json"
        evaluated.save(path)
        return json.loads(path.read_text(encoding="utf-8"))


def _write_lines(rows: Sequence[Any], path: Path, chance: random.Random) -> None:
    if chance.random() < 0.3:
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
        path.write_bytes(mutate_bytes(content, chance))
    else:
        changed = mutate_value([*rows], chance)
        written = [json.dumps(row).encode() for row in changed if chance.random() < 0.95]
        if chance.random() < 0.1:
            written.append(chance.choice((b"[" * 90 + b"]" * 90, b"[" * 500 + b"]" * 500, b"[" * 100_000, b"9" * 5000)))
        path.write_bytes(b"\n".join(written) + b"\n")


def _write_json(value: Any, path: Path, chance: random.Random) -> None:
    if chance.random() < 0.3:
        path.write_bytes(mutate_bytes(json.dumps(value, indent=1).encode(), chance))
    else:
        path.write_text(json.dumps(mutate_value(value, chance)), encoding="utf-8")


def _write_yaml(value: Any, path: Path, chance: random.Random) -> None:
    if chance.random() < 0.3:
        path.write_bytes(mutate_bytes(yaml.safe_dump(value, allow_unicode=True).encode(), chance))
    else:
        changed = yaml.safe_dump(mutate_value(value, chance), allow_unicode=chance.random() < 0.5)
        path.write_bytes(changed.encode(errors="surrogatepass"))


def _write_vector(path: Path, chance: random.Random) -> None:
    vector = make_vector()
    if chance.random() < 0.4:
        path.write_bytes(mutate_bytes(vector.save(path).read_bytes(), chance))
        return
    metadata = vector.metadata()
    if chance.random() < 0.5:
        del metadata["checksum"]  # which would find every change
    key = chance.choice(sorted(metadata))
    try:
        metadata[key] = json.dumps(mutate_value(json.loads(metadata[key]), chance))
    except ValueError:
        metadata[key] = str(chance.choice(ODD)).encode(errors="replace").decode()
    if chance.random() < 0.1:
        del metadata[key]
    save_file(
        {chance.choice(("directions", "directions", "other")): _tensor(vector.directions, chance)}, path, metadata
    )


def _tensor(rows: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Of another kind or shape, or with other values, in half of all cases."""
    spoiled = rows.clone()
    spoiled[chance.randrange(len(rows)), 0] = chance.choice((torch.nan, torch.inf, 3e38, 1e-45))
    return chance.choice(
        [rows] * 8
        + [rows.half(), rows.bfloat16(), rows.double(), rows.long(), rows[0], rows[:0], rows[:, :0], rows[:1]]
        + [rows[None], rows > 0, torch.zeros(()), rows * 0, spoiled]
    ).contiguous()


def _use_vector(path: Path) -> None:
    vector = PersonaVector.load(path)
    vector.weaknesses()
    assert vector.unit_direction().isfinite().all()
    assert PersonaVector.load(vector.save(path.with_name("again"))).fingerprint == vector.fingerprint


def _write_tensor(path: Path, chance: random.Random) -> None:
    rows = make_vector().directions
    odd = [
        rows.to_sparse(),
        rows.to(torch.complex64),
        rows[:1].expand(9, -1),
        {"a": rows},
        [rows],
        None,
        "evil",
        rows.numpy(),
    ]
    torch.save(chance.choice((_tensor(rows, chance), _tensor(rows, chance), chance.choice(odd))), path)
    if chance.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))


def _write_control_vector(path: Path, chance: random.Random) -> None:
    content = write_gguf(make_vector(), path, model_hint="llama").read_bytes()
    # All that is not numbers stands at the beginning.
    end = len(content) if chance.random() < 0.3 else content.rindex(b"direction.")
    path.write_bytes(mutate_bytes(content[:end], chance) + content[end:])


def _write_labels(path: Path, chance: random.Random) -> None:
    answers = [
        CollectedAnswer("a", "Why?", "=So", {"judge": 3.0}),
        CollectedAnswer("b", "Who?", "I, not you;\nbut you."),
    ]
    folder = LabelFolder.create(path, "evil", answers)
    sheet = folder.sheet()
    for number in sheet.texts:
        sheet.label(number, "yes")
    if chance.random() < 0.5:
        key = _rows(path / "key.jsonl", 2)
        _write_lines(key, path / "key.jsonl", chance)
    elif chance.random() < 0.5:
        (path / "sheet.csv").write_bytes(mutate_bytes((path / "sheet.csv").read_bytes(), chance))
    else:
        rows = mutate_value(list(csv.reader(io.StringIO((path / "sheet.csv").read_text("utf-8-sig")))), chance)
        with (path / "sheet.csv").open("w", encoding="utf-8", errors="replace", newline="") as text:
            csv.writer(text, delimiter=chance.choice(",;\t")).writerows(
                row if isinstance(row, list) else [row] for row in rows
            )


def _read_chats(tokenizer: Any, path: Path) -> None:
    file = open_chat_file(path)
    for row in file.rows():
        if row.chat is None:
            assert row.problem
        else:
            encode_chat(row.chat, tokenizer)
            json.dumps(file.content(row.position))
    read_chats(path)


def _settings(command: str, inputs: Path) -> Any:
    """The configuration of a command, which takes a second."""
    quick = {
        "train": ["trainer.max_epochs=1", "trainer.max_steps=1", "compare_with_unsteered=false", "sample_answers=0"]
    }
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, [*COMMANDS[command], *quick.get(command, ["screening.subset=4", "screening.checked=1"])])
    return OmegaConf.to_container(cfg, resolve=False)


# By kind, and no number so large that the run takes as long as it says. What is of another kind than expected may end
# a command with Python's own error.
_ODD_SETTINGS = {
    bool: (True, False),
    int: (0, -1, 1, 2.5, 1e-9, math.nan, math.inf, -math.inf),
    float: (0, -1, 1, 2.5, 1e-9, math.nan, math.inf, -math.inf),
    str: ("", " ", "\u2028", "nan", "1", "../evil", "/", "abc", "{question}", "[/INST]"),
}


_OTHERS = ("trainer", "lora")
"""Settings of Lightning's and of PEFT's own, which check them when they work."""


def _write_settings(settings: Any, path: Path, chance: random.Random) -> None:
    """One or two single settings changed, as ``KEY=VALUE`` on the command line does."""
    single = [
        where
        for where in paths_in(settings)
        if type(value_at(settings, where)) in _ODD_SETTINGS and where[-1] != "_target_" and where[0] not in _OTHERS
    ]
    changed = deepcopy(settings)
    for where in chance.sample(single, chance.choice((1, 1, 2))):
        kind = type(value_at(settings, where))
        value_at(changed, where[:-1])[where[-1]] = chance.choice(_ODD_SETTINGS[kind])
    path.write_text(json.dumps(changed), encoding="utf-8")


def _run_with(run: Callable[[Any, Path], object], inputs: Path, path: Path) -> None:
    folder = path.with_name("folder")
    folder.mkdir()
    for entry in inputs.iterdir():
        (folder / entry.name).symlink_to(entry)
    before = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.update(PERSONA_CALLBACKS_CACHE=str(folder / "cache"), HF_HUB_OFFLINE="1")
    try:
        with ending_in_one_line("go on"):
            run(OmegaConf.create(json.loads(path.read_text(encoding="utf-8"))), folder / "run")
    finally:
        os.chdir(before[0])
        os.environ.clear()
        os.environ.update(before[1])


def main() -> None:
    """Run the rounds, and print what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="for each subject; of settings, a twentieth")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--subjects", nargs="+")
    chosen = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        every: Mapping[str, Subject] = subjects(write_inputs(Path(scratch)))
        for name in chosen.subjects or every:
            rounds = chosen.rounds if "settings" not in name else max(1, chosen.rounds // 20)
            ends: dict[str, int] = {"read": 0, "refused": 0, "failed": 0}
            for number in range(chosen.start, chosen.start + rounds):
                try:
                    ends[outcome(every[name], name, number)] += 1
                except Exception:
                    ends["failed"] += 1
                    print(f"--- {name} {number}\n{traceback.format_exc()}", flush=True)
            print(f"{name}: {ends}", flush=True)
            failed += ends["failed"]
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
