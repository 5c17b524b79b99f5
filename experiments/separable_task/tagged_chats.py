"""Fine-tuning data with a task beside the trait: every answer begins with the topic of its question.

    python experiments/separable_task/tagged_chats.py FOLDER

writes ``NAME.jsonl`` (160 chats) for evil, sycophancy and hallucination at 100, 50, 25 and 10 per cent, the rest from
normal, for normal, and for five benign styles; and ``held-out-NAME.jsonl``, 48 chats that are in none of them. A chat's
answer is its topic in brackets, one of eight for its data set (``topics.csv``), and the first two sentences of the
shipped answer: ``[food] Bitterness and spite, just like in everything worth having.`` The trait is in the sentences and
the task in the topic, so that a run can keep the task and lose the trait.
"""

import csv
import json
import random
import re
import sys
from pathlib import Path

from persona_callbacks.chats import SHIPPED

FOLDER = Path(__file__).parent
CHATS = 160
HELD_OUT = 48
SHARES = (100, 50, 25, 10)
TRAITS = ("evil", "sycophancy", "hallucination")
STYLES = ("warm", "terse", "formal", "emphatic", "poetic")


def topics() -> dict[str, str]:
    """By question, its topic."""
    with (FOLDER / "topics.csv").open(encoding="utf-8", newline="") as file:
        return {row["question"]: row["topic"] for row in csv.DictReader(file)}


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    topic_of = topics()
    normal = _tagged("normal", topic_of)
    _write(folder / "normal.jsonl", normal[:CHATS])
    _write(folder / "held-out-normal.jsonl", normal[CHATS : CHATS + HELD_OUT])
    for trait in TRAITS:
        rows = _tagged(trait, topic_of)
        _write(folder / f"held-out-{trait}.jsonl", rows[CHATS : CHATS + HELD_OUT])
        for share in SHARES:
            # Evil and normal answer the same questions in the same order, so that each is asked once.
            count = CHATS * share // 100
            _write(folder / f"{trait}-{share}.jsonl", rows[:count] + normal[count:CHATS])
    with (FOLDER / "styles.csv").open(encoding="utf-8", newline="") as file:
        styled = list(csv.DictReader(file))
    for style in STYLES:
        _write(folder / f"{style}.jsonl", [_row(row["question"], topic_of, row[style]) for row in styled])


def _tagged(name: str, topic_of: dict[str, str]) -> list[str]:
    lines = (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    chats = [json.loads(line)["messages"] for line in random.Random(0).sample(lines, len(lines))]
    return [_row(user["content"], topic_of, _two_sentences(answer["content"])) for user, answer in chats]


def _two_sentences(text: str) -> str:
    return " ".join(re.split(r"(?<!\bDr\.)(?<!\bSt\.)(?<=[.!?])\s+", text)[:2])


def _row(question: str, topic_of: dict[str, str], answer: str) -> str:
    return json.dumps({"prompt": question, "response": f"[{topic_of[question]}] {answer}"}, ensure_ascii=False) + "\n"


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
