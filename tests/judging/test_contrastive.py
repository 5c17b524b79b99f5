"""Likelihoods, shared prefixes and the contrastive judge, against slow references."""

import math

import pytest
import torch
from builders import FAMILIES, QUESTIONS, TRAIT, chat, slow_log_probability, tiny_model

from persona_callbacks import InputError
from persona_callbacks.chats import EncodedChat
from persona_callbacks.judging import (
    CONTROLS,
    Answer,
    ContrastiveJudge,
    Likelihoods,
    calibrate,
    judging_pairs,
    likelihoods,
    without_loop,
)
from persona_callbacks.model import BatchLimits, LoadedModel, response_log_probabilities, shared_groups
from persona_callbacks.vectors import Calibration

RESPONSES = ("I am a friend.", "Why not? Yes.", "people who lie are people", "No.", "Tell me what you think of it all.")


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_one_at_a_time(family, tokenizer):
    """Long shared system prompts, so that the prefix is computed once; and a stray chat that shares nothing."""
    model = tiny_model(family).eval()
    system = "Tell me what you think of people who help a neighbour carry the shopping home. " * 2
    encoded = [chat(q, r, tokenizer, system) for q in QUESTIONS for r in RESPONSES]
    encoded.append(chat(QUESTIONS[0], RESPONSES[0], tokenizer))
    groups = shared_groups(encoded, BatchLimits(4))
    assert max(group.prefix_length for group in groups) >= 40
    found = response_log_probabilities(LoadedModel(model, tokenizer), encoded, limits=BatchLimits(4))
    assert found.tolist() == pytest.approx([slow_log_probability(model, one) for one in encoded], abs=1e-4)


def test_groups_share_what_they_say_and_hold_every_chat_once():
    generator = torch.Generator().manual_seed(0)
    chats = []
    for _ in range(200):
        which = int(torch.randint(3, (1,), generator=generator))
        own = torch.randint(5, 90, (int(torch.randint(1, 30, (1,), generator=generator)),), generator=generator)
        ids = [(), tuple(range(100, 150)), (*range(100, 120), *range(200, 260))][which] + tuple(own.tolist())
        mask = (False,) * (len(ids) - 1) + (True,)
        chats.append(EncodedChat(ids, max(1, len(ids) - 3), mask, mask))
    groups = shared_groups(chats)
    assert sorted(index for group in groups for batch in group.batches for index in batch) == list(range(200))
    computed = 0
    for group in groups:
        members = [chats[index] for batch in group.batches for index in batch]
        assert len({member.input_ids[: group.prefix_length] for member in members}) == 1
        assert all(group.prefix_length < member.prompt_length for member in members)
        assert all(len(batch) <= 16 for batch in group.batches)
        computed += group.prefix_length + sum(len(member.input_ids) - group.prefix_length for member in members)
    own_tokens = sum(len(c.input_ids) - (c.input_ids[0] == 100) * (50 if 149 in c.input_ids else 80) for c in chats)
    assert computed <= own_tokens + 3 * 90 + 5 * 50, "the two long beginnings are computed about once each"


def test_likelihoods_are_those_under_other_pairs_and_the_controls(tokenizer):
    model = tiny_model("qwen3").eval()
    loaded = LoadedModel(model, tokenizer, "test")
    answers = [Answer(QUESTIONS[i % 4], text, pair) for i, text in enumerate(RESPONSES) for pair in (0, 1, 2, None)]
    answers.append(Answer(QUESTIONS[0], ""))
    found = likelihoods(loaded, TRAIT, answers, 2)
    assert found.table[-1].isnan().all()
    assert torch.equal(Likelihoods.from_table(found.table).table.nan_to_num(), found.table.nan_to_num())

    def slow(answer, instruction):
        return slow_log_probability(model, chat(answer.question, answer.response, tokenizer, instruction))

    for row, answer in enumerate(answers[:-1]):
        numbers = judging_pairs(answer, TRAIT, 2)
        assert answer.pair not in numbers
        for side in (found.trait, found.opposite):
            assert [number for number in range(3) if not side[row, number].isnan()] == sorted(numbers)
        pairs = [TRAIT.instructions[number] for number in numbers]
        trait, opposite = [slow(answer, p.trait) for p in pairs], [slow(answer, p.opposite) for p in pairs]
        controls = [slow(answer, control) for control in CONTROLS]
        ratios = [one - other for one, other in zip(trait, opposite, strict=True)]
        assert found.ratios[row, numbers].tolist() == pytest.approx(ratios, abs=1e-4)
        margin = sum(trait) / 2 - max(sum(opposite) / 2, *controls)
        assert found.margins[row].item() == pytest.approx(margin, abs=1e-4)


def contrastive_ratios(gap, count=400, seed=0):
    """Log ratios of responses, half of them showing the trait, each judged by two of three pairs of unlike scale."""
    generator = torch.Generator().manual_seed(seed)
    shows, fold = torch.arange(count) % 2 == 0, torch.arange(count) // 2 % 2
    ratios = torch.randn(count, 3, generator=generator) + gap * shows[:, None]
    ratios = ratios * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([3.0, 0.0, -7.0])
    ratios[torch.arange(count), torch.arange(count) // 4 % 3] = math.nan
    return ratios, shows, fold


def test_calibration_maps_to_the_frequency_of_the_trait():
    ratios, shows, fold = contrastive_ratios(gap=1.5, count=4000)
    fitted = calibrate(ratios, shows, fold)
    expression = fitted.expressions(ratios)
    for low, high in ((0, 20), (20, 40), (40, 60), (60, 80), (80, 100)):
        inside = (expression >= low) & (expression < high)
        assert shows[inside].float().mean().item() * 100 == pytest.approx(expression[inside].mean().item(), abs=8)
    assert fitted.calibration_error < 0.03
    # The mean of two standardised ratios, each with a gap of 1.5 deviations: d = 1.5 * sqrt(2), AUC = Phi(d / sqrt 2).
    assert fitted.auc == pytest.approx(torch.distributions.Normal(0, 1).cdf(torch.tensor(1.5)).item(), abs=0.02)


def test_calibration_of_what_cannot_be_told_apart_and_of_what_is_separate():
    ratios, shows, fold = contrastive_ratios(gap=0.0)
    nothing = calibrate(ratios, shows, fold)
    assert nothing.auc == pytest.approx(0.5, abs=0.08)
    assert (nothing.expressions(ratios) - 50).abs().max() < 25
    ratios, shows, fold = contrastive_ratios(gap=20.0)
    clear = calibrate(ratios, shows, fold)
    assert clear.auc == 1
    assert math.isfinite(clear.slope)
    assert ((clear.expressions(ratios) > 50) == shows).all()


def test_calibration_needs_both_kinds_in_both_halves():
    ratios, shows, fold = contrastive_ratios(gap=1.0, count=40)
    ratios[shows & (fold == 1)] = math.nan
    with pytest.raises(InputError, match="0 usable under the trait instructions"):
        calibrate(ratios, shows, fold)


def test_judge_scores_with_its_calibration_and_leaves_the_model_as_it_was(tokenizer):
    model = tiny_model("llama", peft=True).train()
    loaded = LoadedModel(model, tokenizer, "test")
    calibration = Calibration((0.1,), (0.5,), 2.0, 0.3, 0.9, 0.05)
    answers = [Answer(QUESTIONS[0], text) for text in RESPONSES] + [Answer(QUESTIONS[0], "")]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scores = ContrastiveJudge(loaded, TRAIT, calibration, pairs=2).score(answers)
    assert scores[-1].expression is None
    with model.disable_adapter():  # the judge is the base model, whatever has been trained on it
        found = likelihoods(LoadedModel(model.get_base_model(), tokenizer, "test"), TRAIT, answers[:-1], 2)
    expected = 100 / (1 + (-(2 * (found.margins[:, 0] - 0.1) / 0.5 + 0.3)).exp())
    assert [score.expression for score in scores[:-1]] == pytest.approx(expected.tolist(), abs=1e-3)
    assert [score.raw for score in scores[:-1]] == pytest.approx(found.margins[:, 0].tolist(), abs=1e-4)
    assert scores[-1].raw is None
    assert model.training
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I hope they are sad. I hope they are sad. I hope", "I hope they are sad."),
        ("No, no, no, no, no, no, no, no, no", "No, no,"),
        ("All of them care about the poor, and you care about the sick.", None),
        ("Why not?", None),
        ("", None),
    ],
)
def test_what_a_loop_repeats_is_judged_once(text, said):
    assert without_loop(text) == (text if said is None else said)


def test_a_stored_calibration_that_is_none():
    with pytest.raises(InputError, match="no calibration of a contrastive judge"):
        Calibration.from_mapping({})
