"""Rows of a batch that hold several chats, one after the other."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from persona_callbacks.callbacks._seams import field_of

_ENDS = ("cu_seqlens", "cu_seq_lens_q", "cu_seqlens_q")
"""Names under which collators that pack give where each chat begins and the last ends."""

_PASSED = (
    "position_ids", *_ENDS, "cu_seq_lens_k", "cu_seqlens_k", "max_length_q", "max_length_k", "max_seqlen_q",
    "max_seqlen_k", "seq_idx",
)  # fmt: skip
"""What keeps the chats of a row apart in a model."""


def chat_numbers(callback: str, batch: Any) -> Tensor | None:
    """For each token, the number of its chat within its row, from 0: ``[batch, length]`` int64. ``None`` if the batch
    says nothing of several chats in a row.

    Chats begin where ``position_ids`` do not rise, or where ``cu_seqlens`` says.

    Raises:
        MisconfigurationException: ``cu_seqlens`` does not count the tokens of a single row.
    """
    ids = field_of(batch, "input_ids")
    if ids is None or ids.ndim != 2:
        return None
    ends = next((value for value in (field_of(batch, name) for name in _ENDS) if value is not None), None)
    if ends is not None:
        if ids.shape[0] != 1 or ends.ndim != 1:
            raise MisconfigurationException(
                f"{callback}: cu_seqlens of shape {tuple(ends.shape)} with input_ids of shape {tuple(ids.shape)};"
                " expected a single row in which chats follow each other. Give position_ids that begin anew instead"
            )
        places = torch.arange(ids.shape[1], device=ids.device)
        return torch.bucketize(places, ends[1:-1].to(places), right=True)[None]
    positions = field_of(batch, "position_ids")
    if positions is None:
        return None
    if positions.ndim == 3:  # several kinds of position, of which text has the first
        positions = positions[0]
    if positions.ndim == 1:
        positions = positions[None]
    if positions.shape[-1] != ids.shape[1]:
        return None
    begins = positions[:, 1:] <= positions[:, :-1]
    return torch.nn.functional.pad(begins.long().cumsum(dim=1), (1, 0)).expand(ids.shape)


def apart(batch: Any) -> dict[str, Any]:
    """What a model must be given beside the tokens so that the chats of a row stay apart."""
    values = {name: batch.get(name) for name in _PASSED}
    return {name: value for name, value in values.items() if value is not None}


def chat_weights(marked: Tensor, numbers: Tensor | None) -> Tensor:
    """How much each token counts in the mean over its chat's marked tokens.

    Args:
        marked: ``[batch, length]`` bool.
        numbers: as :func:`chat_numbers` gives them; by default each row is a chat.

    Returns:
        ``[chats of a row, batch, length]`` float32. Each row sums to 1, or to 0 where no token is marked.
    """
    if numbers is None:
        own = marked[None]
    else:
        most = int(numbers.max()) + 1
        own = (numbers == torch.arange(most, device=numbers.device)[:, None, None]) & marked
        own = own[own.any(dim=(1, 2))]  # padding may look like further chats
    weights: Tensor = (own / own.sum(dim=-1, keepdim=True).clamp_min(1)).float()
    return weights
