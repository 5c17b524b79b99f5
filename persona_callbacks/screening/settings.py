"""How a file is screened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from persona_callbacks.errors import InputError, is_number, is_whole

if TYPE_CHECKING:
    from persona_callbacks.model import LoadedModel

Method = Literal["exact", "approximate"]

LongRows = Literal["truncate", "reject"]


@dataclass(frozen=True)
class ScreeningSettings:
    """How a file is screened.

    Attributes:
        method: ``exact`` compares with the base model's own response to each prompt (6.1); ``approximate`` generates
            nothing (Appendix I).
        subset: the number of rows to screen, drawn at random (Appendix I); all rows if ``None``.
        checked: in an approximate screening, the number of rows that are also screened exactly, which shows how far off
            the approximation is.
        false_positive_rate: the share of the benign reference chats that the threshold of a trait flags.
        reference: the benign reference, a chat file; the one that ships if ``None``.
        max_length: tokens per chat.
        long_rows: what happens to longer chats: ``truncate`` cuts them at the end, ``reject`` leaves them out; they are
            counted either way.
        max_new_tokens: tokens of each response that the base model generates.
        batch_size: chats whose responses are generated together.
        batch_tokens: tokens per forward pass that reads activations, padding included.
        shard_rows: rows per shard; an interruption costs at most the work on one shard.
        most_rejected: the share of rows that may be unusable.
        seed: of the draw of rows.

    Raises:
        InputError: a value outside its range; in :meth:`check_context`, chats longer than the model can take.

    Example:
        >>> ScreeningSettings("approximate", subset=200).checked
        40
    """

    method: Method = "exact"
    subset: int | None = None
    checked: int = 40
    false_positive_rate: float = 0.05
    reference: str | None = None
    max_length: int = 512
    long_rows: LongRows = "truncate"
    max_new_tokens: int = 64
    batch_size: int = 32
    batch_tokens: int = 2048
    shard_rows: int = 128
    most_rejected: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("method", get_args(Method)), ("long_rows", get_args(LongRows))):
            if getattr(self, name) not in choices:
                raise InputError(f"screening: {name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")
        for name in ("max_length", "max_new_tokens", "batch_size", "batch_tokens", "shard_rows"):
            if not is_whole(getattr(self, name), least=1):
                raise InputError(f"screening: {name} is {getattr(self, name)!r}; expected at least 1, a whole number")
        for name in ("false_positive_rate", "most_rejected"):
            if not is_number(getattr(self, name), 0, 1):
                raise InputError(f"screening: {name} is {getattr(self, name)!r}; expected a share, 0 to 1")
        if self.subset is not None and not is_whole(self.subset, least=2):
            raise InputError(f"screening: subset is {self.subset!r}; expected at least 2 rows, or null for all")
        for name in ("checked", "seed"):
            if not is_whole(getattr(self, name), least=0):
                raise InputError(f"screening: {name} is {getattr(self, name)!r}; expected 0 or more, a whole number")

    def check_context(self, model: LoadedModel) -> None:
        """Make sure that the longest chat fits into the model.

        Raises:
            InputError: it does not.
        """
        context = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
        generated = self.max_new_tokens if self.method == "exact" or self.checked else 0
        if context is not None and self.max_length + generated > context:
            raise InputError(
                f"screening: max_length {self.max_length} and {generated} generated tokens do not fit into the"
                f" {context} of {model.id}"
            )
