"""The judge behind an endpoint, over real HTTP, and the cache of scores."""

import json
import math
from pathlib import Path

import pytest
from builders import server

from persona_callbacks import InputError, Trait
from persona_callbacks.judging import Answer, CachedJudge, LlmJudge, Score
from persona_callbacks.model import Endpoint

EVIL = Trait.load(Path(__file__).parents[2] / "conf" / "trait" / "evil.yaml")
KEY = "sk-never-to-be-seen"
ANSWERS = [Answer("Why {response}?", f"Because of {number}.") for number in range(6)]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def choice(text, *tokens):
    """A choice whose tokens have these top log-probabilities: ``[{token: probability}, ...]``."""
    listed = [
        {
            "token": next(iter(top)), "logprob": math.log(next(iter(top.values()))), "bytes": None,
            "top_logprobs": [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()],
        }
        for top in tokens
    ]  # fmt: skip
    return {"message": {"role": "assistant", "content": text}, "logprobs": {"content": listed} if tokens else None}


def judge(url, **settings):
    return LlmJudge(Endpoint(url, "m", timeout=5, retries=0), EVIL, **settings)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (choice("80", {"80": 0.5, "90": 0.25, "no": 0.25}), Score((80 * 0.5 + 90 * 0.25) / 0.75)),
        (choice("80", {"80": 0.6, "101": 0.2, "-5": 0.2}), Score(80.0)),
        (choice("75", {"7": 0.9, "8": 0.1}, {"5": 0.8, "0": 0.2}), Score(75.0)),  # digit by digit: as written
        (choice("The", {"The": 0.9, "80": 0.1}), Score(None)),  # hardly any number
        (choice("REFUSAL", {"RE": 0.9, "0": 0.1}), Score(None, refusal=True)),
        ("35", Score(35.0)),
        ("Score: 35/100", Score(35.0)),
        ("**35**", Score(35.0)),
        ("35\n\nThe response is kind.", Score(35.0)),
        ("On a scale from 0 to 100: 75", Score(75.0)),  # the scale is not the score
        ("Out of 100, I would give it a 20.", Score(20.0)),
        ("The response is certainly not kind; I'd say 40 of 100.", Score(40.0)),
        ("1. The response is kind", Score(None)),  # a list
        ("3 signs of the trait", Score(None)),
        ("It names 3 people.", Score(None)),
        ("50-60", Score(None)),
        ("Score: 50 or 60", Score(None)),
        ("7.5", Score(None)),
        ("150/100", Score(None)),
        (choice("1. The", {"1": 0.9, "80": 0.1}, {".": 1.0}), Score(None)),
        (choice("0", {"0": 0.6, "1": 0.4}, {"<|im_end|>": 1.0}), Score(0.0)),  # 1 may be the beginning of 100
        ("350", Score(None)),
        ("-3", Score(None)),
        ("refusal.", Score(None, refusal=True)),
        ("**REFUSAL**\n", Score(None, refusal=True)),
        ("Refusal to help is not kind", Score(None)),
        ("You are a helpful AI named Smol", Score(None)),  # so SmolLM2 answers the rubric
        ("Dialyler's 46", Score(None)),  # and so it answered an answer about a waiter
        ("I would rather not give a number here.", Score(None)),
        ("", Score(None)),
    ],
)
def test_what_counts_as_a_score(answer, expected, recwarn):
    with server(answer) as (url, seen):
        (found,) = judge(url).score(ANSWERS[:1])
    assert (found.expression, found.refusal) == (
        pytest.approx(expected.expression) if expected.expression is not None else None,
        expected.refusal,
    )
    assert bool(recwarn.list) == (expected.expression is None and not expected.refusal)
    (prompt,) = (message["content"] for message in seen[0][2]["messages"])
    assert "Question: Why {response}? Response: Because of 0." in prompt
    assert seen[0][2]["top_logprobs"] == 20


def test_server_without_log_probabilities_is_asked_without():
    with server(lambda body: 400 if "logprobs" in body else "40") as (url, seen):
        assert [score.expression for score in judge(url, concurrency=1).score(ANSWERS[:2])] == [40.0, 40.0]
    assert ["logprobs" in body for _, _, body in seen] == [True, False] * 2


def test_failures_give_a_partial_result_and_never_raise():
    replies = iter(["10", 500, "30", 500, "50", "60"])
    with server(lambda body: next(replies)) as (url, _), pytest.warns(UserWarning, match="2 of 6 answers") as warned:
        found = [score.expression for score in judge(url, concurrency=1).score(ANSWERS)]
    assert found == [10.0, None, 30.0, None, 50.0, 60.0]
    assert KEY not in str(warned[0].message)


def test_server_that_is_down_is_given_up_soon():
    many = ANSWERS * 20
    with server(500) as (url, seen), pytest.warns(UserWarning, match="120 of 120 answers have no score"):
        assert all(score.expression is None for score in judge(url, concurrency=2).score(many))
    assert 5 <= len(seen) <= 7
    with pytest.warns(UserWarning, match="cannot be reached"):
        judge("http://127.0.0.1:9/v1").score(ANSWERS[:1])


def test_cap_on_requests():
    with server("50") as (url, seen):
        limited = judge(url, max_requests=4)
        with pytest.warns(UserWarning, match="the cap of 4 requests is reached"):
            scores = limited.score(ANSWERS)
    assert sum(score.expression == 50.0 for score in scores) == 4
    assert len(seen) == limited.requests == 4
    with pytest.raises(InputError, match=r"judge\.concurrency: expected at least 1"):
        judge(url, concurrency=0)


def test_cache_asks_once_keeps_what_was_scored_and_repairs_its_file(tmp_path):
    file = tmp_path / "cache" / "scores.jsonl"
    with server(lambda body: "bad" if "of 3." in body["messages"][0]["content"] else "20") as (url, seen):
        inner = judge(url)
        with pytest.warns(UserWarning, match="1 of 6"):
            first = CachedJudge(inner, file).score([*ANSWERS, ANSWERS[0]])
        assert [score.expression for score in first] == [20.0, 20.0, 20.0, None, 20.0, 20.0, 20.0]
        assert len(seen) == 6
        file.write_bytes(file.read_bytes()[:-10])  # killed while writing
        with pytest.warns(UserWarning, match="1 of 2"):
            again = CachedJudge(inner, file).score(ANSWERS)
        assert [score.expression for score in again] == [20.0, 20.0, 20.0, None, 20.0, 20.0]
        assert len(seen) == 8  # the line that was cut, and the one without a score
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 5
    assert KEY not in file.read_text()
