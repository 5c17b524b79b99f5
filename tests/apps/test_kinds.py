"""Settings of the wrong kind are told by their key, before any work."""

import pytest
from commands import run_command


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "learning_rate=abc", "learning_rate: expected a number, found 'abc'"),
        ("train", "data.batch_size=true", "data.batch_size: expected a number, found True"),
        ("train", "steering.callback.coefficient=strong", "steering.callback.coefficient: expected a number"),
        ("train", "compare_with_unsteered=7", "compare_with_unsteered: expected true or false, found 7"),
        ("train", "vectors=evil.safetensors", "vectors: expected a list, in square brackets, found 'evil.safetensors'"),
        ("train", "lora.r=-1", "lora.r: expected at least 1, a whole number, found -1"),
        ("train", "trainer.devices=many", "trainer: "),
        ("screen", "screening.checked=few", "screening.checked: expected a number, found 'few'"),
        ("evaluate", "capability=yes-please", "capability: expected true or false, found 'yes-please'"),
        ("extract", "extraction.questions=[4]", "extraction.questions"),
    ],
)
def test_the_key_what_was_expected_and_what_was_given_are_named(command, override, message, tiny, tmp_path):
    settings, environment = tiny
    needed = settings if command == "train" else [*settings[:2], "trait=evil"]
    given = [setting for setting in needed if setting.partition("=")[0] != override.partition("=")[0]]
    done = run_command(command, tmp_path, *given, override, environment=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "override", ["steering.callback.coefficient={evil:0.2}", "trainer.devices=auto", "name=7", "model.id=tiny"]
)
def test_other_kinds_that_a_setting_takes_are_accepted(override, tiny, tmp_path):
    settings, environment = tiny
    given = [setting for setting in settings if setting.partition("=")[0] != override.partition("=")[0]]
    done = run_command("train", tmp_path, *given, override, "objective=none-such", environment=environment)
    assert "objective: unknown 'none-such'" in done.stderr.splitlines()[-1], done.stderr
