"""The bounded part of fuzz.py."""

import pytest
from faults.fuzz import outcome, subjects
from faults.harness import write_inputs

ROUNDS = 60


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return subjects(write_inputs(tmp_path_factory.mktemp("inputs")))


@pytest.mark.parametrize(
    "name",
    [
        "chats", "pairs", "forced choices", "questions", "trait", "prediction lines", "evaluation", "vector", "tensor",
        "control vector", "labels",
    ],
)  # fmt: skip
def test_a_damaged_file_is_read_or_refused_in_words(name, every):
    ends = [outcome(every[name], name, number) for number in range(ROUNDS)]
    assert set(ends) <= {"read", "refused"}
    assert ends.count("refused") > ROUNDS / 4, "the damage is real"


@pytest.mark.parametrize("command", ["train", "screen"])
def test_damaged_settings_are_used_or_refused_in_words(command, every):
    name = f"settings of {command}"
    ends = [outcome(every[name], name, number) for number in range(8)]
    assert "refused" in ends
