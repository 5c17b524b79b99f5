"""No command writes a password or a key to any file: of the environment, of an address, or of the configuration."""

import base64
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

import pytest
from builders import server
from commands import run_command
from faults.harness import COMMANDS, EXTRACTION, MODEL, VECTOR, make_folder, write_inputs

KEYS = {
    name: hashlib.sha256(name.encode()).hexdigest()[:40]  # W&B's own have 40 characters
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_KEY")
}
GIVEN = hashlib.sha256(b"given").hexdigest()[:40]
ADDRESS = f"https://user:{GIVEN}@localhost:1/v1"
LLM = ("evaluation=llm", "evaluation.judge.endpoint.model=m", "evaluation.judge.endpoint.retries=0",
       "evaluation.callback.questions=2", "evaluation.callback.sampling.max_new_tokens=4")  # fmt: skip
BASE_URL = "evaluation.judge.endpoint.base_url"
_OTHER = (*VECTOR, "evaluation=none", "logger=csv", "compare_with_unsteered=true", "trainer.max_epochs=2")
TRAIN = (*EXTRACTION, *LLM, *(override for override in COMMANDS["train"] if override not in _OTHER))
TRAITS = json.dumps([{"trait": f"You are sad clerk {n}.", "opposite": f"You are glad clerk {n}."} for n in range(7)])
QUESTIONS = json.dumps([f"What should I cook on day {n}?" for n in range(70)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the commands need, and a home; every file that they write is below it."""
    folder = make_folder(write_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("place") / "run")
    for name in ("home", "tmp", "conf/evaluation"):
        (folder / name).mkdir(parents=True)
    return folder


def run(folder, command, *overrides, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG", "HF_"))}
    environment = {
        **kept, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "WANDB_MODE": "offline", "COLUMNS": "200",
        "PERSONA_CALLBACKS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **variables,
    }  # fmt: skip
    return run_command(command, folder, *overrides, environment=environment)


def found(folder, secret):
    """The files below a folder that have a secret in their name or content, as it is, in base64 or in hexadecimal."""
    plain = secret.encode()
    encoded = [base64.b64encode(b"x" * offset + plain)[4 : 4 * ((offset + len(plain)) // 3)] for offset in range(3)]
    forms = [plain, plain.hex().encode(), *encoded]

    def holds(content):
        return any(form in content or form in content.replace(b"\n", b"") for form in forms)

    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [path for path in folder.rglob("*") if holds(path.name.encode())] + [
        path for path in files if holds(path.read_bytes()) or any(map(holds, members(path)))
    ]


def members(path):
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from map(archive.read, archive.namelist())


def test_the_search_finds_what_it_looks_for(tmp_path):
    assert not found(Path(__file__).parent, GIVEN)
    token = base64.b64encode(f"user:{GIVEN}".encode())
    for name, content in (("plain", GIVEN.encode()), ("basic", b"Basic " + token), (f"a {GIVEN}", b"")):
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", GIVEN)
    assert {path.name for path in found(tmp_path, GIVEN)} == {"plain", "basic", f"a {GIVEN}", "archive"}


def answer(body):
    """A stand-in for a model that judges, and that writes traits."""
    asked = body["messages"][0]["content"]
    if "clerk" in asked or "sees the worst" in asked:
        return TRAITS if "system prompts" in asked else QUESTIONS
    return "50"


def test_keys_of_the_environment_are_in_no_file_of_any_command(place):
    with server(answer) as (url, seen), server(401) as (closed, refused):
        judged = f"{BASE_URL}={url}"
        referring = ("+mine.password=${oc.env:MY_KEY}", "+mine.again='as ${mine.password}'")
        runs = {
            "extract": COMMANDS["extract"],
            "train": (*TRAIN, "logger=wandb", judged, *referring),
            "screen": (*(one.replace("logger=csv", "logger=wandb") for one in COMMANDS["screen"]), *referring),
            "evaluate": (*COMMANDS["evaluate"], *LLM, f"{BASE_URL}={closed}", "forced_choice=false"),
            "generate": (*MODEL, *VECTOR, "accelerator=cpu", "prompt=Why?", "steer={evil:1}",
                         "sampling.max_new_tokens=4"),
            "define": ("name=gloomy", "description='A clerk who sees the worst.'", f"endpoint.base_url={url}",
                       "endpoint.model=m"),
            "label": ("runs=[outputs/train/seed-0]",),
            "report": ("runs=outputs",),
        }  # fmt: skip
        for command, overrides in runs.items():
            done = run(place, command, *overrides, **KEYS)
            assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
            assert not [name for name, key in KEYS.items() if key in done.stdout + done.stderr]
    assert {header for _, header, _ in seen + refused} == {f"Bearer {KEYS['OPENAI_API_KEY']}"}, "the key is used"
    assert refused
    assert list(place.rglob("offline-run-*/run-*.wandb"))
    for name, key in KEYS.items():
        assert not found(place, key), name


REFUSED = [
    ("train", (*TRAIN, f"{BASE_URL}={ADDRESS}"), f"{BASE_URL}: expected"),
    ("train", (*TRAIN, f"{BASE_URL}='http://localhost:1/v1?key={GIVEN}'"), f"{BASE_URL}: expected"),
    ("train", (*TRAIN, f"{BASE_URL}={ADDRESS}", f"{BASE_URL}=http://localhost:1/v1"), f"{BASE_URL}: expected"),
    ("train", ("-m", *TRAIN, f"{BASE_URL}={ADDRESS},http://localhost:1/v1"), f"{BASE_URL}: expected"),
    ("train", ("-m", *MODEL, *EXTRACTION, "logger=csv", "evaluation=mine,contrastive"), f"{BASE_URL}: expected"),
    ("train", ("-m", *TRAIN, "seed=0,1", "+mine.password=${oc.env:JUDGE}"), "no environment variable in an override"),
    ("train", (*TRAIN, f"{BASE_URL}=${{oc.env:JUDGE}}"), r"^error: endpoint\.base_url: expected"),
    ("train", (*TRAIN, f"evaluation.judge.endpoint.api_key_variable=sk-{GIVEN}"), "expected the name of the"),
    ("train", (*TRAIN, f"+evaluation.judge.endpoint.api_key={GIVEN}"), "expected no password and no key"),
    ("train", (*TRAIN, f"+logger.wandb.settings.api_key={GIVEN}"), "expected no password and no key"),
    ("train", (*TRAIN, f"+hydra.job.env_set.WANDB_API_KEY={GIVEN}"), "expected no password and no key"),
    ("train", (*TRAIN, f"+logger.mine.tracking_uri={ADDRESS}"), r"refer to that: logger.mine.tracking_uri=\$\{oc.env"),
    ("define", (f"endpoint.base_url={ADDRESS}", "endpoint.model=m", "name=sad"), "endpoint.base_url: expected"),
    *((command, (f"+tracker.password={GIVEN}",), "tracker.password: expected no password")
      for command in ("extract", "screen", "evaluate", "generate", "label", "report")),
    *((command, ("-m", f"+tracker.uri={ADDRESS},b"), "tracker.uri: expected no password")
      for command in ("extract", "screen", "evaluate", "generate", "label", "report")),
]  # fmt: skip


def test_passwords_in_addresses_and_in_the_configuration_are_refused_and_in_no_file(place):
    mine = place / "conf" / "evaluation" / "mine.yaml"
    for command, overrides, message in REFUSED:
        content = f"defaults: [llm, _self_]\njudge: {{endpoint: {{base_url: '{ADDRESS}'}}}}\n"
        if any("mine" in override for override in overrides):
            mine.write_text(content)
        done = run(place, command, *overrides, JUDGE=ADDRESS, OPENAI_API_KEY="k")
        assert done.returncode == 1, (command, overrides, done.stderr[-2000:])
        assert re.search(message, done.stderr), (command, overrides, done.stderr[-2000:])
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert GIVEN not in done.stdout + done.stderr
        mine.unlink(missing_ok=True)
        assert not found(place, GIVEN), (command, overrides)
