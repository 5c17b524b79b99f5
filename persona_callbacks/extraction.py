"""Extracting a persona vector: contrastive generation, then mean differences at every layer (Chen et al. 2025, 2.2)."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from persona_callbacks import residual
from persona_callbacks.chats import Chat, EncodedChat, Message, encode_chat, pad_token
from persona_callbacks.errors import InputError
from persona_callbacks.files import cache_dir
from persona_callbacks.generation import Sampling, iterate_responses
from persona_callbacks.layer_choice import effect_layers, held_out_auc, mean_difference, steering_effect
from persona_callbacks.models import LoadedModel, weights_fingerprint
from persona_callbacks.projection import activations
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import POSITIONS, PersonaVector, Position

_METHOD = 2
"""Part of the cache key: raised when the same responses would give another vector."""
_EFFECT_RESPONSES = 12
"""Responses of each kind on which the steering effect of a layer is measured."""


@dataclass(frozen=True)
class ExtractionSettings:
    """The ``extraction`` config group.

    Attributes:
        rollouts: responses per instruction and question.
        questions: how many of the trait's extraction questions to use; all by default.
        sampling: how responses are generated.
        position: where activations are read.
        batch_size: responses per pass when activations are read.
    """

    rollouts: int = 1
    questions: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    position: Position = "response_mean"
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: one that cannot be.
        """
        if self.position not in POSITIONS:
            raise InputError(
                f"extraction.position: unknown position {self.position!r}; expected one of {', '.join(POSITIONS)}"
            )
        for name, value in (
            ("rollouts", self.rollouts),
            ("questions", self.questions),
            ("batch_size", self.batch_size),
        ):
            if value is not None and value < 1:
                raise InputError(f"extraction.{name}: expected at least 1, found {value}")


@dataclass(frozen=True)
class _Condition:
    """One response to generate: under which system prompt, to which question."""

    shows_trait: bool
    instruction: str
    question_number: int
    question: str

    def prompt(self) -> list[Message]:
        return [{"role": "system", "content": self.instruction}, {"role": "user", "content": self.question}]


def persona_vector(
    loaded: LoadedModel, trait: Trait, settings: ExtractionSettings, console: Console | None = None
) -> PersonaVector:
    """The trait's persona vector for a model, from the cache if the same model, trait and settings made it before.

    Generated responses are kept as they are made, so that an interrupted extraction goes on where it stopped.

    Raises:
        InputError: no chat template, or a condition without any response.
    """
    console = console or Console(stderr=True)
    revision = weights_fingerprint(loaded.model)
    made_from = [_METHOD, revision, trait.fingerprint, asdict(settings)]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_dir() / "vectors" / loaded.id.rpartition("/")[2]
    file = folder / f"{trait.name}-{key}.safetensors"
    if file.is_file():
        console.print(f"Persona vector of {trait.name}: cached, {file}")
        return PersonaVector.load(file)
    conditions = _conditions(trait, settings)
    responses = _responses(loaded, conditions, settings, folder / f"{trait.name}-{key}.responses.jsonl", console)
    vector = _difference(loaded, trait, settings, conditions, responses, revision, console)
    vector.save(file)
    return vector


def _conditions(trait: Trait, settings: ExtractionSettings) -> list[_Condition]:
    questions = trait.extraction_questions[: settings.questions]
    return [
        _Condition(shows_trait, instruction, number, question)
        for pair in trait.instructions
        for shows_trait, instruction in ((True, pair.trait), (False, pair.opposite))
        for number, question in enumerate(questions)
        for _ in range(settings.rollouts)
    ]


def _responses(
    loaded: LoadedModel, conditions: Sequence[_Condition], settings: ExtractionSettings, file: Path, console: Console
) -> list[str]:
    """Generate what ``file`` does not hold yet, appending each finished batch to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    responses = _read_responses(file)
    prompts = [condition.prompt() for condition in conditions]
    with _progress(console) as progress:
        task = progress.add_task("Generating contrastive responses", total=len(prompts), completed=len(responses))
        done = frozenset(responses)
        for batch in iterate_responses(loaded.model, loaded.tokenizer, prompts, settings.sampling, skip=done):
            with file.open("a", encoding="utf-8") as lines:
                for index, text in batch:
                    row = {"index": index, "response": text, **asdict(conditions[index])}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            responses.update(batch)
            progress.update(task, completed=len(responses))
    return [responses[index] for index in range(len(prompts))]


def _read_responses(file: Path) -> dict[int, str]:
    """Responses kept by an earlier run, without a last line that was cut short."""
    if not file.is_file():
        return {}
    kept = {}
    content = file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        file.write_bytes(complete)
    for line in complete.decode("utf-8").splitlines():
        row = json.loads(line)
        kept[int(row["index"])] = str(row["response"])
    return kept


def _difference(
    loaded: LoadedModel,
    trait: Trait,
    settings: ExtractionSettings,
    conditions: Sequence[_Condition],
    responses: Sequence[str],
    revision: str,
    console: Console,
) -> PersonaVector:
    kept = [index for index, response in enumerate(responses) if response]
    shows = torch.tensor([conditions[index].shows_trait for index in kept], dtype=torch.bool)
    fold = torch.tensor([conditions[index].question_number % 2 for index in kept], dtype=torch.int64)
    for name, wanted in (("trait", True), ("opposite", False)):
        for half in (0, 1):
            if not ((shows == wanted) & (fold == half)).any():
                raise InputError(
                    f"trait {trait.name!r}: of {len(responses)} responses generated, no usable one is left under the"
                    f" {name} instructions for every second question; use more questions or rollouts"
                )
    chats = [Chat((*conditions[index].prompt(), {"role": "assistant", "content": responses[index]})) for index in kept]
    encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
    layers = range(residual.dimensions(loaded.model).num_layers + 1)
    with _progress(console) as progress:
        task = progress.add_task("Reading activations", total=len(encoded))
        read = activations(
            loaded.model,
            loaded.tokenizer,
            encoded,
            layers,
            [settings.position],
            settings.batch_size,
            advance=lambda done: progress.advance(task, done),
        )[:, 0].cpu()
    directions = mean_difference(read, shows)
    auc = held_out_auc(read, shows, fold)
    effects = _steering_effects(loaded, conditions, responses, kept, directions, console)
    return PersonaVector(
        trait=trait.name,
        directions=directions,
        layer=max(effects, key=effects.__getitem__),
        model_id=loaded.id,
        model_revision=revision,
        position=settings.position,
        probes=trait.evaluation_questions,
        counts={"trait": int(shows.sum()), "opposite": int((~shows).sum())},
        statistics={
            "auc": [round(value, 6) for value in auc.tolist()],
            "steering_effect": [round(value, 6) for value in effects.values()],
            "steering_effect_layers": list(effects),
        },
        trait_fingerprint=trait.fingerprint,
    )


def _steering_effects(
    loaded: LoadedModel,
    conditions: Sequence[_Condition],
    responses: Sequence[str],
    kept: Sequence[int],
    directions: Tensor,
    console: Console,
) -> dict[int, float]:

    def some(wanted: bool) -> list[EncodedChat]:
        side = [index for index in kept if conditions[index].shows_trait == wanted]
        picked = side[:: math.ceil(len(side) / _EFFECT_RESPONSES)]
        chats = [
            Chat((conditions[index].prompt()[1], {"role": "assistant", "content": responses[index]}))
            for index in picked
        ]
        return [encode_chat(chat, loaded.tokenizer) for chat in chats]

    with _progress(console) as progress:
        task = progress.add_task("Choosing the layer", total=len(effect_layers(directions.shape[0] - 1)))
        return steering_effect(
            loaded.model,
            some(wanted=True),
            some(wanted=False),
            directions,
            pad_token(loaded.tokenizer),
            advance=lambda: progress.advance(task),
        )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
