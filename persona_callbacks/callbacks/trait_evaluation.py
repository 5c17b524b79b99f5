"""The callback that measures trait expression: what the model says, not where its activations lie."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from persona_callbacks.callbacks._refusing import RefusingCallback
from persona_callbacks.callbacks._seams import averages_weights, back_on_device, check_at_least_one, find_tokenizer
from persona_callbacks.errors import InputError
from persona_callbacks.judging import (
    Answer,
    ContrastiveJudge,
    Expression,
    Judge,
    JudgedAnswer,
    Score,
    answer_questions,
    scores_or_error,
)
from persona_callbacks.model import LoadedModel, Sampling, base_work, dimensions, removable_adapters
from persona_callbacks.tracking import metrics
from persona_callbacks.traits import Trait
from persona_callbacks.vectors import PersonaVector

_COLUMNS = [field.name for field in fields(JudgedAnswer)]
_BASE_COLUMNS = ["base_answer", "base_score"]


@dataclass(frozen=True)
class Evaluation:
    """Trait expression of one trait after ``step`` optimizer steps.

    Example:
        >>> from persona_callbacks.judging import Expression, Score
        >>> Evaluation(10, "evil", Expression.of([Score(20.0), Score(40.0)])).expression.mean
        30.0
    """

    step: int
    trait: str
    expression: Expression


class TraitEvaluation(RefusingCallback):
    """Generate answers to held-out questions during training, unsteered, and have a judge score how much they show each
    trait. It changes nothing in the run.

    Before step 1, every ``every_n_steps`` optimizer steps if that is set, and at the end, each trait's evaluation
    questions are answered by the model as it is; ``persona/{trait}/expression`` with ``.../expression_low`` and
    ``_high`` (95 % interval) and ``persona/{trait}/unscored`` are logged, and a table of the answers (the fields of
    :class:`~persona_callbacks.judging.JudgedAnswer`, and answer and score before training) goes to loggers that have
    tables. With several processes, each answers its share of the questions.

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
        rows: every answer so far, with its score.

    Raises:
        InputError: no trait, a trait with neither a judge nor a vector that holds a calibration, or a number of steps
            or questions that cannot be.

    Example:
        >>> from persona_callbacks import Trait, TraitEvaluation
        >>> from persona_callbacks.judging import Score
        >>> class CountsShouting:
        ...     name = "shouting"
        ...     def score(self, answers, advance=lambda done: None):
        ...         return [Score(100.0 if answer.response.isupper() else 0.0) for answer in answers]
        >>> loud = Trait("loud", "Shouting.", (), ("Why?",), (), evaluation_questions=("Who are you?",), rubric="")
        >>> callbacks = [TraitEvaluation([loud], judges={"loud": CountsShouting()}, every_n_steps=50)]
    """

    way_out_of_sharding = "evaluate the saved adapter after the fit (persona-evaluate)"

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
        self.traits = tuple(traits)
        self.judges = dict(judges or {})
        self.check([trait.name for trait in self.traits], 0, self.judges, every_n_steps, questions, sampling, tokenizer)
        self._calibrations = {vector.trait: vector.calibration for vector in vectors if vector.calibration is not None}
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
        self.rows: list[JudgedAnswer] = []
        self._resumed = False

    @classmethod
    def check(
        cls,
        traits: Sequence[str],
        num_layers: int,
        judges: Mapping[str, Judge] | None = None,
        every_n_steps: int | None = None,
        questions: int | None = None,
        sampling: Sampling | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Check the callback's settings before there are vectors, and so calibrations.

        Args:
            traits: names of those to evaluate.
            num_layers: blocks of the model.
            judges: and all others, as for the callback.
            every_n_steps: see there.
            questions: see there.
            sampling: see there.
            tokenizer: see there.

        Raises:
            InputError: settings that cannot be.
        """
        del num_layers, judges, sampling, tokenizer  # any will do
        if not traits:
            raise InputError(f"{cls.__name__}: expected at least one trait, found none")
        check_at_least_one(cls.__name__, every_n_steps=every_n_steps, questions=questions)

    @override
    def facts(self) -> dict[str, Any]:
        """What loggers record of the evaluation."""
        return {
            "traits": [trait.name for trait in self.traits],
            "questions": self.questions,
            "every_n_steps": self.every_n_steps,
            "sampling": self.sampling,
            "judges": {
                trait.name: self.judges[trait.name].name if trait.name in self.judges else "contrastive"
                for trait in self.traits
            },
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """All evaluations and answers so far."""
        return {
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "rows": [asdict(row) for row in self.rows],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore evaluations and answers."""
        self.evaluations = [
            Evaluation(saved["step"], saved["trait"], Expression(**saved["expression"]))
            for saved in state_dict["evaluations"]
        ]
        # Checkpoints of older versions hold the values alone, in the order of the first columns.
        self.rows = [
            JudgedAnswer.from_row(row if isinstance(row, dict) else dict(zip(_COLUMNS, row, strict=False)))
            for row in state_dict["rows"]
        ]
        self._resumed = bool(self.evaluations)  # else the checkpoint is of before the fit

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find model, tokenizer and judges.

        Raises:
            MisconfigurationException: the contrastive judge is needed, and there is no adapter to get back to the base
                model by.
        """
        model = self.find_model(trainer, pl_module)
        model_id = dimensions(model).model_id
        tokenizer = self.tokenizer or find_tokenizer("TraitEvaluation", trainer, pl_module, model_id)
        self._loaded = LoadedModel(model, tokenizer, model_id)
        contrastive = [trait for trait in self.traits if trait.name not in self.judges]
        if contrastive and not removable_adapters(model):
            raise MisconfigurationException(
                f"TraitEvaluation: the contrastive judge of {contrastive[0].name!r} scores with the base model, and"
                " this model has no adapter that could be disabled; pass judges={...} for a full fine-tuning"
            )
        self._used = {
            **{t.name: ContrastiveJudge(self._loaded, t, self._calibrations[t.name]) for t in contrastive},
            **self.judges,
        }

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before the first step."""
        if not self._resumed:
            self.evaluations, self.rows = [], []
            self._evaluate(trainer)
        self._resumed = False
        self._step_seen = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate when an optimizer step has made it due."""
        if trainer.global_step == self._step_seen:
            return  # gradients are still being accumulated
        self._step_seen = trainer.global_step
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate at the end, unless the last step did."""
        if averages_weights(trainer):
            return  # the weights that the fit ends with may not be in the model yet
        if not self.evaluations or self.evaluations[-1].step != trainer.global_step:
            self._evaluate(trainer)
        self._table(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate averaged weights, which another callback puts into the model in ``on_train_end``; or evaluate if
        there was nothing left to train: such a resumed run does not pass through ``on_train_end``.
        """
        step = trainer.global_step
        nothing_trained = self._resumed and self.evaluations[-1].step != step
        if nothing_trained or (not self._resumed and averages_weights(trainer)):
            self.evaluations = [evaluation for evaluation in self.evaluations if evaluation.step != step]
            self.rows = [row for row in self.rows if row.step != step]
            with back_on_device(trainer, pl_module):
                self._evaluate(trainer)
            self._table(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        for trait in self.traits:
            questions = trait.evaluation_questions[: self.questions]
            share = questions[trainer.global_rank :: trainer.world_size]
            answers = self._answers(share)
            scores, error = self._scores(self._used[trait.name], answers)
            if error is not None:
                rank_zero_warn(
                    f"TraitEvaluation: the judge of {trait.name!r} failed, its answers have no score:"
                    f" {type(error).__name__}: {error}"
                )
            judged = _from_all_processes(trainer, list(zip(answers, scores, strict=True)))
            result = Expression.of([score for _, score in judged])
            self.evaluations.append(Evaluation(trainer.global_step, trait.name, result))
            self.rows += [JudgedAnswer.of(trainer.global_step, trait.name, *pair) for pair in judged]
            values = {metrics.unscored(trait.name): float(result.unscored)}
            if result.scored:
                names = metrics.with_interval(metrics.expression(trait.name))
                values |= dict(zip(names, (result.mean, result.low, result.high), strict=True))
            metrics.log(trainer, values)

    def _answers(self, questions: Sequence[str]) -> list[Answer]:
        """The model's answers; before training, they are those of the base model."""
        rows = base_work(
            self._loaded.model,
            "answers",
            [questions, self.sampling],
            lambda: [asdict(answer) for answer in answer_questions(self._loaded, questions, self.sampling)],
        )
        return [Answer(**row) for row in rows]

    def _scores(self, judge: Judge, answers: Sequence[Answer]) -> tuple[list[Score], Exception | None]:
        """The judge's scores; those of the contrastive judge for the base model's answers are work on that model."""
        if not isinstance(judge, ContrastiveJudge):
            return scores_or_error(judge, answers)
        try:
            rows = base_work(
                self._loaded.model,
                "scores",
                [judge.name, answers],
                lambda: [asdict(score) for score in judge.score(answers)],
            )
        except Exception as error:  # as scores_or_error does
            return [Score(None)] * len(answers), error
        return [Score(**row) for row in rows], None

    def _table(self, trainer: Trainer) -> None:
        """Log every answer, with that to the same question before training beside."""
        first = {(row.trait, row.question): (row.answer, row.score) for row in self.rows if row.step == 0}
        rows = [(*astuple(row), *first.get((row.trait, row.question), (None, None))) for row in self.rows]
        metrics.log_table(trainer, metrics.EXPRESSION_TABLE, [*_COLUMNS, *_BASE_COLUMNS], rows)


def _from_all_processes(trainer: Trainer, own: list[tuple[Answer, Score]]) -> list[tuple[Answer, Score]]:
    """What all processes hold, in the order of the questions."""
    if trainer.world_size == 1:
        return own
    shares: list[list[tuple[Answer, Score]]] = [[] for _ in range(trainer.world_size)]
    distributed.all_gather_object(shares, own)
    longest = max(len(share) for share in shares)
    return [share[row] for row in range(longest) for share in shares if row < len(share)]
