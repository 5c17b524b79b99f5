"""Generating responses in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from persona_callbacks import residual
from persona_callbacks.chats import Message, encode_prompt, pad_token


@dataclass(frozen=True)
class Sampling:
    """How responses are generated; temperature 0 is greedy. ``batch_size`` is part of it, since a batch shares one
    stream of random numbers.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    batch_size: int = 50
    seed: int = 0


def iterate_responses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    skip: frozenset[int] = frozenset(),
) -> Iterator[list[tuple[int, str]]]:
    """Generate a response to each prompt, in batches of similar length.

    Every batch is seeded by itself, so that leaving out finished ones changes nothing in the others. The global random
    state is left as it was.

    Args:
        model: a causal language model, in any mode; it is run without dropout and unsteered.
        tokenizer: with a chat template.
        prompts: messages that end with a user turn.
        sampling: how to generate.
        skip: indices that need no response; a batch is left out when all of it can be.

    Yields:
        ``(index of the prompt, response)`` for each prompt of a finished batch.
    """
    encoded = [encode_prompt(prompt, tokenizer).input_ids for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    device = residual.device_of(model)
    pad_id = pad_token(tokenizer)
    how = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature if sampling.temperature > 0 else None,
        pad_token_id=pad_id,
        eos_token_id=_end_tokens(model, tokenizer),
    )
    for number, start in enumerate(range(0, len(order), sampling.batch_size)):
        indices = order[start : start + sampling.batch_size]
        if skip.issuperset(indices):
            continue
        length = max(len(encoded[index]) for index in indices)
        input_ids = torch.full((len(indices), length), pad_id)
        mask = torch.zeros_like(input_ids)
        for row, index in enumerate(indices):  # padded left: new tokens follow on the right
            ids = torch.tensor(encoded[index])
            input_ids[row, length - len(ids) :] = ids
            mask[row, length - len(ids) :] = 1
        devices = [device] if device.type == "cuda" else []
        with residual.probing(model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(sampling.seed * 1_000_003 + number)
            tokens = model.generate(  # type: ignore[operator]  # nn.Module hides it
                input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=how
            )
        texts = tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
        yield [(index, text.strip()) for index, text in zip(indices, texts, strict=True)]


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    advance: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """One response to each prompt, in their order. ``advance`` is called with the number done after each batch."""
    responses = [""] * len(prompts)
    for batch in iterate_responses(model, tokenizer, prompts, sampling):
        for index, text in batch:
            responses[index] = text
        advance(len(batch))
    return responses


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = model.generation_config.eos_token_id  # type: ignore[union-attr]  # nn.Module hides it
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in ends if token is not None)
