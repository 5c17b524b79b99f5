"""At which layer to read a persona vector: three kinds of evidence, and the choice.

Held-out AUC (see :mod:`persona_callbacks.extraction.contrast`) says how well a layer's direction separates trait
responses from others. It costs nothing extra, and it rises towards the last layers, which hold the words about to be
said. The steering effect says how much likelier the direction makes trait responses when it is added there; it takes a
minute and no generation. The steering sweep generates with it and judges the answers (Chen et al. 2025 choose so); it
is the slowest, and the only one that measures behaviour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from persona_callbacks.chats import Chat, EncodedChat, Message, encode_chat
from persona_callbacks.judging import Answer, Judge
from persona_callbacks.model import LoadedModel, Sampling, generate, probing, residual, response_log_probabilities

LayerChoice = Literal["effect", "auc", "sweep"]
"""By which evidence to choose."""

LAYER_CHOICES: tuple[LayerChoice, ...] = get_args(LayerChoice)

_COHERENT = 0.75
"""A layer at which steered text keeps less than this share of the unsteered coherence is not chosen by a sweep."""


@dataclass(frozen=True)
class Steered:
    """The model's answers when it is steered at one layer with one coefficient.

    Example:
        >>> unsteered = Steered(2, 0.0, expression=5.0, spread=1.0, coherence=90.0, answers=("Hi.",))
        >>> readable, garbled = Steered(2, 1.5, 40.0, 2.0, 80.0, ("Ha.",)), Steered(4, 1.5, 60.0, 2.0, 20.0, ("!",))
        >>> best_layer([readable, garbled], unsteered)
        2

    Attributes:
        layer: where the direction was added.
        coefficient: factor of the direction.
        expression: mean trait expression of the answers, 0 to 100; NaN if none could be scored.
        spread: standard error of that mean.
        coherence: mean coherence of the answers, 0 to 100; see :func:`coherence`.
        answers: the answers, in order of the questions.
    """

    layer: int
    coefficient: float
    expression: float
    spread: float
    coherence: float
    answers: tuple[str, ...]


def steering_effect(
    loaded: LoadedModel,
    trait_chats: Sequence[EncodedChat],
    opposite_chats: Sequence[EncodedChat],
    directions: Tensor,
    advance: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """By layer, what adding its direction there does to what the model would say.

    Measured as the rise of the mean log-probability per token of trait responses, less that of opposite responses. The
    chats must not hold the instructions that the responses were made under.

    Args:
        loaded: the model with its tokenizer.
        trait_chats: questions with responses that show the trait.
        opposite_chats: questions with responses that do not.
        directions: ``[num_layers + 1, hidden_size]``.
        advance: called after each layer.

    Returns:
        Nats per token for some fifteen layers, evenly spaced.
    """
    unsteered = _preference(loaded, trait_chats, opposite_chats)
    effects = {}
    for layer in candidate_layers(directions.shape[0] - 1, 15):
        with residual.steered(loaded.model, {layer: directions[layer]}):
            effects[layer] = _preference(loaded, trait_chats, opposite_chats) - unsteered
        advance()
    return effects


def candidate_layers(num_layers: int, count: int) -> list[int]:
    """About ``count`` layers, evenly spaced, without the embedding and the last layer."""
    step = max(1, num_layers // count)
    return list(range(step, num_layers, step))


def steered_expression(
    loaded: LoadedModel,
    judge: Judge,
    questions: Sequence[str],
    directions: Tensor,
    conditions: Sequence[tuple[int, float]],
    sampling: Sampling,
    advance: Callable[[], None] = lambda: None,
) -> list[Steered]:
    """Answer questions under each ``(layer, coefficient)``, and judge the answers.

    Args:
        loaded: the model.
        judge: scores trait expression.
        questions: without any instruction.
        directions: ``[num_layers + 1, hidden_size]``.
        conditions: which layer's direction to add there, times which coefficient.
        sampling: how to generate; the same random numbers for each condition.
        advance: called after each condition.
    """
    prompts: list[list[Message]] = [[{"role": "user", "content": question}] for question in questions]
    reference = None
    outcomes = []
    for layer, coefficient in conditions:
        additions = {layer: coefficient * directions[layer]} if coefficient else {}
        texts = generate(loaded, prompts, sampling, additions=additions)
        scores = judge.score([Answer(q, text) for q, text in zip(questions, texts, strict=True)])
        expressions = torch.tensor([score.expression for score in scores if score.expression is not None])
        if reference is None:
            unsteered = texts if not additions else generate(loaded, prompts, sampling)
            reference = _mean_log_probability(loaded, questions, unsteered)
        outcomes.append(
            Steered(
                layer,
                coefficient,
                float(expressions.mean()),
                float(expressions.std() / len(expressions) ** 0.5),
                coherence(loaded, questions, texts, reference),
                tuple(texts),
            )
        )
        advance()
    return outcomes


def coherence(loaded: LoadedModel, questions: Sequence[str], answers: Sequence[str], reference: float) -> float:
    """How readable answers are, 0 to 100, by two crude signs: text that the unsteered model finds less likely than its
    own (by the ratio of perplexities), and text that repeats itself (by the share of repeated word triples).

    Args:
        loaded: the model.
        questions: what was asked.
        answers: what was answered; empty answers count as 0.
        reference: mean log-probability per token of the model's own unsteered answers, in nats.
    """
    if not any(answers):
        return 0.0
    said = [(question, answer) for question, answer in zip(questions, answers, strict=True) if answer]
    likely = min(1.0, torch.tensor(_mean_log_probability(loaded, *zip(*said, strict=True)) - reference).exp().item())
    distinct = []
    for _, answer in said:
        words = answer.split()
        triples = list(zip(words, words[1:], words[2:], strict=False))
        distinct.append(len(set(triples)) / len(triples) if triples else 1.0)
    return 100 * likely * sum(distinct) / len(answers)


def best_layer(sweep: Sequence[Steered], unsteered: Steered) -> int:
    """The layer of greatest expression among those where the text keeps most of the unsteered text's coherence."""
    readable = [steered for steered in sweep if steered.coherence >= _COHERENT * unsteered.coherence]
    return max(readable or sweep, key=lambda steered: steered.expression).layer


def _mean_log_probability(loaded: LoadedModel, questions: Sequence[str], answers: Sequence[str]) -> float:
    chats = [
        Chat(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        for question, answer in zip(questions, answers, strict=True)
        if answer
    ]
    encoded = [encode_chat(chat, loaded.tokenizer) for chat in chats]
    with probing(loaded.model):
        return float(response_log_probabilities(loaded, encoded).mean())


def _preference(
    loaded: LoadedModel,
    trait_chats: Sequence[EncodedChat],
    opposite_chats: Sequence[EncodedChat],
) -> float:
    log_probabilities = response_log_probabilities(loaded, [*trait_chats, *opposite_chats])
    shows, others = log_probabilities.split([len(trait_chats), len(opposite_chats)])
    return float(shows.mean() - others.mean())
