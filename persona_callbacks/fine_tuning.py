"""LoRA fine-tuning of a causal language model on chats: a module and a data module for those without their own."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from persona_callbacks import metrics
from persona_callbacks.chats import Chat, EncodedChat, encode_chat, pad, pad_token
from persona_callbacks.errors import InputError


class ChatData(LightningDataModule):
    """Chats, shuffled each epoch, right-padded, with the loss on assistant tokens only.

    The loader remembers its place, so that a run resumed in the middle of an epoch sees the batches it would have seen.

    Args:
        chats: such as :func:`~persona_callbacks.chats.read_chats` gives.
        tokenizer: a fast tokenizer with a chat template.
        batch_size: chats per batch.
        max_length: tokens per chat; longer ones are cut at the end.
        seed: of the order.
    """

    def __init__(
        self,
        chats: Sequence[Chat],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        max_length: int = 512,
        seed: int = 0,
    ) -> None:
        """Encode the chats.

        Raises:
            InputError: see :func:`~persona_callbacks.chats.encode_chat`.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        self.chats = [encode_chat(chat, tokenizer, max_length) for chat in chats]

    def train_dataloader(self) -> StatefulDataLoader[EncodedChat]:
        """Batches of ``input_ids``, ``attention_mask`` and ``labels``, each ``[batch, length]``."""
        pad_id = pad_token(self.tokenizer)
        return StatefulDataLoader(
            self.chats,
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=lambda chats: pad(chats, pad_id),
        )


class LoraFineTuning(LightningModule):
    """A causal language model with a LoRA adapter, trained with AdamW and a linear schedule.

    Checkpoints hold the adapter and the optimizer, not the base model. :meth:`save_adapter` writes PEFT's own format.

    Args:
        model: the bare base model.
        lora: PEFT's configuration of the adapter.
        learning_rate: peak learning rate.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lora: LoraConfig,
        learning_rate: float = 3e-4,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
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
        # In the checkpoint, so that an epoch that was interrupted still gives its whole mean.
        self.epoch_loss = MeanMetric()
        self.epoch_loss.persistent(True)
        self.strict_loading = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss per response token."""
        loss: Tensor = self.model(**batch, use_cache=False).loss
        self.epoch_loss.update(loss.detach())
        self.log(metrics.TRAIN_LOSS, loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the mean anew, unless the epoch was begun before an interruption."""
        if self.trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0:
            self.epoch_loss.reset()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss."""
        self.log(metrics.EPOCH_LOSS, self.epoch_loss.compute())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the adapter, and its schedule per optimizer step."""
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, self.warmup_steps, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base model out."""
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make sure that the whole adapter is there, since loading is not strict.

        Raises:
            InputError: the checkpoint is of another adapter.
        """
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = sorted(trained - checkpoint["state_dict"].keys())
        if missing:
            raise InputError(
                f"checkpoint: it lacks {len(missing)} of the adapter's weights, for example {missing[0]}; resume with the"
                " LoRA configuration that it was made with"
            )

    def save_adapter(self, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        self.model.save_pretrained(folder)
