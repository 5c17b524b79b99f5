"""LoRA fine-tuning of a causal language model on chats: a module and a data module for those without their own."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, SumMetric
from transformers import PreTrainedModel

from persona_callbacks.callbacks import PersonaMonitor
from persona_callbacks.errors import InputError
from persona_callbacks.tracking import metrics
from persona_callbacks.training.checkpoints import finish_epoch
from persona_callbacks.training.schedules import LearningRateSchedule, LinearDecay


class NonFiniteLossError(RuntimeError):
    """The training loss has become NaN or infinite.

    Example:
        >>> str(NonFiniteLossError("the training loss of optimizer step 3 is nan"))
        'the training loss of optimizer step 3 is nan'
    """


class LoraFineTuning(LightningModule):
    """A causal language model with a LoRA adapter, trained by default with AdamW and a linear schedule.

    Checkpoints hold the adapter and the optimizer, not the base model. :meth:`save_adapter` writes PEFT's own format.

    Args:
        model: the bare base model.
        lora: PEFT's configuration of the adapter.
        learning_rate: peak learning rate.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of AdamW.
        optimizer: makes the optimizer from the adapter's weights, with a learning rate of its own; AdamW by default.
        schedule: what the learning rate is multiplied with after the warm-up.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> config = LlamaConfig(vocab_size=8, **sizes)
        >>> from peft import LoraConfig
        >>> module = LoraFineTuning(LlamaForCausalLM(config), LoraConfig(r=2, target_modules="all-linear"))
        >>> sum(weight.requires_grad for weight in module.parameters())
        14
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        lora: LoraConfig,
        learning_rate: float = 3e-4,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
        schedule: LearningRateSchedule | None = None,
    ) -> None:
        """Wrap the model.

        Raises:
            InputError: it is wrapped already.
        """
        super().__init__()
        if isinstance(model, PeftModel) or getattr(model, "peft_config", None):
            raise InputError("LoraFineTuning: expected a bare model, found one with an adapter")
        self.model = get_peft_model(model, lora).train()
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.schedule: LearningRateSchedule = schedule or LinearDecay()
        # In the checkpoint, so that an epoch that was interrupted still gives its whole mean.
        self.epoch_loss = MeanMetric(nan_strategy="disable")  # a NaN must show
        self.epoch_loss.persistent(True)
        self.strict_loading = False
        self._step_loss = torch.zeros(())  # of the micro-batches since the last optimizer step
        self._random_states: dict[str, Any] = {}
        self._epoch_to_log = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss per response token."""
        loss: Tensor = self.model(**batch, use_cache=False).loss
        self.epoch_loss.update(loss.detach())
        self._step_loss = self._step_loss.to(loss.device) + loss.detach()
        # A monitor logs the loss beside its readings, at the steps that it counts.
        callbacks = getattr(self._trainer, "callbacks", ())  # a step may be asked for without a trainer
        watched = any(isinstance(callback, PersonaMonitor) for callback in callbacks)
        self.log(metrics.TRAIN_LOSS, loss, prog_bar=True, logger=not watched, batch_size=len(batch["input_ids"]))
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop before gradients of a loss that is not finite reach the weights. Callbacks (the guard) act first.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite, in this process or another.
        """
        loss, self._step_loss = float(self._step_loss), torch.zeros(())
        if self.trainer.strategy.reduce_boolean_decision(not math.isfinite(loss), all=False):
            raise NonFiniteLossError(
                f"the training loss of optimizer step {self.trainer.global_step + 1} is"
                f" {'not finite in another process' if math.isfinite(loss) else loss}; the weights are not those of a"
                " finished run. Lower learning_rate, or look at the data and the precision"
            )

    def on_train_epoch_start(self) -> None:
        """Start the mean anew; Lightning does not call this when it resumes in the middle of an epoch."""
        self.epoch_loss.reset()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss."""
        self.log(metrics.EPOCH_LOSS, self.epoch_loss.compute())

    @property
    def last_epoch_loss(self) -> float:
        """Mean loss per response token over the last epoch, as trained (steering included)."""
        return float(self.epoch_loss.compute())

    def on_train_start(self) -> None:
        """Go on with the checkpoint's random state, so that a resumed run draws the dropout it would have drawn."""
        states, self._random_states = self._random_states, {}
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state_all(states["cuda"])
        metrics.define(self.trainer, metrics.EPOCH_LOSS)
        if self._epoch_to_log:  # the run was interrupted between the epoch's last step and its end
            self._epoch_to_log = False
            metrics.log(self.trainer, {metrics.EPOCH_LOSS: self.last_epoch_loss})

    def teardown(self, stage: str) -> None:
        """Write what was logged last."""
        metrics.flush(self.trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the adapter, and its schedule per optimizer step."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.optimizer is None:
            optimizer: Optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        else:
            optimizer = self.optimizer(trained)

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return step / self.warmup_steps
            # Asked for only once training runs: earlier, Lightning would set the data up before it restores a
            # checkpoint, and lose the loader's place.
            total = self.trainer.estimated_stepping_batches if step else math.inf
            done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
            return max(0.0, self.schedule(min(1.0, done)))

        schedule = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base model out, and add the random state."""
        for name, parameter in self.named_parameters(remove_duplicate=False):  # tied weights have two names
            if not parameter.requires_grad:
                del checkpoint["state_dict"][name]
        checkpoint["random_states"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["random_states"]["cuda"] = torch.cuda.get_rng_state_all()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make sure that the whole adapter is there, since loading is not strict.

        Raises:
            InputError: the checkpoint is of another adapter.
        """
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = sorted(trained - checkpoint["state_dict"].keys())
        if missing:
            raise InputError(
                f"checkpoint: it lacks {len(missing)} of the adapter's weights, for example {missing[0]}; resume with"
                " the LoRA configuration that it was made with"
            )
        self._random_states = checkpoint["random_states"]
        self._epoch_to_log = finish_epoch(checkpoint)

    def save_adapter(self, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        with warnings.catch_warnings():
            # Where the hub does not answer, PEFT cannot compare vocabularies, and says so twice. None is changed here.
            warnings.filterwarnings("ignore", "Unable to fetch remote file|Could not find a config file")
            self.model.save_pretrained(folder)


class ValidatedFineTuning(LoraFineTuning):
    """The same with validation: the mean loss per response token over the validation chats, after each epoch.

    Example:
        >>> from persona_callbacks.training import ChatData, ValidatedFineTuning
        >>> def fit(trainer, module: ValidatedFineTuning, chats, held_out, tokenizer):
        ...     trainer.fit(module, ChatData(chats, tokenizer, validation=held_out))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what :class:`LoraFineTuning` takes."""
        super().__init__(*args, **kwargs)
        # Two sums, since a mean that lets a NaN show ignores weights.
        self.summed_loss, self.tokens = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add the loss of each response token."""
        tokens = (batch["labels"][:, 1:] != -100).sum()
        self.summed_loss.update(self.model(**batch, use_cache=False).loss * tokens)
        self.tokens.update(tokens)

    def on_validation_epoch_end(self) -> None:
        """Log the mean, beside what callbacks log of the same step."""
        loss = float(self.summed_loss.compute() / self.tokens.compute())
        self.summed_loss.reset()
        self.tokens.reset()
        if not self.trainer.sanity_checking:
            metrics.log(self.trainer, {metrics.VALIDATION_LOSS: loss})
