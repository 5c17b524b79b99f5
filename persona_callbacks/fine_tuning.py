"""LoRA fine-tuning of a causal language model on chats: a module and a data module for those without their own."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from persona_callbacks import metrics
from persona_callbacks.chats import Chat, EncodedChat, encode_chat, pad, pad_token
from persona_callbacks.errors import InputError


class ChatData(LightningDataModule):
    """Chats, shuffled each epoch, right-padded, with the loss on assistant tokens only.

    The loader remembers its place, so that a run resumed in the middle of an epoch sees the batches it would have seen.

    Args:
        chats: such as :func:`~persona_callbacks.chat_files.read_chats` gives.
        tokenizer: a fast tokenizer with a chat template.
        batch_size: chats per batch.
        max_length: tokens per chat; longer ones are cut at the end.
        seed: of the order.
        weights: one per chat, 1 on average; in each epoch a chat is drawn as often, rounded up or down at random. By
            default each once.
    """

    def __init__(
        self,
        chats: Sequence[Chat],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        max_length: int = 512,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Encode the chats.

        Raises:
            InputError: see :func:`~persona_callbacks.chats.encode_chat`; or not one weight per chat.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        if weights is not None and len(weights) != len(chats):
            raise InputError(f"ChatData: {len(weights)} weights for {len(chats)} chats; expected one for each")
        self.weights = weights
        self.chats = [encode_chat(chat, tokenizer, max_length) for chat in chats]

    def train_dataloader(self) -> "ResumableLoader":
        """Batches of ``input_ids``, ``attention_mask`` and ``labels``, each ``[batch, length]``."""
        assert self.trainer is not None
        pad_id = pad_token(self.tokenizer)
        chats = cast("Dataset[Any]", self.chats)
        return ResumableLoader(
            chats,
            batch_size=self.batch_size,
            sampler=_Order(chats, self.trainer.world_size, self.trainer.global_rank, self.seed, self.weights),
            collate_fn=lambda chats: pad(chats, pad_id),
            generator=torch.Generator(),  # else each pass would draw from the random state that dropout uses
        )


class _Order(DistributedSampler[int]):
    """A process's share of the samples, in an order that follows from seed and epoch alone."""

    skip = 0
    """Samples to leave out at the start of the next pass."""

    def __init__(
        self, chats: Dataset[Any], processes: int, rank: int, seed: int, weights: Sequence[float] | None
    ) -> None:
        super().__init__(chats, processes, rank, seed=seed)
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def __iter__(self) -> Iterator[int]:
        skip, self.skip = self.skip, 0
        order = super().__iter__() if self._weights is None else iter(self._drawn(self._weights))
        return islice(order, skip, None)

    def _drawn(self, weights: Tensor) -> list[int]:
        """As many samples as there are, by systematic resampling: as often as the weight, up to rounding."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        ends = weights.cumsum(0) * len(weights) / weights.sum()
        places = torch.arange(len(weights)) + torch.rand((), generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(ends, places, right=True).clamp_max(len(weights) - 1)
        mixed = drawn[torch.randperm(len(drawn), generator=generator)].tolist()
        return [mixed[place % len(mixed)] for place in range(self.rank, self.total_size, self.num_replicas)]


class ResumableLoader(DataLoader[EncodedChat]):
    """A loader that Lightning can ask for its place, and put back there, in the middle of an epoch."""

    sampler: _Order
    _given = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]  # Lightning takes any iterator
        """Batches from where the loader was put, else from the start."""
        self._given = self.sampler.skip // (self.batch_size or 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches given in the current epoch; none after its last."""
        return {"batches": self._given % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next pass after so many batches."""
        self.sampler.skip = state_dict["batches"] * (self.batch_size or 1)


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
        self._random_states: dict[str, Any] = {}

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

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the adapter, and its schedule per optimizer step."""
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return step / self.warmup_steps
            # Asked for only once training runs: earlier, Lightning would set the data up before it restores a
            # checkpoint, and lose the loader's place.
            total = self.trainer.estimated_stepping_batches if step else math.inf
            return max(0.0, 1 - (step - self.warmup_steps) / max(1, total - self.warmup_steps))

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

    def save_adapter(self, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        self.model.save_pretrained(folder)
