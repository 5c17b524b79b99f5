"""Fine-tuning data of different strength: trait-eliciting chats that ship with the library, mixed with normal ones.

    python experiments/judging/mixtures.py FOLDER

writes ``normal.jsonl`` and, for three traits, ``TRAIT-25.jsonl``, ``TRAIT-50.jsonl`` and ``TRAIT-100.jsonl``, named by
the share of trait-eliciting chats in percent: 200 chats each.
"""

import random
import sys
from pathlib import Path

from persona_callbacks.chats import SHIPPED

TRAITS = ("evil", "sycophancy", "hallucination")
SHARES = (25, 50, 100)
CHATS = 200


def main(folder: Path) -> None:
    """Write the files; the larger share of a trait holds the chats of the smaller ones."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = _lines("normal")
    (folder / "normal.jsonl").write_text("".join(normal[:CHATS]), encoding="utf-8")
    for trait in TRAITS:
        lines = _lines(trait)
        for share in SHARES:
            count = CHATS * share // 100
            # The same order for all: evil and normal answer the same questions, and each is asked once.
            mixed = lines[:count] + normal[count:CHATS]
            (folder / f"{trait}-{share}.jsonl").write_text("".join(mixed), encoding="utf-8")


def _lines(name: str) -> list[str]:
    lines = (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return random.Random(0).sample(lines, len(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
