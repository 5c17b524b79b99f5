"""Commands in the README, the docs and the help can be pasted into bash and zsh."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "experiments/*/README.md", "conf/**/*.yaml")
    for path in ROOT.glob(pattern)
    if "trait" not in path.relative_to(ROOT).parts
)
COMMAND = re.compile(r"(?:persona-[a-z]+|pip install|wandb (?:agent|sweep|sync)) .*")
SPECIAL = set("[]{}*?~()!")
"""What zsh, and partly bash, would expand or act on."""


def commands_in(text):
    """Commands in code, within a line or a block; what follows it in its line is left out."""
    inline = re.findall(r"`([^`\n]+)`", text)
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line.strip().removeprefix("# ").removeprefix("$ ") for line in joined.splitlines()]
    for candidate in [*inline, *lines]:
        found = COMMAND.match(candidate)
        if found and not re.match(r"[\w-]+ [a-z]+:? [a-z]+ [a-z]+", candidate):  # not a command, but a sentence
            yield re.split(r"\s{2,}|\s#|`", found[0])[0].strip()


def unquoted(command):
    """A command without what stands in quotes."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", command)


def test_the_scanner_sees_what_zsh_would_expand():
    text = "Run `persona-train trait=[evil]` or\n\n    persona-train '~logger' \"steer={evil:1}\"    # or not\n"
    first, second = commands_in(text)
    assert SPECIAL & set(unquoted(first))
    assert not SPECIAL & set(unquoted(second))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documented_commands_are_quoted(path):
    found = list(commands_in(path.read_text(encoding="utf-8")))
    assert not [command for command in found if SPECIAL & set(unquoted(command))]
    for command in found:
        shlex.split(command)
