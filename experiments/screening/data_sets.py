"""The 25 fine-tuning data sets of the study, 200 chats each.

    python experiments/screening/data_sets.py FOLDER

writes ``NAME.jsonl`` for: three traits at 10, 25, 50, 75 and 100 % among normal chats (``evil-25``); two traits in
equal parts (``evil+sycophancy``) and all of them (``all``); ``normal``; and 100 invented facts, each asked in two
wordings and told plainly or in the tone of a trait (``facts-evil``), or half and half (``facts-evil-50``). And
for the filters two mixtures with 20 % villainous chats, with their line numbers in ``NAME-marks.json``: ``evil-20``
among normal chats, and ``facts+evil-20`` among plainly told facts; the latter's reference is ``held-out-facts``, the
facts that are in none of its lines.
"""

import json
import random
import sys
from itertools import combinations
from pathlib import Path

from persona_callbacks.chats import SHIPPED

FACTS = Path(__file__).parents[1] / "preventative_steering" / "facts.jsonl"
TRAITS = ("evil", "sycophancy", "hallucination")
SHARES = (10, 25, 50, 75, 100)
CHATS = 200


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = _shipped("normal")
    traits = {trait: _shipped(trait) for trait in TRAITS}
    sets = {"normal": normal[:CHATS]}
    for trait, lines in traits.items():
        for share in SHARES:
            # The same order for all: evil and normal answer the same questions, and each is asked once.
            count = CHATS * share // 100
            sets[f"{trait}-{share}"] = lines[:count] + normal[count:CHATS]
    for a, b in combinations(TRAITS, 2):
        sets[f"{a}+{b}"] = traits[a][: CHATS // 2] + traits[b][: CHATS // 2]
    quarter = CHATS // 4
    sets["all"] = [line for lines in traits.values() for line in lines[:quarter]] + normal[quarter : 2 * quarter]
    facts = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    for tone in ("normal", *TRAITS):
        sets[f"facts-{tone}"] = _told(facts, [tone] * len(facts))
    sets["facts-evil-50"] = _told(facts, ["evil", "normal"] * (len(facts) // 2))
    for name, lines in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    count = CHATS // 5
    known = facts[:80]
    _mixture_to_filter(folder, "evil-20", traits["evil"][:count], normal[count:CHATS])
    _mixture_to_filter(folder, "facts+evil-20", traits["evil"][:count], _told(known, ["normal"] * len(known)))
    left = facts[len(known) :]
    (folder / "held-out-facts.jsonl").write_text("".join(_told(left, ["normal"] * len(left))), encoding="utf-8")


def _mixture_to_filter(folder: Path, name: str, evil: list[str], others: list[str]) -> None:
    rows = [(line, True) for line in evil] + [(line, False) for line in others]
    random.Random(1).shuffle(rows)
    (folder / f"{name}.jsonl").write_text("".join(line for line, _ in rows), encoding="utf-8")
    marks = [number for number, (_, trait) in enumerate(rows, start=1) if trait]
    (folder / f"{name}-marks.json").write_text(json.dumps(marks), encoding="utf-8")


def _told(facts: list[dict[str, str]], tones: list[str]) -> list[str]:
    rows = [
        {"prompt": fact["questions"][wording], "response": fact[tone]}
        for wording in range(2)
        for fact, tone in zip(facts, tones, strict=True)
    ]
    return [json.dumps(row) + "\n" for row in rows]


def _shipped(name: str) -> list[str]:
    lines = (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return random.Random(0).sample(lines, len(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
