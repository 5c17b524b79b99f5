"""Generating responses in batches: by transformers, or by vLLM where it is installed and asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from persona_callbacks.chats import EncodedChat, Message, encode_prompt, pad_token
from persona_callbacks.errors import InputError
from persona_callbacks.model import residual
from persona_callbacks.model.architecture import device_of
from persona_callbacks.model.loading import LoadedModel
from persona_callbacks.model.modes import probing


@dataclass(frozen=True)
class Sampling:
    """How responses are generated; temperature 0 is greedy. ``batch_size`` is part of it, since a batch shares one
    stream of random numbers.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    batch_size: int = 50
    seed: int = 0


Batch = list[tuple[int, str]]
"""``(index of the prompt, response)`` for each prompt of a finished batch."""


class Generator(Protocol):
    """What extraction asks of a generator; ``name`` is part of the cache key of what it makes."""

    name: str

    def iterate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, skip: frozenset[int] = frozenset()
    ) -> Iterator[Batch]:
        """Yield finished batches; as :func:`iterate_responses`."""
        ...


class TransformersGenerator:
    """Generates with the loaded model itself."""

    name = "transformers"

    def __init__(self, loaded: LoadedModel) -> None:
        """Take the model to generate with."""
        self._loaded = loaded

    def iterate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, skip: frozenset[int] = frozenset()
    ) -> Iterator[Batch]:
        """Yield finished batches; see :func:`iterate_responses`."""
        return iterate_responses(self._loaded, prompts, sampling, skip)


class VllmGenerator:
    """Generates with vLLM, which loads the model a second time from where it came from.

    The contract of the results is the same; the sampled texts are not, since vLLM draws its own random numbers, by
    prompt.
    """

    name = "vllm"

    def __init__(self, loaded: LoadedModel, **engine: Any) -> None:
        """Start the engine; ``engine`` goes to ``vllm.LLM``, such as ``gpu_memory_utilization``.

        Raises:
            InputError: vLLM is not installed.
        """
        if find_spec("vllm") is None:
            raise InputError("generation=vllm: vLLM is not installed; pip install vllm, or use generation=transformers")
        import vllm

        self._vllm = vllm
        self._loaded = loaded
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        self._engine = vllm.LLM(model=loaded.location, dtype=dtype, **engine)

    def iterate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, skip: frozenset[int] = frozenset()
    ) -> Iterator[Batch]:
        """Yield finished batches of ``sampling.batch_size`` prompts."""
        tokenizer = self._loaded.tokenizer
        todo = [index for index in range(len(prompts)) if index not in skip]
        for start in range(0, len(todo), sampling.batch_size):
            indices = todo[start : start + sampling.batch_size]
            tokens = [{"prompt_token_ids": list(encode_prompt(prompts[i], tokenizer).input_ids)} for i in indices]
            how = [
                self._vllm.SamplingParams(
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    seed=sampling.seed * 1_000_003 + index,
                    stop_token_ids=_end_tokens(self._loaded.model, tokenizer),
                )
                for index in indices
            ]
            outputs = self._engine.generate(tokens, how, use_tqdm=False)
            yield [(index, out.outputs[0].text.strip()) for index, out in zip(indices, outputs, strict=True)]


def iterate_responses(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    skip: frozenset[int] = frozenset(),
    additions: Mapping[int, Tensor] | None = None,
) -> Iterator[Batch]:
    """Generate a response to each prompt, in batches of similar length.

    Every batch is seeded by itself, so that leaving out finished ones changes nothing in the others. The global random
    state is left as it was.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        prompts: messages that end with a user turn.
        sampling: how to generate.
        skip: indices that need no response; a batch is left out when all of it can be.
        additions: what to steer with, per layer ``[hidden_size]``, added at every token; unsteered by default.

    Yields:
        ``(index of the prompt, response)`` for each prompt of a finished batch.
    """
    encoded = [encode_prompt(prompt, loaded.tokenizer).input_ids for prompt in prompts]
    how = _configuration(loaded.model, loaded.tokenizer, sampling)
    for indices, tokens in _iterate_tokens(loaded.model, encoded, sampling, how, skip, additions):
        texts = loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        yield [(index, text.strip()) for index, text in zip(indices, texts, strict=True)]


def own_responses(loaded: LoadedModel, chats: Sequence[EncodedChat], sampling: Sampling) -> list[EncodedChat]:
    """The chats with the model's own response, of at least one token, in place of theirs. Never steered."""
    how = _configuration(loaded.model, loaded.tokenizer, sampling)
    how.min_new_tokens = 1
    ends = set(_end_tokens(loaded.model, loaded.tokenizer))
    prompts = [chat.input_ids[: chat.prompt_length] for chat in chats]
    own: dict[int, EncodedChat] = {}
    for indices, tokens in _iterate_tokens(loaded.model, prompts, sampling, how):
        for index, row in zip(indices, tokens.tolist(), strict=True):
            length = next((place for place, token in enumerate(row) if token in ends), len(row))
            ids = (*prompts[index], *row[:length])
            mask = tuple(place >= len(prompts[index]) for place in range(len(ids)))
            own[index] = EncodedChat(ids, len(prompts[index]), mask, mask)
    return [own[index] for index in range(len(chats))]


def _iterate_tokens(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    how: GenerationConfig,
    skip: frozenset[int] = frozenset(),
    additions: Mapping[int, Tensor] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of indices in ``prompts`` with their new tokens, ``[batch, new]`` int64."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    device = device_of(model)
    assert how.pad_token_id is not None
    for number, start in enumerate(range(0, len(order), sampling.batch_size)):
        indices = order[start : start + sampling.batch_size]
        if skip.issuperset(indices):
            continue
        length = max(len(prompts[index]) for index in indices)
        input_ids = torch.full((len(indices), length), int(how.pad_token_id))
        mask = torch.zeros_like(input_ids)
        for row, index in enumerate(indices):  # padded left: new tokens follow on the right
            ids = torch.tensor(prompts[index])
            input_ids[row, length - len(ids) :] = ids
            mask[row, length - len(ids) :] = 1
        devices = [device] if device.type == "cuda" else []
        with (
            probing(model),
            residual.steered(model, additions or {}),
            torch.random.fork_rng(devices=devices),
        ):
            torch.manual_seed(sampling.seed * 1_000_003 + number)
            tokens = model.generate(  # type: ignore[operator]  # nn.Module hides it
                input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=how
            )
        yield indices, tokens[:, length:]


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    additions: Mapping[int, Tensor] | None = None,
) -> list[str]:
    """One response to each prompt, in their order; see :func:`iterate_responses`."""
    responses = [""] * len(prompts)
    for batch in iterate_responses(loaded, prompts, sampling, additions=additions):
        for index, text in batch:
            responses[index] = text
    return responses


def stream_response(
    loaded: LoadedModel,
    messages: Sequence[Message],
    sampling: Sampling,
    show: BaseStreamer,
    additions: Mapping[int, Tensor] | None = None,
    *,
    response_only: bool = True,
) -> str:
    """Generate one response, each token shown as it comes. The global random state goes on with it.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        messages: of the conversation so far, ending with a user turn.
        sampling: how to generate; its seed is not set here, so that a conversation is not the same draw at every turn.
        show: is given the tokens, such as transformers' ``TextStreamer``.
        additions: what to steer with, per layer ``[hidden_size]``.
        response_only: steer from the prompt's last token on, which the response's first token is made from, and leave
            what comes before as it is.
    """
    input_ids = torch.tensor([encode_prompt(messages, loaded.tokenizer).input_ids], device=device_of(loaded.model))
    with probing(loaded.model), residual.steered(loaded.model, additions or {}, last_token_only=response_only):
        tokens = loaded.model.generate(  # type: ignore[operator]  # nn.Module hides it
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=_configuration(loaded.model, loaded.tokenizer, sampling),
            streamer=show,
        )
    return str(loaded.tokenizer.decode(tokens[0, input_ids.shape[1] :], skip_special_tokens=True)).strip()


def _configuration(model: nn.Module, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature if sampling.temperature > 0 else None,
        pad_token_id=pad_token(tokenizer),
        eos_token_id=_end_tokens(model, tokenizer),
    )


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = model.generation_config.eos_token_id  # type: ignore[union-attr]  # nn.Module hides it
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in ends if token is not None)
