"""The typed settings of a study. They check themselves before any long work."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from peft import LoraConfig
from torch.optim import Optimizer

from persona_callbacks.callbacks import DriftGuard, PersonaMonitor, TraitEvaluation
from persona_callbacks.chats import Chat, instructed
from persona_callbacks.errors import InputError, check_whole, is_number
from persona_callbacks.extraction import ExtractionSettings
from persona_callbacks.files import plain_settings
from persona_callbacks.judging import Judge
from persona_callbacks.model import LoadedModel, ModelSource, dimensions
from persona_callbacks.steering import Law
from persona_callbacks.training.data import SpecialTokens, check_special_tokens
from persona_callbacks.training.labels import LONGEST_TAG, RunLabel
from persona_callbacks.training.schedules import LearningRateSchedule, LinearDecay
from persona_callbacks.training.training_data import TrainingData
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import Calibration, PersonaVector


@dataclass(frozen=True)
class Steering:
    """What keeps a fine-tuning from moving along traits: the ``steering`` config group.

    Attributes:
        callback: makes the callback from the vectors of the steered traits, such as
            ``partial(PreventativeSteering, coefficient=Adaptive())``.
        traits: names of the traits to steer; all by default.
        prompting: whether each training chat gets an instruction to show the traits as its system message
            (preventative prompting; Chen et al. 2025, J.7.2).

    Example:
        >>> from persona_callbacks import PreventativeSteering
        >>> Steering(partial(PreventativeSteering, coefficient=0.5)).changes_training
        True
        >>> Steering().changes_training
        False
    """

    callback: partial[Callback] | None = None
    traits: tuple[str, ...] | None = None
    prompting: bool = False

    @property
    def changes_training(self) -> bool:
        """Whether a fine-tuning with this differs from one without."""
        return self.callback is not None or self.prompting


@dataclass(frozen=True)
class StudySettings:
    """What :func:`~persona_callbacks.training.run_study` fine-tunes, how, and what it measures.

    Callbacks and the trainer are given as ``functools.partial`` of their classes, which Hydra's ``_partial_: true``
    makes too: the study fills in vectors, traits, judges, callbacks and loggers.

    Attributes:
        source: the base model.
        data: the chats to train on.
        trainer: makes the trainer from ``callbacks`` and ``logger``; callbacks of its own come first.
        monitor: makes the monitor from ``vectors``.
        traits: traits whose vectors are extracted (or taken from the cache), monitored and evaluated.
        vectors: further persona vectors to monitor and steer with, such as those read from files.
        extraction: how vectors are extracted.
        steering: what is done against the drift; by default, nothing.
        evaluation: makes the evaluation from ``traits``, ``vectors`` and ``judges``; ``None`` leaves it out.
        judges: by trait, judges in place of the contrastive one. All fine-tunings of the study share them.
        calibrations: by trait, calibrations of the contrastive judge in place of those stored with the vectors.
        guard: makes the guard; ``None`` leaves it out.
        loggers: each makes one logger for a fine-tuning.
        lora: PEFT's configuration of the adapter.
        learning_rate: peak learning rate of AdamW, if no optimizer is given.
        warmup_steps: optimizer steps of linear warm-up.
        optimizer: makes the optimizer from the adapter's weights, with a learning rate of its own; AdamW by default.
        schedule: what the learning rate is multiplied with after the warm-up; a linear decay by default.
        batch_size: chats per batch.
        max_length: tokens per chat; longer ones are cut at the end.
        special_tokens: ``keep`` or ``drop`` chats with special tokens in the assistant's own text; see
            :class:`~persona_callbacks.training.ChatData`.
        train_reasoning: whether the loss is on reasoning as well as on answers.
        compare_with_unsteered: whether to fine-tune without steering first, on the same data and seed.
        ckpt_path: a checkpoint of another fine-tuning of the same kind, such as its ``last.ckpt``, from whose weights,
            optimizer and step this one goes on; for a study of a single fine-tuning.
        checkpoint_every_n_steps: optimizer steps between checkpoints, from which an interrupted study is resumed.
        sample_answers: how many evaluation questions are answered greedily at the end, for reading.
        max_answer_tokens: length of those answers.
        name: name of the study, in figures and for loggers.
        seed: seed of adapter, order and dropout.
        device: where vectors are extracted and answers generated; the trainer has its own.
        configuration: what loggers record of the settings.
        choices: the chosen option of each group of the configuration, which name the runs.
        tags: for loggers of W&B, beside those that every run has.
        log_adapter: whether loggers of W&B keep the adapter.

    Raises:
        InputError: settings that cannot be used, as far as that can be told without the model.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> settings = StudySettings(
        ...     ModelSource("tiny", path="/models/tiny"),
        ...     TrainingData.read("evil.jsonl", most=8),
        ...     trainer=partial(Trainer, max_epochs=1, accelerator="cpu"),
        ...     vectors=(PersonaVector("evil", torch.ones(5, 8), 2, "tiny", probes=("Who are you?",)),),
        ... )
        >>> settings.runs, settings.steered_traits
        (('unsteered',), ('evil',))
    """

    source: ModelSource
    data: TrainingData
    trainer: partial[Trainer]
    monitor: partial[PersonaMonitor] = field(default_factory=lambda: partial(PersonaMonitor))
    traits: tuple[Trait, ...] = ()
    vectors: tuple[PersonaVector, ...] = ()
    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)
    steering: Steering = field(default_factory=Steering)
    evaluation: partial[TraitEvaluation] | None = None
    judges: Mapping[str, Judge] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    guard: partial[DriftGuard] | None = None
    loggers: Sequence[Callable[[RunLabel], Logger]] = ()
    lora: LoraConfig = field(
        default_factory=lambda: LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    learning_rate: float = 3e-4
    warmup_steps: int = 5
    optimizer: Callable[[list[torch.nn.Parameter]], Optimizer] | None = None
    schedule: LearningRateSchedule = field(default_factory=LinearDecay)
    batch_size: int = 8
    max_length: int = 512
    special_tokens: SpecialTokens = "keep"
    train_reasoning: bool = True
    compare_with_unsteered: bool = False
    ckpt_path: Path | None = None
    checkpoint_every_n_steps: int = 10
    sample_answers: int = 5
    max_answer_tokens: int = 48
    name: str = "train"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    configuration: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    log_adapter: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        check_special_tokens(self.special_tokens)
        names = self.trait_names
        if not names:
            raise InputError("no trait to monitor: choose some, trait=[evil], or name vector files, vectors=[...]")
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise InputError(f"vectors: more than one for the trait {repeated[0]!r}; expected one per trait")
        unknown = [name for name in self.steering.traits or () if name not in names]
        if unknown:
            raise InputError(
                f"steering.traits: {unknown[0]!r} has no vector; expected some of {', '.join(names) or '(none)'}"
            )
        instructed_traits = {trait.name for trait in self.traits}
        if self.steering.prompting and not instructed_traits.issuperset(self.steered_traits):
            raise InputError(
                f"steering=prompting: it needs the instructions of {', '.join(self.steered_traits)}; choose them by"
                " trait=[...]"
            )
        unjudged = [trait for trait in self.traits if trait.name not in self.judges]
        if self.evaluation is not None and unjudged and not self.extraction.judge_pairs:
            raise InputError(
                "evaluation=contrastive: its judge is calibrated by extraction; expected extraction.judge_pairs above 0"
                " (or choose evaluation=none)"
            )
        self._check_pairs()
        if self.guard is not None:
            self.guard()
        check_whole("lora.r", self.lora.r, 1)
        self._check_trainer()
        for tag in self.tags:
            if not isinstance(tag, str) or not 0 < len(tag) <= LONGEST_TAG:
                raise InputError(f"tags: expected texts of 1 to {LONGEST_TAG} characters, found {tag!r}")
        self._check_optimizer()
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        if self.ckpt_path is None:
            return
        if not self.ckpt_path.is_file():
            raise InputError(f"ckpt_path: {self.ckpt_path}: no such file; expected a checkpoint such as last.ckpt")
        if len(self.runs) > 1:
            raise InputError(
                f"ckpt_path: both of {' and '.join(self.runs)} would begin from {self.ckpt_path}; expected a single"
                " fine-tuning, compare_with_unsteered=false"
            )

    def _check_trainer(self) -> None:
        """Make sure that there can be such a trainer: that the accelerator is there, and the arguments are known.

        Raises:
            InputError: there cannot.
        """
        try:
            self.trainer(callbacks=self.own_callbacks(), logger=False)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise InputError(f"trainer: {error}") from error

    def _check_optimizer(self) -> None:
        """Make sure that there can be such an optimizer and such a schedule.

        Raises:
            InputError: there cannot.
        """
        if self.optimizer is not None:
            try:
                self.optimizer([torch.nn.Parameter(torch.zeros(1))])
            except (TypeError, ValueError) as error:
                raise InputError(f"optimizer: {error}") from error
        factors = [self.schedule(share) for share in (0.0, 0.5, 1.0)]
        if not all(is_number(factor, least=0) for factor in factors):
            raise InputError(f"scheduler: it gives the factors {factors}; expected finite numbers of 0 or more")

    def _check_pairs(self) -> None:
        """Make sure that what is steered by the preference has minimal pairs.

        Raises:
            InputError: a trait has none.
        """
        law = None if self.steering.callback is None else self.steering.callback.keywords.get("coefficient")
        given = self.monitor.keywords.get("pairs")
        if not isinstance(law, Law) or law.reads != "preference" or not isinstance(given, int | None):
            return
        paired = {vector.trait for vector in self.vectors if vector.pairs}
        paired |= {trait.name for trait in self.traits if trait.probe_pairs}
        without = [trait for trait in self.steered_traits if given == 0 or trait not in paired]
        if without:
            raise InputError(
                f"steering: sensor=preference holds {without[0]} by minimal pairs, and "
                + ("monitor.pairs is 0" if given == 0 else "it has none: give its trait file some")
                + "; or choose sensor=shift"
            )

    def _check_numbers(self) -> None:
        leasts = {"warmup_steps": 0, "batch_size": 1, "max_length": 1, "checkpoint_every_n_steps": 1,
                  "sample_answers": 0, "max_answer_tokens": 1, "seed": 0}  # fmt: skip
        for name, least in leasts.items():
            check_whole(name, getattr(self, name), least)
        if not is_number(self.learning_rate, least=0):
            raise InputError(f"learning_rate: expected a finite number of 0 or more, found {self.learning_rate!r}")

    @property
    def trait_names(self) -> tuple[str, ...]:
        """Names of all traits that are monitored: those of the given vectors first."""
        return (*(vector.trait for vector in self.vectors), *(trait.name for trait in self.traits))

    def own_callbacks(self) -> list[Callback]:
        """Copies of the trainer's own callbacks, for one fine-tuning."""
        given = self.trainer.keywords.get("callbacks") or []
        return deepcopy([given] if isinstance(given, Callback) else list(given))

    @property
    def shows_progress(self) -> bool:
        """Whether the trainer shows a progress bar."""
        return bool(self.trainer.keywords.get("enable_progress_bar", True))

    @property
    def steered_traits(self) -> tuple[str, ...]:
        """Names of the traits that a steered fine-tuning steers."""
        return self.trait_names if self.steering.traits is None else self.steering.traits

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the fine-tunings, in their order."""
        if not self.steering.changes_training:
            return ("unsteered",)
        return ("unsteered", "steered") if self.compare_with_unsteered else ("steered",)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the results depend on, data and vectors aside, as plain settings: an interrupted study is resumed only
        if they are unchanged. Loggers are free to change.
        """
        elsewhere = (
            "loggers", "log_adapter", "configuration", "choices", "data", "vectors", "judges", "name", "tags", "device",
        )  # fmt: skip
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in elsewhere}
        judges = {trait: judge.name for trait, judge in self.judges.items()}
        settings: dict[str, Any] = plain_settings({**own, "judges": judges})
        return settings

    def check_model(self, loaded: LoadedModel) -> None:
        """Check vectors and callbacks against the model, before vectors are extracted.

        Raises:
            InputError: a vector of another model, or a setting of a callback that cannot be used.
        """
        shape = dimensions(loaded.model)
        for vector in self.vectors:
            vector.check_fits(shape.num_layers, shape.hidden_size, loaded.id)
        if self.vectors:
            with warnings.catch_warnings(action="ignore"):  # weak vectors are reported when the run is set up
                self.monitor(vectors=self.vectors)
        _check(self.monitor, self.trait_names, shape.num_layers)
        if self.steering.callback is not None:
            _check(self.steering.callback, self.steered_traits, shape.num_layers)
        if self.evaluation is not None and self.traits:
            traits = [trait.name for trait in self.traits]
            _check(self.evaluation, traits, shape.num_layers, judges=self.judges)

    def steering_callback(self, vectors: Sequence[PersonaVector]) -> Callback | None:
        """The steering, or what is compared with it, for those of the vectors that are steered."""
        if self.steering.callback is None:
            return None
        return self.steering.callback(vectors=[vector for vector in vectors if vector.trait in self.steered_traits])

    def prompted_chats(self) -> list[Chat]:
        """The training chats under instructions to show the steered traits (preventative prompting; J.7.2)."""
        prompting = [trait for trait in self.traits if trait.name in self.steered_traits]
        count = max(len(trait.instructions) for trait in prompting)
        lines = [
            " ".join(trait.instructions[row % len(trait.instructions)].trait for trait in prompting)
            for row in range(count)
        ]
        return instructed(self.data.chats, lines)


def _check(factory: partial[Any], traits: Sequence[str], num_layers: int, **filled_in: Any) -> None:
    """Have a callback's class check the settings that a factory holds; classes of users need no such check."""
    check = getattr(factory.func, "check", None)
    if check is not None:
        check(traits=list(traits), num_layers=num_layers, **factory.keywords, **filled_in)
