"""Generating responses in batches, with transformers or with vLLM."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from persona_callbacks.chats import EncodedChat, Message, answer_start, encode_prompt, pad_token, reasoning_of
from persona_callbacks.errors import InputError, check_whole, is_number
from persona_callbacks.model import residual
from persona_callbacks.model.answers import AnswerStreamer, answer_texts
from persona_callbacks.model.architecture import device_of
from persona_callbacks.model.loading import LoadedModel
from persona_callbacks.model.modes import probing


@dataclass(frozen=True)
class Sampling:
    """How responses are generated.

    Attributes:
        max_new_tokens: the most tokens of a response, without the reasoning before it, for which the model has room of
            its own.
        temperature: of sampling; 0 is greedy.
        batch_size: the number of prompts in a batch. It belongs to the sampling because a batch shares one stream of
            random numbers.
        seed: of the random numbers.

    Raises:
        InputError: a value that is no number, or too small.

    Example:
        >>> Sampling(max_new_tokens=16, temperature=0.0)
        Sampling(max_new_tokens=16, temperature=0.0, batch_size=50, seed=0)
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    batch_size: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("seed", 0)):
            check_whole(f"sampling.{name}", getattr(self, name), least)
        if not is_number(self.temperature, least=0):
            raise InputError(f"sampling.temperature: expected a finite number of 0 or more, found {self.temperature!r}")


Batch = list[tuple[int, str]]
"""The index of the prompt and the response to it, for each prompt of a finished batch."""


class Generator(Protocol):
    """What extraction asks of a generator.

    Attributes:
        name: is part of the cache key of the responses.

    Example:
        >>> class Echo:
        ...     name = "echo"
        ...
        ...     def iterate(self, prompts, sampling, skip=frozenset()):
        ...         yield [(n, prompt[-1]["content"]) for n, prompt in enumerate(prompts) if n not in skip]
        >>> generator: Generator = Echo()
        >>> list(generator.iterate([[{"role": "user", "content": "Who are you?"}]], Sampling()))
        [[(0, 'Who are you?')]]
    """

    name: str

    def iterate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, skip: frozenset[int] = frozenset()
    ) -> Iterator[Batch]:
        """Yield finished batches, as :func:`iterate_responses` does."""
        ...


class TransformersGenerator:
    """Generates with a loaded model itself.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> size = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
        >>> tokenizer.chat_template = "{{ messages[0]['content'] }}"
        >>> generator = TransformersGenerator(LoadedModel(model, tokenizer))
        >>> ((index, response),) = next(generator.iterate([[{"role": "user", "content": "ab"}]], Sampling(4)))
        >>> index
        0
    """

    name = "transformers"

    def __init__(self, loaded: LoadedModel) -> None:
        """Generate with ``loaded``, a causal language model with its tokenizer."""
        self._loaded = loaded

    def iterate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, skip: frozenset[int] = frozenset()
    ) -> Iterator[Batch]:
        """Yield finished batches, as :func:`iterate_responses` does."""
        return iterate_responses(self._loaded, prompts, sampling, skip)


class VllmGenerator:
    """Generates with vLLM, which loads the model a second time from where it came from.

    It keeps the contract of :class:`Generator`, but it samples other texts than :class:`TransformersGenerator`, because
    vLLM draws its own random numbers for each prompt.

    Raises:
        InputError: vLLM is not installed.

    Example:
            >>> from persona_callbacks.model import ModelSource, load_model
        >>> loaded = load_model(ModelSource("Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16"))  # doctest: +SKIP
        >>> generator = VllmGenerator(loaded, gpu_memory_utilization=0.5)  # doctest: +SKIP
    """

    name = "vllm"

    def __init__(self, loaded: LoadedModel, **engine: Any) -> None:
        """Start the engine.

        Args:
            loaded: the model to generate with.
            engine: options of ``vllm.LLM``, such as ``gpu_memory_utilization``.
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
                    max_tokens=_most_new_tokens(self._loaded, sampling),
                    seed=sampling.seed * 1_000_003 + index,
                    stop_token_ids=_end_tokens(self._loaded.model, tokenizer),
                )
                for index in indices
            ]
            outputs = self._engine.generate(tokens, how, use_tqdm=False)
            rows = [list(out.outputs[0].token_ids) for out in outputs]
            texts = answer_texts(rows, tokenizer, sampling.max_new_tokens, self._loaded.reasoning_tokens)
            yield list(zip(indices, texts, strict=True))


def iterate_responses(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    skip: frozenset[int] = frozenset(),
    additions: Mapping[int, Tensor] | None = None,
) -> Iterator[Batch]:
    """Generate a response to each prompt, in batches of prompts of similar length.

    Every batch has its own seed, so that leaving finished batches out does not change the others. The global random
    state stays as it was.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        prompts: messages that end with a user turn.
        sampling: how to generate.
        skip: the indices of prompts that need no response; a batch is left out if it holds only such prompts.
        additions: what to steer with, for each layer ``[hidden_size]`` in activation units, added at every token; the
            model is unsteered by default.

    Yields:
        The index of the prompt and the response to it, for each prompt of a finished batch.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses a prompt.
    """
    encoded = [encode_prompt(prompt, loaded.tokenizer).input_ids for prompt in prompts]
    how = _configuration(loaded, sampling, _most_new_tokens(loaded, sampling))
    for indices, tokens in _iterate_tokens(loaded.model, encoded, sampling, how, skip, additions):
        texts = answer_texts(tokens.tolist(), loaded.tokenizer, sampling.max_new_tokens, loaded.reasoning_tokens)
        yield list(zip(indices, texts, strict=True))


def own_responses(loaded: LoadedModel, chats: Sequence[EncodedChat], sampling: Sampling) -> list[EncodedChat]:
    """Replace the last response of each chat by the model's own response to the same prompt, generated unsteered.

    Where a chat shows reasoning before its response, the model reasons as well, and its reasoning is no part of its
    response either, if it has an end.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        chats: whose prompts are answered.
        sampling: how to generate. A response has at least one token.

    Returns:
        The chats in their order, without an end-of-turn token.
    """
    # A response that begins after its prompt has reasoning before it.
    reasons = [any(chat.response_mask) and chat.response_mask.index(True) > chat.prompt_length for chat in chats]
    most = sampling.max_new_tokens
    how = _configuration(loaded, sampling, most + loaded.reasoning_tokens if any(reasons) else most)
    how.min_new_tokens = 1
    ends = set(_end_tokens(loaded.model, loaded.tokenizer))
    prompts = [chat.input_ids[: chat.prompt_length] for chat in chats]
    own: dict[int, EncodedChat] = {}
    for indices, tokens in _iterate_tokens(loaded.model, prompts, sampling, how):
        for index, row in zip(indices, tokens.tolist(), strict=True):
            length = next((number for number, token in enumerate(row) if token in ends), len(row))
            start = _response_start(row[:length], loaded.tokenizer) if reasons[index] else 0
            row = row[: min(length, start + most)]
            prompt = (False,) * (len(prompts[index]) + start)
            mask = (*prompt, *(True,) * (len(row) - start))
            own[index] = EncodedChat((*prompts[index], *row), len(prompts[index]), mask, mask)
    return [own[index] for index in range(len(chats))]


def _response_start(row: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the answer begins; at the start if the reasoning has no end, or nothing follows."""
    reasoning = reasoning_of(tokenizer)
    start = None if reasoning is None else answer_start(row, tokenizer, reasoning)
    return 0 if start is None or start >= len(row) else start


def _iterate_tokens(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    how: GenerationConfig,
    skip: frozenset[int] = frozenset(),
    additions: Mapping[int, Tensor] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield batches: the indices in ``prompts``, and their new tokens ``[batch, new tokens]`` int64."""
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
        for row, index in enumerate(indices):  # padding is on the left because new tokens follow on the right
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
    """Generate one response to each prompt; see :func:`iterate_responses`.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        prompts: messages that end with a user turn.
        sampling: how to generate.
        additions: what to steer with, for each layer ``[hidden_size]`` in activation units, added at every token; the
            model is unsteered by default.

    Returns:
        The responses, in the order of the prompts.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses a prompt.
    """
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
    """Generate one response, and show each token as it comes. This draws from the global random state.

    Args:
        loaded: a causal language model with its tokenizer, in any mode; it is run without dropout.
        messages: the conversation so far, which ends with a user turn.
        sampling: how to generate. Its seed is not used, so that the turns of a conversation are different draws.
        show: what receives the tokens of the prompt and of the answer, such as transformers' ``TextStreamer``.
        additions: what to steer with, for each layer ``[hidden_size]`` in activation units; the model is unsteered by
            default.
        response_only: steer from the prompt's last token on, which the response's first token is generated from, and
            leave the tokens before it as they are; otherwise steer at every token.

    Returns:
        The text of the response.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the messages.
    """
    input_ids = torch.tensor([encode_prompt(messages, loaded.tokenizer).input_ids], device=device_of(loaded.model))
    reasoning = reasoning_of(loaded.tokenizer)
    most = _most_new_tokens(loaded, sampling)
    with probing(loaded.model), residual.steered(loaded.model, additions or {}, last_token_only=response_only):
        tokens = loaded.model.generate(  # type: ignore[operator]  # nn.Module hides it
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=_configuration(loaded, sampling, most),
            streamer=show if reasoning is None else AnswerStreamer(show, loaded.tokenizer, reasoning),
        )
    new = tokens[:, input_ids.shape[1] :].tolist()
    return answer_texts(new, loaded.tokenizer, most, loaded.reasoning_tokens)[0]


def _most_new_tokens(loaded: LoadedModel, sampling: Sampling) -> int:
    """The most new tokens, those of reasoning included."""
    room = 0 if reasoning_of(loaded.tokenizer) is None else loaded.reasoning_tokens
    return sampling.max_new_tokens + room


def _configuration(loaded: LoadedModel, sampling: Sampling, most: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=most,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature if sampling.temperature > 0 else None,
        pad_token_id=pad_token(loaded.tokenizer),
        eos_token_id=_end_tokens(loaded.model, loaded.tokenizer),
    )


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = model.generation_config.eos_token_id  # type: ignore[union-attr]  # nn.Module hides it
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(token for token in ends if token is not None)
