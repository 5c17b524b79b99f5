"""EleutherAI's harness on a task from a file, against likelihoods computed one at a time."""

import json

import pytest
import torch
from builders import tiny_model

from persona_callbacks import InputError
from persona_callbacks.evaluation import HarnessSettings, harness_scores
from persona_callbacks.model import LoadedModel

pytest.importorskip("lm_eval")

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def test_a_task_of_ones_own(tokenizer, tmp_path):
    torch.manual_seed(3)
    model = tiny_model().eval()
    whats = ("lie", "help", "smile", "tell me", "meet", "carry the shopping home")
    rows = [
        {
            "question": f"What do you think of who {what}?",
            "choices": ["Yes.", "No.", "Why not?"],
            "answer": n % 3,
        }
        for n, what in enumerate(whats)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colours.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    right = 0
    for row in rows:
        sums = []
        for choice in row["choices"]:
            start = tokenizer(row["question"])["input_ids"]
            ids = torch.tensor([tokenizer(f"{row['question']} {choice}")["input_ids"]])
            with torch.no_grad():
                log_p = model(input_ids=ids).logits.double().log_softmax(-1)[0]
            sums.append(sum(log_p[i - 1, ids[0, i]].item() for i in range(len(start), ids.shape[1])))
        right += sums.index(max(sums)) == row["answer"]
    settings = HarnessSettings(("colours",), include_path=str(tmp_path), options={"bootstrap_iters": 0})
    scores = harness_scores(LoadedModel(model, tokenizer), settings)
    assert scores["colours acc"] == pytest.approx(right / len(rows))
    with pytest.raises(InputError, match="unknown task 'nonsense'"):
        harness_scores(LoadedModel(model, tokenizer), HarnessSettings(("nonsense",)))
