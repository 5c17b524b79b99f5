"""The callback that measures trait expression: what the model says, not where its activations lie."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import distributed, nn
from transformers import PreTrainedTokenizerBase

from persona_callbacks.callbacks._seams import find_tokenizer
from persona_callbacks.errors import InputError
from persona_callbacks.judging import (
    Answer,
    ContrastiveJudge,
    Expression,
    Judge,
    Score,
    answer_questions,
    expression,
    judge_calmly,
)
from persona_callbacks.model import LoadedModel, Sampling, dimensions, find_language_model
from persona_callbacks.tracking import metrics
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import Calibration, PersonaVector

COLUMNS = ("step", "trait", "question", "answer", "score")
"""What :attr:`TraitEvaluation.rows` hold."""


@dataclass(frozen=True)
class Evaluation:
    """Trait expression of one trait after ``step`` optimizer steps."""

    step: int
    trait: str
    expression: Expression


class TraitEvaluation(Callback):
    """Generate answers to held-out questions during training, unsteered, and have a judge score how much they show each
    trait. It changes nothing in the run.

    Before step 1, every ``every_n_steps`` optimizer steps if that is set, and at the end, each trait's evaluation
    questions are answered by the model as it is; ``persona/{trait}/expression`` with ``.../expression_low`` and
    ``_high`` (95 % interval) and ``persona/{trait}/unscored`` are logged, and a table of question, answer, score and
    step goes to loggers that have tables. With several processes, each answers its share of the questions.

    A judge that fails never stops the run: its answers count as unscored, with a warning.

    Args:
        traits: what to evaluate.
        vectors: of the same traits; each holds the calibration of the contrastive judge, which scores with the base
            model (the adapter disabled) and needs nothing else.
        judges: by trait, other judges in place of the contrastive one.
        every_n_steps: optimizer steps between evaluations; only before and after training by default.
        questions: how many of a trait's evaluation questions are asked; all by default.
        sampling: how answers are generated; greedy by default.
        tokenizer: found on the module or data module (``tokenizer``) if not given.

    Attributes:
        evaluations: all so far, oldest first.
        rows: ``COLUMNS`` of every answer so far.
    """

    def __init__(
        self,
        traits: Sequence[Trait],
        vectors: Sequence[PersonaVector] = (),
        judges: Mapping[str, Judge] | None = None,
        every_n_steps: int | None = None,
        questions: int | None = None,
        sampling: Sampling | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Check the arguments.

        Raises:
            InputError: no trait, or a trait with neither a judge nor a vector that holds a calibration.
            MisconfigurationException: a number of steps or questions that cannot be.
        """
        self.traits = tuple(traits)
        self.judges = dict(judges or {})
        if not self.traits:
            raise InputError("TraitEvaluation: expected at least one trait, found none")
        for name, value in (("every_n_steps", every_n_steps), ("questions", questions)):
            if value is not None and value < 1:
                raise MisconfigurationException(f"TraitEvaluation: {name} must be at least 1, found {value}")
        self._calibrations = {
            vector.trait: Calibration.from_mapping(vector.judge) for vector in vectors if vector.judge
        }
        for trait in self.traits:
            if trait.name not in self.judges and trait.name not in self._calibrations:
                raise InputError(
                    f"TraitEvaluation: nothing can judge {trait.name!r}; pass its persona vector, extracted with"
                    " extraction.judge_pairs above 0, or a judge"
                )
        self.every_n_steps = every_n_steps
        self.questions = questions
        self.sampling = sampling or Sampling(max_new_tokens=64, temperature=0.0)
        self.tokenizer = tokenizer
        self.evaluations: list[Evaluation] = []
        self.rows: list[list[Any]] = []
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """All evaluations and answers so far."""
        return {"evaluations": [asdict(one) for one in self.evaluations], "rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore evaluations and answers."""
        self.evaluations = [
            Evaluation(one["step"], one["trait"], Expression(**one["expression"])) for one in state_dict["evaluations"]
        ]
        self.rows = [list(row) for row in state_dict["rows"]]
        self._resumed = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find model, tokenizer and judges.

        Raises:
            MisconfigurationException: the contrastive judge is needed, and there is no adapter to get back to the base
                model by.
        """
        model = find_language_model(pl_module)
        model_id = dimensions(model).model_id
        tokenizer = self.tokenizer or find_tokenizer("TraitEvaluation", trainer, pl_module, model_id)
        self._loaded = LoadedModel(model, tokenizer, model_id)
        contrastive = [trait for trait in self.traits if trait.name not in self.judges]
        if contrastive and not _has_adapter(model):
            raise MisconfigurationException(
                f"TraitEvaluation: the contrastive judge of {contrastive[0].name!r} scores with the base model, and"
                " this model has no adapter that could be disabled; pass judges={...} for a full fine-tuning"
            )
        self._used = {
            **{t.name: ContrastiveJudge(self._loaded, t, self._calibrations[t.name]) for t in contrastive},
            **self.judges,
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before the first step."""
        if not self._resumed:
            self.evaluations, self.rows = [], []
            self._evaluate(trainer)
        self._resumed = False
        self._step_seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate when an optimizer step has made it due."""
        if trainer.global_step == self._step_seen:
            return  # gradients are still being accumulated
        self._step_seen = trainer.global_step
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate at the end, unless the last step did."""
        if not self.evaluations or self.evaluations[-1].step != trainer.global_step:
            self._evaluate(trainer)
        self._table(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if there was nothing left to train: such a resumed run does not pass through ``on_train_end``."""
        if self._resumed and self.evaluations[-1].step != trainer.global_step:
            self._evaluate(trainer)
            self._table(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        for trait in self.traits:
            questions = trait.evaluation_questions[: self.questions]
            share = questions[trainer.global_rank :: trainer.world_size]
            answers = answer_questions(self._loaded, share, self.sampling)
            scores, error = judge_calmly(self._used[trait.name], answers)
            if error is not None:
                rank_zero_warn(
                    f"TraitEvaluation: the judge of {trait.name!r} failed, its answers have no score:"
                    f" {type(error).__name__}: {error}"
                )
            judged = _from_all_processes(trainer, list(zip(answers, scores, strict=True)))
            found = expression([score for _, score in judged])
            self.evaluations.append(Evaluation(trainer.global_step, trait.name, found))
            self.rows += [
                [trainer.global_step, trait.name, answer.question, answer.response, _shown(score)]
                for answer, score in judged
            ]
            values = {metrics.unscored(trait.name): float(found.unscored)}
            if found.scored:
                names = metrics.with_interval(metrics.expression(trait.name))
                values |= dict(zip(names, (found.mean, found.low, found.high), strict=True))
            metrics.log(trainer, values)

    def _table(self, trainer: Trainer) -> None:
        metrics.log_table(trainer, metrics.EXPRESSION_TABLE, list(COLUMNS), self.rows)


def _has_adapter(model: nn.Module) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _shown(score: Score) -> float | str:
    if score.expression is not None:
        return round(score.expression, 1)
    return "refusal" if score.refusal else "unscored"


def _from_all_processes(trainer: Trainer, own: list[tuple[Answer, Score]]) -> list[tuple[Answer, Score]]:
    """What all processes hold, in the order of the questions."""
    if trainer.world_size == 1:
        return own
    shares: list[list[tuple[Answer, Score]]] = [[] for _ in range(trainer.world_size)]
    distributed.all_gather_object(shares, own)
    longest = max(len(share) for share in shares)
    return [share[place] for place in range(longest) for share in shares if place < len(share)]
