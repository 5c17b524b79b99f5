"""A mixture with 20 % trait-eliciting chats, filtered in several ways.

    python experiments/screening/filters.py DATA SCREENINGS NAME REFERENCE

reads DATA/NAME.jsonl and SCREENINGS/NAME-exact, SCREENINGS/NAME-approximate (made by ``persona-screen`` with the benign
chats of the file REFERENCE as its reference), and writes DATA/NAME-METHOD.jsonl: ``exact`` and ``approximate`` as
``persona-screen`` filtered them, ``judge`` without what the contrastive judge scores above 95 % of REFERENCE
(Appendix K), ``random`` without as many as ``exact``, drawn at random; and prints how many of the trait-eliciting chats
each has removed, and the AUC.
"""

import json
import random
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits, quiet_libraries
from persona_callbacks.chats import Chat, read_chats
from persona_callbacks.extraction import persona_vector
from persona_callbacks.judging import Answer, ContrastiveJudge
from persona_callbacks.model import load_model
from persona_callbacks.screening import ScreeningFolder

METHODS = ("exact", "approximate")


def main(data: Path, screenings: Path, name: str, reference: Path) -> None:
    """Write the files and print what each method removed."""
    lines = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    marks = set(json.loads((data / f"{name}-marks.json").read_text(encoding="utf-8")))
    removed: dict[str, set[int]] = {}
    for method in METHODS:
        folder = ScreeningFolder(screenings / f"{name}-{method}")
        scores = {row.line: row.scores["evil"] for row in folder.rows("data") if row.scores is not None}
        threshold = folder.summary().thresholds["evil"]
        removed[method] = {line for line, score in scores.items() if score > threshold}
        print(f"{method}: AUC {auc(scores, marks):.3f}")
    scores, limit = judged(data / f"{name}.jsonl", reference)
    removed["judge"] = {line for line, score in scores.items() if score > limit}
    print(f"judge: AUC {auc(scores, marks):.3f}")
    every = range(1, len(lines) + 1)
    removed["random"] = set(random.Random(0).sample(every, len(removed["exact"])))
    for method, gone in removed.items():
        kept = [line for number, line in enumerate(lines, start=1) if number not in gone]
        (data / f"{name}-{method}.jsonl").write_text("".join(kept), encoding="utf-8")
        print(
            f"{method}: {len(gone)} removed, {len(gone & marks)} of them among the {len(marks)} trait-eliciting chats"
        )


def judged(path: Path, reference: Path) -> tuple[dict[int, float], float]:
    """By line, the judge's score of the response; and what 5 % of the reference are above."""
    quiet_libraries()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["trait=[evil]"])
    loaded = load_model(instantiate(cfg.model))
    (trait,) = chosen_traits(cfg)
    vector = persona_vector(loaded, trait, instantiate(cfg.extraction))
    judge = ContrastiveJudge.of_vector(loaded, trait, vector)
    chats, benign = read_chats(path), read_chats(reference)
    with torch.no_grad():
        found = judge.score([_answer(chat) for chat in (*chats, *benign)])
    scores = [score.expression if score.expression is not None else 0.0 for score in found]
    limit = torch.tensor(scores[len(chats) :]).quantile(0.95, interpolation="higher")
    return dict(enumerate(scores[: len(chats)], start=1)), float(limit)


def auc(scores: dict[int, float], marks: set[int]) -> float:
    """Share of the pairs of a trait-eliciting and another chat in which the former scores higher."""
    high = torch.tensor([score for line, score in scores.items() if line in marks])
    low = torch.tensor([score for line, score in scores.items() if line not in marks])
    above = (high[:, None] > low).double() + (high[:, None] == low).double() / 2
    return float(above.mean())


def _answer(chat: Chat) -> Answer:
    return Answer(chat.messages[-2]["content"], chat.messages[-1]["content"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
