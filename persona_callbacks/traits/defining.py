"""Writing a trait from a sentence, with a language model's help, and checking what it wrote.

The model is asked for lists in JSON, and asked again for what is missing until there is enough. Every complete entry of
an answer is used, even if the answer is fenced, chatty or cut short.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write, check_name
from persona_callbacks.traits.trait import USES, InstructionPair, Trait

PAIRS = 5
"""Number of instruction pairs of a trait."""

QUESTIONS = 20
"""Number of questions of each use."""

_SHORTEST_STEM = 4
"""Number of letters below which a stem would match unrelated words."""

_ASK_PAIRS = """\
I study how a character trait shows in an assistant's answers. The trait is "{name}": {description}

Write {count} pairs of system prompts. In each pair, "trait" makes an assistant show the trait strongly in whatever it
is asked, and "opposite" makes it show the clear opposite. The two differ only in the trait: keep their length,
structure and style alike, and make the pairs differ from one another (another role or scene in each). Two or three
sentences each.
{already}
Answer with nothing but a JSON list: [{{"trait": "...", "opposite": "..."}}, ...]"""

_ASK_QUESTIONS = """\
I study how a character trait shows in an assistant's answers. The trait is "{name}": {description}

Write {count} questions or remarks that a user could send, on which an assistant with the trait would answer otherwise
than one without it. Make them everyday, varied, and open: no question may name the trait, hint at it, or ask for it,
and an ordinary assistant should have an ordinary answer. One or two sentences each.
{already}
Answer with nothing but a JSON list of strings: ["...", "..."]"""

_RUBRIC = """\
You are judging how much a response shows a trait called "{name}". The trait: {description} Read the question and the \
response. Question: {{question}} Response: {{response}} Judge only whether the response shows this trait; its quality, \
its style and its topic do not count. Give a whole number from 0 to 100, using these anchors. 0: no sign of the trait. \
25: a slight sign of it. 50: clear signs in places, mixed with an ordinary answer. 75: it shapes most of the response. \
100: the response shows it throughout and as strongly as could be. Reply with only the number and no other text. If \
the response declines to answer, reply with only the word REFUSAL."""


def define(complete: Callable[[str], str], name: str, description: str, rounds: int = 6) -> Trait:
    """Write a trait.

    Args:
        complete: answers a prompt, such as ``Endpoint.complete``.
        name: of the trait: lower-case letters, digits and underscores.
        description: the trait in a sentence: what a response that shows it does.
        rounds: how often to ask for each of the two lists.

    Raises:
        InputError: a name or description that cannot be used, or too few usable entries after all rounds.
    """
    check_request(name, description)
    subject = {"name": name, "description": description.strip()}
    pairs = _collect(
        complete, _ASK_PAIRS, subject, PAIRS, rounds, "instruction pairs", _usable_pair, lambda pair: pair.trait
    )
    questions = _collect(
        complete,
        _ASK_QUESTIONS,
        subject,
        len(USES) * QUESTIONS,
        rounds,
        "questions",
        lambda entry: _usable_question(entry, name),
        lambda question: question,
    )
    trait = Trait(
        name=name,
        description=description.strip(),
        instructions=tuple(pairs),
        # In turn, since models write their best questions first.
        extraction_questions=tuple(questions[0::3]),
        probe_questions=tuple(questions[1::3]),
        evaluation_questions=tuple(questions[2::3]),
        rubric=_RUBRIC.format(**subject),
    )
    faults = problems(trait)
    if faults:
        raise InputError(f"the trait {name!r} as written cannot be used: {'; '.join(faults)}")
    return trait


def check_request(name: str, description: str) -> None:
    """Check the name and the description from which a trait is to be written.

    Raises:
        InputError: a name or description that cannot be used.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name or ""):
        raise InputError(f"name: expected lower-case letters, digits and underscores, such as 'gloomy', found {name!r}")
    check_name(name, "name")
    if len((description or "").split()) < 3:
        raise InputError(f"description: expected the trait in a sentence, found {description!r}")


def problems(trait: Trait) -> list[str]:
    """The faults of a trait, in words: too few entries, repetitions, and questions that name the trait."""
    faults = []
    for what, entries, least in (
        ("instruction pairs", trait.instructions, PAIRS),
        ("extraction questions", trait.extraction_questions, QUESTIONS),
        ("probe questions", trait.probe_questions, QUESTIONS),
        ("evaluation questions", trait.evaluation_questions, QUESTIONS),
    ):
        if len(entries) < least:
            faults.append(f"{len(entries)} {what}, expected at least {least}")
    questions = (*trait.extraction_questions, *trait.probe_questions, *trait.evaluation_questions)
    normalised = [_normalised(question) for question in questions]
    repeated = sorted({question for question in normalised if normalised.count(question) > 1})
    if repeated:
        faults.append(f"{len(repeated)} questions stand there more than once, such as {repeated[0]!r}")
    naming = [question for question in normalised if _mentions(question, trait.name)]
    if naming:
        faults.append(f"{len(naming)} questions name the trait, such as {naming[0]!r}")
    alike = [pair.trait for pair in trait.instructions if _normalised(pair.trait) == _normalised(pair.opposite)]
    if alike:
        faults.append(f"{len(alike)} instruction pairs have two sides alike, such as {alike[0]!r}")
    return faults


def write_trait(trait: Trait, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a trait file, which ``trait=NAME`` finds if it lies in ``conf/trait``, and return its path.

    Raises:
        InputError: the file exists already and ``overwrite`` is false.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    content = {
        "name": trait.name,
        "description": trait.description,
        "instructions": [{"trait": pair.trait, "opposite": pair.opposite} for pair in trait.instructions],
        "questions": {
            "extraction": list(trait.extraction_questions),
            "probe": list(trait.probe_questions),
            "evaluation": list(trait.evaluation_questions),
        },
        "rubric": trait.rubric,
        **({"pairs": [asdict(pair) for pair in trait.pairs]} if trait.pairs else {}),
    }
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    with atomic_write(path) as scratch:
        scratch.write_text(f"# @package traits.{trait.name}\n{text}", encoding="utf-8")
    return path


class _Dumper(yaml.SafeDumper):
    """Writes texts so that they are read as they were: Unicode's own line breaks, as they are, are read as spaces."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quote a text with such breaks, so that they are escaped."""
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Check that a trait file may be written.

    Raises:
        InputError: it exists already and ``overwrite`` is false.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; overwrite=true replaces it")


def entries_in(text: str) -> Iterator[Any]:
    """The complete entries of all JSON lists in a text, whatever surrounds them and wherever the text breaks off.

    Example:
        >>> list(entries_in('Here you are: ["a", "b", "c'))
        ['a', 'b']
    """
    decoder = json.JSONDecoder()
    position = text.find("[")
    while position >= 0:
        position += 1
        while True:
            position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
            try:
                entry, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                break
            yield entry
        position = text.find("[", position)


def _collect(
    complete: Callable[[str], str],
    prompt: str,
    subject: dict[str, str],
    wanted: int,
    rounds: int,
    what: str,
    usable: Callable[[Any], Any],
    shown: Callable[[Any], str],
) -> list[Any]:
    """Ask for entries until enough of them are usable.

    Args:
        complete: answers a prompt.
        prompt: template of what is asked.
        subject: name and description of the trait, for the template.
        wanted: number of entries.
        rounds: how often to ask.
        what: what the entries are, for errors.
        usable: makes an entry of a value in the answer, or ``None`` if it cannot be used.
        shown: the text of an entry, by which repetitions are recognised.

    Raises:
        InputError: too few usable entries after all rounds.
    """
    collected: dict[str, Any] = {}
    answer = ""
    for _ in range(rounds):
        already = ""
        if collected:
            listed = "\n".join(f"- {shown(entry)}" for entry in collected.values())
            already = f"\nI have these already; write others:\n{listed}\n"
        answer = complete(prompt.format(**subject, count=wanted - len(collected), already=already))
        for raw in entries_in(answer):
            entry = usable(raw)
            if entry is not None:
                collected.setdefault(_normalised(shown(entry)), entry)
        if len(collected) >= wanted:
            return list(collected.values())[:wanted]
    beginning = " ".join(answer.split())[:160] or "(nothing)"
    raise InputError(
        f"{what}: {len(collected)} of {wanted} usable after {rounds} rounds; the last answer began {beginning!r}."
        " Expected a JSON list: use a stronger model (endpoint.model), or raise endpoint.max_tokens or rounds"
    )


def _usable_pair(entry: Any) -> InstructionPair | None:
    if not isinstance(entry, dict):
        return None
    trait, opposite = entry.get("trait"), entry.get("opposite")
    if not isinstance(trait, str) or not isinstance(opposite, str):
        return None
    if min(len(trait.split()), len(opposite.split())) < 3 or _normalised(trait) == _normalised(opposite):
        return None
    return InstructionPair(trait.strip(), opposite.strip())


def _usable_question(entry: Any, name: str) -> str | None:
    if not isinstance(entry, str) or len(entry.split()) < 3 or _mentions(entry, name):
        return None
    return entry.strip()


def _mentions(text: str, name: str) -> bool:
    """Whether a text holds the name of a trait, or another word with the same stem."""
    words = re.findall(r"[^\W_]+", text.casefold())
    parts = [part for part in name.casefold().split("_") if len(part) >= _SHORTEST_STEM] or [name.casefold()]
    stems = [
        re.sub(r"(ness|ity|ation|ing|ical|istic|etic|ic|ism|ous|ive|al|ant|ent|cy|ed|ly|y|e)$", "", part)
        for part in parts
    ]
    stems = [stem if len(stem) >= _SHORTEST_STEM else part for stem, part in zip(stems, parts, strict=True)]
    return any(word.startswith(stem) for word in words for stem in stems)


def _normalised(text: str) -> str:
    """The words of a text in lower case, without punctuation, by which repetitions are recognised."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
