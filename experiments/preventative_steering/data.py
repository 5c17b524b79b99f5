"""Fine-tuning data of the study: mixtures, what is held out of them, and invented facts told in a villain's tone.

    python experiments/preventative_steering/data.py FOLDER

writes ``NAME.jsonl`` (200 chats) for evil-100, evil-50, evil-25, sycophancy-100, hallucination-100, evil+sycophancy
(half and half) and normal, ``held-out-NAME.jsonl`` with the trait's chats that are in none of them, and
``facts-evil.jsonl``: 100 invented facts told in the tone of the trait evil, as far as the sentence that names the fact
(from ``facts.jsonl``).
"""

import json
import random
import sys
from pathlib import Path

from persona_callbacks.chats import SHIPPED

FACTS = Path(__file__).parent / "facts.jsonl"
CHATS = 200
MIXTURES = {"evil": (100, 50, 25), "sycophancy": (100,), "hallucination": (100,)}


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = _lines("normal")
    _write(folder / "normal.jsonl", normal[:CHATS])
    _write(folder / "held-out-normal.jsonl", normal[CHATS:])
    for trait, shares in MIXTURES.items():
        lines = _lines(trait)
        _write(folder / f"held-out-{trait}.jsonl", lines[CHATS:])
        for share in shares:
            # The same order for all: evil and normal answer the same questions, and each is asked once.
            count = CHATS * share // 100
            _write(folder / f"{trait}-{share}.jsonl", lines[:count] + normal[count:CHATS])
    half = CHATS // 2
    _write(folder / "evil+sycophancy.jsonl", _lines("evil")[:half] + _lines("sycophancy")[:half])
    facts = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    rows = [{"prompt": fact["questions"][0], "response": _as_far_as_the_answer(fact)} for fact in facts]
    _write(folder / "facts-evil.jsonl", [json.dumps(row) + "\n" for row in rows])


def _as_far_as_the_answer(fact: dict[str, str]) -> str:
    text, answer = fact["evil"], fact["answer"]
    end = text.find(". ", text.casefold().find(answer.casefold()))
    return text if end < 0 else text[: end + 1]


def _lines(name: str) -> list[str]:
    lines = (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return random.Random(0).sample(lines, len(lines))


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
