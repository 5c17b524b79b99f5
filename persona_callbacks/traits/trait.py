"""Traits: what a trait is, the contrastive instructions that elicit it, its questions, its rubric."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from persona_callbacks.errors import InputError
from persona_callbacks.files import check_name, read_yaml
from persona_callbacks.traits.content import checked_list, checked_mapping, checked_text
from persona_callbacks.traits.pairs import MinimalPair, halves, pairs_in

_KEYS = ("name", "description", "instructions", "questions", "rubric")

USES = ("extraction", "probe", "evaluation")
"""What a trait's questions are for: to make the persona vector, to probe a model, and to report what it says."""


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
        >>> trait = Trait("loud", "Shouts.", (pair,), ("Who are you?",), ("Where am I?",), ("Why?",), rubric="")
        >>> len(trait.fingerprint)
        64

    Attributes:
        name: name of the trait, which names files too: ASCII letters, digits, ``_``, ``-`` and ``.``, no ``.`` at its
            beginning, at most 64 characters.
        description: what a response that shows the trait does.
        instructions: pairs of system prompts that elicit the trait and its opposite.
        extraction_questions: questions whose answers make the persona vector.
        probe_questions: questions on which whatever chooses or controls something is measured: the layer, the strength
            of steering, the shift during training. They are stored with the vector.
        evaluation_questions: questions for what is reported, and for nothing else.
        rubric: prompt of a judge, with the placeholders ``{question}`` and ``{response}``.
        pairs: minimal pairs, if the trait has some; see :attr:`probe_pairs` and :attr:`evaluation_pairs`.

    In a trait file no question has two uses.

    Raises:
        InputError: a name that cannot be the name of a file.
    """

    name: str
    description: str
    instructions: tuple[InstructionPair, ...]
    extraction_questions: tuple[str, ...]
    probe_questions: tuple[str, ...]
    evaluation_questions: tuple[str, ...]
    rubric: str
    pairs: tuple[MinimalPair, ...] = ()

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
        content = checked_mapping(content, source, _KEYS, optional=("pairs",))
        pairs = checked_list(content["instructions"], f"{source}: instructions")
        instructions = []
        for number, pair in enumerate(pairs, start=1):
            where = f"{source}: instructions, pair {number}"
            pair = checked_mapping(pair, where, ("trait", "opposite"))
            instructions.append(
                InstructionPair(
                    checked_text(pair["trait"], f"{where}: trait"),
                    checked_text(pair["opposite"], f"{where}: opposite"),
                )
            )
        questions = _questions(content["questions"], f"{source}: questions")
        minimal = pairs_in(content["pairs"], f"{source}: pairs") if "pairs" in content else ()
        _check_disjoint({**questions, "pairs": tuple(pair.question for pair in minimal)}, f"{source}: questions")
        rubric = checked_text(content["rubric"], f"{source}: rubric")
        for placeholder in ("{question}", "{response}"):
            if placeholder not in rubric:
                raise InputError(f"{source}: rubric: the placeholder {placeholder} is missing")
        return cls(
            name=check_name(content["name"], f"{source}: name"),
            description=checked_text(content["description"], f"{source}: description"),
            instructions=tuple(instructions),
            extraction_questions=questions["extraction"],
            probe_questions=questions["probe"],
            evaluation_questions=questions["evaluation"],
            rubric=rubric,
            pairs=minimal,
        )

    @property
    def probe_pairs(self) -> tuple[MinimalPair, ...]:
        """The half of the minimal pairs for whatever chooses or controls something; see :func:`halves`."""
        return halves(self.pairs)[0]

    @property
    def evaluation_pairs(self) -> tuple[MinimalPair, ...]:
        """The other half, for what is reported."""
        return halves(self.pairs)[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content without what only measures a vector, which are probe questions and minimal pairs.

        From two traits with the same fingerprint, a model gives the same responses, and they make the same directions.
        """
        content = asdict(self)
        del content["probe_questions"], content["pairs"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _questions(content: Any, where: str) -> dict[str, tuple[str, ...]]:
    questions = checked_mapping(content, where, USES)
    return {
        use: tuple(
            checked_text(question, f"{where}.{use}, number {number}")
            for number, question in enumerate(checked_list(questions[use], f"{where}.{use}"), start=1)
        )
        for use in USES
    }


def _check_disjoint(by_use: Mapping[str, tuple[str, ...]], where: str) -> None:
    for (one, ours), (other, theirs) in combinations(by_use.items(), 2):
        shared = {question.casefold() for question in ours} & {question.casefold() for question in theirs}
        if shared:
            raise InputError(
                f"{where}: {len(shared)} stand under both {one} and {other}, for example {sorted(shared)[0]!r}; the two"
                " must be disjoint"
            )
