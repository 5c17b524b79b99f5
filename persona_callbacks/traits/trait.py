"""Traits: what a trait is, the contrastive instructions that elicit it, its questions, its rubric."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.files import check_name, check_text, read_yaml

_KEYS = ("name", "description", "instructions", "questions", "rubric")


@dataclass(frozen=True)
class InstructionPair:
    """Two system prompts that differ in one thing: the first asks for the trait, the second for its opposite.

    Example:
        >>> InstructionPair("Shout whatever you say.", "Whisper whatever you say.").opposite
        'Whisper whatever you say.'
    """

    trait: str
    opposite: str


@dataclass(frozen=True)
class Trait:
    """A named character trait and the material to measure it with (Chen et al. 2025, section 2.1 and A.1).

    Example:
        >>> pair = InstructionPair("Shout whatever you say.", "Whisper whatever you say.")
        >>> trait = Trait("loud", "Shouts.", (pair,), ("Who are you?",), ("Where am I?",), "{question} {response}")
        >>> len(trait.fingerprint)
        64

    Attributes:
        name: name of the trait, which names files too: ASCII letters, digits, ``_``, ``-`` and ``.``, no ``.`` at its
            beginning, at most 64 characters.
        description: what a response that shows the trait does.
        instructions: pairs of system prompts that elicit the trait and its opposite.
        extraction_questions: questions whose answers make the persona vector.
        evaluation_questions: questions that probe a model; none of them is an extraction question.
        rubric: prompt of a judge, with the placeholders ``{question}`` and ``{response}``.

    Raises:
        InputError: a name that cannot be the name of a file.
    """

    name: str
    description: str
    instructions: tuple[InstructionPair, ...]
    extraction_questions: tuple[str, ...]
    evaluation_questions: tuple[str, ...]
    rubric: str

    def __post_init__(self) -> None:
        """Check the name."""
        check_name(self.name, "trait: name")

    @classmethod
    def load(cls, path: str | Path) -> "Trait":
        """Read a trait file (YAML).

        Raises:
            InputError: the file is missing, is no YAML mapping, uses anchors, or a key is missing, unknown or of the
                wrong kind.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such trait file")
        return cls.from_mapping(read_yaml(path), source=str(path))

    @classmethod
    def from_mapping(cls, content: Any, source: str) -> "Trait":
        """Build a trait from the content of a trait file; ``source`` is named in errors.

        Raises:
            InputError: as for :meth:`load`.
        """
        content = _checked_mapping(content, source, _KEYS)
        pairs = _checked_list(content["instructions"], f"{source}: instructions")
        instructions = []
        for number, pair in enumerate(pairs, start=1):
            where = f"{source}: instructions, pair {number}"
            pair = _checked_mapping(pair, where, ("trait", "opposite"))
            instructions.append(
                InstructionPair(
                    _checked_text(pair["trait"], f"{where}: trait"),
                    _checked_text(pair["opposite"], f"{where}: opposite"),
                )
            )
        questions = _checked_mapping(content["questions"], f"{source}: questions", ("extraction", "evaluation"))
        by_use = {
            use: tuple(
                _checked_text(question, f"{source}: questions.{use}, number {number}")
                for number, question in enumerate(_checked_list(questions[use], f"{source}: questions.{use}"), start=1)
            )
            for use in ("extraction", "evaluation")
        }
        shared = {q.casefold() for q in by_use["extraction"]} & {q.casefold() for q in by_use["evaluation"]}
        if shared:
            raise InputError(
                f"{source}: questions: {len(shared)} stand under both extraction and evaluation, for example"
                f" {sorted(shared)[0]!r}; the two must be disjoint"
            )
        rubric = _checked_text(content["rubric"], f"{source}: rubric")
        for placeholder in ("{question}", "{response}"):
            if placeholder not in rubric:
                raise InputError(f"{source}: rubric: the placeholder {placeholder} is missing")
        return cls(
            name=check_name(content["name"], f"{source}: name"),
            description=_checked_text(content["description"], f"{source}: description"),
            instructions=tuple(instructions),
            extraction_questions=by_use["extraction"],
            evaluation_questions=by_use["evaluation"],
            rubric=rubric,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: two trait files with the same fingerprint make the same vector."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _checked_mapping(value: Any, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a mapping with the keys {', '.join(keys)}, found {_described(value)}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]!r}; expected {', '.join(keys)}")
    unknown = [str(key) for key in value if key not in keys]
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(keys)}")
    return value


def _checked_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a list of at least one entry, found {_described(value)}")
    return value


def _checked_text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected text, found {_described(value)}")
    return check_text(value, where).strip()


def _described(value: Any) -> str:
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "nothing"
    return f"{type(value).__name__} {value!r}"[:80]
