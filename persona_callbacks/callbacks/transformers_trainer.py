"""The same callbacks for transformers' Trainer, and for the trainers of TRL."""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from typing_extensions import override

from persona_callbacks.callbacks.ablation import Ablation
from persona_callbacks.callbacks.monitor import PersonaMonitor
from persona_callbacks.callbacks.steering import PreventativeSteering
from persona_callbacks.errors import InputError
from persona_callbacks.files import atomic_write
from persona_callbacks.tracking import metrics

_STATE_FILE = "persona_callbacks.pt"


class TransformersCallback(TrainerCallback):
    """Monitor and steer a fine-tuning with transformers' ``Trainer``, or one of TRL's, such as ``SFTTrainer``.

    It runs the callbacks that it is given as Lightning would: from the start of each call of ``training_step`` to the
    end of the optimizer step, not in evaluation, and detached from the model after ``train``, an exception or Ctrl-C.
    What they measure goes through the trainer's log, under the same names, and so to every tracker of the trainer.
    Their state is saved in the trainer's checkpoints (``persona_callbacks.pt``), and is restored with
    ``resume_from_checkpoint``. The tokenizer is the trainer's ``processing_class``.

    Give it to the trainer when that is made, in ``callbacks=``, and not by ``add_callback``.

    Args:
        callbacks: :class:`PersonaMonitor`, :class:`PreventativeSteering` and :class:`Ablation`, in the order in which
            they are called.

    Raises:
        InputError: no callback, one of another kind, or two that watch or steer the same traits.

    Example:
        >>> import torch
        >>> from persona_callbacks import PersonaMonitor, PersonaVector, PreventativeSteering, TransformersCallback
        >>> evil = PersonaVector("evil", torch.ones(5, 8), layer=3, model_id="", probes=("Who are you?",))
        >>> callback = TransformersCallback(PersonaMonitor([evil]), PreventativeSteering([evil]))
        >>> # trainer = SFTTrainer(..., callbacks=[callback])
    """

    def __init__(self, *callbacks: PersonaMonitor | PreventativeSteering | Ablation) -> None:
        wrong = [type(one).__name__ for one in callbacks if not isinstance(one, _KINDS)]
        if wrong or not callbacks:
            raise InputError(
                f"TransformersCallback: expected {', '.join(kind.__name__ for kind in _KINDS)}, found"
                f" {wrong[0] if wrong else 'none'}"
            )
        if len({one.state_key for one in callbacks}) < len(callbacks):
            raise InputError(
                "TransformersCallback: two callbacks of one kind have the same traits; expected one of each"
            )
        self.callbacks = callbacks
        self._run: _Run | None = None
        self._resumed_from: str | None = None
        self._batch: Any = None

    @override
    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the trainer's ``train`` detach the callbacks, however it ends."""
        # Callbacks are told everything about their trainer but the trainer, and nothing about exceptions.
        frame = sys._getframe()
        while not isinstance(trainer := frame.f_locals.get("self"), transformers.Trainer):
            assert frame.f_back is not None  # the trainer's own method is among the callers
            frame = frame.f_back
        self._run = _Run(trainer, self.callbacks)
        trainer.train = self._detaching(trainer, trainer.train)  # type: ignore[method-assign]

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the callbacks' state, attach them, and take the first reading.

        Raises:
            MisconfigurationException: the callback came by ``add_callback``, the weights are split over processes, or
                the model is replicated in one process.
            InputError: as for the callbacks.
        """
        run, model = self._running(), kwargs["model"]
        run.refuse()
        run.callback_metrics.clear()
        self._restore()
        for callback in self.callbacks:
            callback.on_fit_start(run.as_trainer, model)
        for callback in self.callbacks:
            callback.on_train_start(run.as_trainer, model)
        metrics.flush(run.as_trainer)

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End a batch after which gradients are accumulated further."""
        self._end_batch()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End a batch with whose gradients the optimizer has made a step."""
        self._end_batch()

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the callbacks' state beside the trainer's."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with atomic_write(folder / _STATE_FILE) as scratch:
                torch.save({callback.state_key: callback.state_dict() for callback in self.callbacks}, scratch)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading."""
        run = self._running()
        for callback in self.callbacks:
            callback.on_train_end(run.as_trainer, run.module)
        metrics.flush(run.as_trainer)

    def _running(self) -> "_Run":
        if self._run is None:
            raise MisconfigurationException(
                "TransformersCallback: the trainer was made without it; give it in callbacks= when the trainer is made,"
                " and not by add_callback, so that it is detached when training fails"
            )
        return self._run

    def _detaching(self, trainer: transformers.Trainer, train: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train)
        def training(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            run = self._running()
            self._resumed_from = (
                get_last_checkpoint(trainer.args.output_dir)
                if resume_from_checkpoint is True
                else resume_from_checkpoint or None
            )
            own = trainer.__dict__.get("training_step")
            trainer.training_step = self._bracketed(trainer.training_step)  # type: ignore[method-assign]
            try:
                result = train(resume_from_checkpoint, *args, **kwargs)
                for callback in self.callbacks:
                    callback.on_fit_end(run.as_trainer, run.module)
                metrics.flush(run.as_trainer)
                return result
            except BaseException as error:
                for callback in self.callbacks:
                    callback.on_exception(run.as_trainer, run.module, error)
                raise
            finally:
                del trainer.__dict__["training_step"]  # the class's own shows again
                if own is not None:
                    trainer.training_step = own  # type: ignore[method-assign]

        return training

    def _bracketed(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(training_step)
        def step(model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            run, self._batch = self._running(), inputs
            for callback in self.callbacks:
                callback.on_train_batch_start(run.as_trainer, run.module, inputs, 0)
            metrics.flush(run.as_trainer)
            return training_step(model, inputs, *args, **kwargs)

        return step

    def _end_batch(self) -> None:
        run, batch = self._running(), self._batch
        self._batch = None
        # A reading is of the model as it is, whichever callback comes first: writers are off in it.
        for callback in self.callbacks:
            callback.on_train_batch_end(run.as_trainer, run.module, None, batch, 0)
        metrics.flush(run.as_trainer)  # before the trainer's step goes on, which it logs by

    def _restore(self) -> None:
        if self._resumed_from is None:
            return
        file = Path(self._resumed_from) / _STATE_FILE
        if not file.is_file():
            rank_zero_warn(
                f"TransformersCallback: {file} is missing, so that baseline, readings and coefficients begin anew"
            )
            return
        states = torch.load(file, weights_only=True)
        for callback in self.callbacks:
            if callback.state_key in states:
                callback.load_state_dict(states[callback.state_key])


_KINDS = (PersonaMonitor, PreventativeSteering, Ablation)


class _Run:
    """What the callbacks ask a Lightning trainer, answered by transformers' trainer."""

    def __init__(self, trainer: transformers.Trainer, callbacks: tuple[Callback, ...]) -> None:
        self._trainer = trainer
        self.callbacks = list(callbacks)
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged_metrics: dict[str, Tensor] = {}
        self.loggers = [_TrainerLog(trainer)]
        self.strategy = SimpleNamespace(reduce=self._reduce, root_device=trainer.args.device)

    @property
    def as_trainer(self) -> Trainer:
        return cast(Trainer, self)

    @property
    def module(self) -> LightningModule:
        """The model, in the place of the module around it."""
        return cast(LightningModule, self._trainer.model)

    @property
    def datamodule(self) -> SimpleNamespace:
        """Where a tokenizer is looked for."""
        return SimpleNamespace(tokenizer=self._trainer.processing_class)

    @property
    def global_step(self) -> int:
        return int(self._trainer.state.global_step)

    @property
    def estimated_stepping_batches(self) -> int:
        return int(self._trainer.state.max_steps)

    @property
    def log_every_n_steps(self) -> int:
        """0 if nothing is logged; once an epoch if that is the trainer's way."""
        args, state = self._trainer.args, self._trainer.state
        ways = {"no": 0, "epoch": -(-state.max_steps // state.num_train_epochs)}
        return int(ways.get(args.logging_strategy, state.logging_steps))

    @property
    def train_dataloader(self) -> Any:
        return self._trainer.callback_handler.train_dataloader

    @property
    def global_rank(self) -> int:
        return int(self._trainer.args.process_index)

    @property
    def world_size(self) -> int:
        return int(self._trainer.args.world_size)

    @property
    def is_global_zero(self) -> bool:
        return bool(self._trainer.is_world_process_zero())

    def refuse(self) -> None:
        """Refuse what cannot be read and written.

        Raises:
            MisconfigurationException: the weights are split over processes, or the model is replicated in one process.
        """
        trainer = self._trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise MisconfigurationException(
                "TransformersCallback: DeepSpeed and FSDP split the weights over processes, which is not supported yet;"
                " use plain data parallelism (accelerate launch, torchrun) or one device"
            )
        if trainer.args.n_gpu > 1:
            raise MisconfigurationException(
                f"TransformersCallback: the trainer replicates the model on {trainer.args.n_gpu} GPUs in one process"
                " (DataParallel), and replicas cannot be read; start it by torchrun or accelerate launch, or show it"
                " one GPU (CUDA_VISIBLE_DEVICES)"
            )

    def _reduce(self, values: Tensor, reduce_op: str) -> Tensor:
        reduced = self._trainer.accelerator.reduce(values, reduction=reduce_op)
        assert isinstance(reduced, Tensor)
        return reduced


class _TrainerLog:
    """Writes to the log of transformers' trainer, in the place of Lightning's loggers."""

    def __init__(self, trainer: transformers.Trainer) -> None:
        self._trainer = trainer

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log values; the trainer adds its own step, which is the same."""
        control = self._trainer.control
        due = control.should_log
        # Not a subclass's own: TRL's would empty its averages into this entry.
        transformers.Trainer.log(self._trainer, dict(metrics))
        self._trainer.control.should_log = due  # logging settles what is due, and the trainer's loss may be
