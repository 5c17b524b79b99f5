"""Streaming means and their evidence, against everything held in memory at once."""

import numpy as np
import pytest
import torch

from persona_callbacks import InputError
from persona_callbacks.extraction import Contrast


def groups(count, questions=6):
    return torch.arange(count) % 2 == 0, torch.arange(count) // 2 % questions


def filled(read, shows, questions, batch=7):
    contrast = Contrast(shows, questions, *read.shape[1:])
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        contrast.add(indices, read[indices])
    return contrast


def slow_difference(x, shows, questions, chosen):
    """Within questions, weighted by n1 n0 / (n1 + n0)."""
    total, weights = 0, 0
    for question in chosen:
        up, down = x[shows & (questions == question)], x[~shows & (questions == question)]
        if len(up) and len(down):
            weight = len(up) * len(down) / (len(up) + len(down))
            total, weights = total + weight * (up.mean(0) - down.mean(0)), weights + weight
    return total / weights


def test_directions_and_evidence_equal_the_slow_way():
    """Unbalanced: every question has another share of trait responses, and one has none."""
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(211, 3, 5, 16, generator=generator) * 3 + 1000
    questions = torch.randint(7, (211,), generator=generator)
    shows = torch.rand(211, generator=generator) < (questions / 7)
    read[shows, :, 2] += 1.5
    contrast = filled(read, shows, questions)
    wide = read.double().numpy()
    s, q = shows.numpy(), questions.numpy()
    for position in range(3):
        x = wide[:, position]
        assert np.allclose(contrast.directions(position), slow_difference(x, s, q, range(7)), rtol=1e-4, atol=1e-5)
        halves = [slow_difference(x, s, q, range(half, 7, 2)) for half in (0, 1)]
        evidence = contrast.separation(position)
        for layer in range(5):
            a, b = halves[0][layer], halves[1][layer]
            assert evidence.split_half_cosine[layer].item() == pytest.approx(
                a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5
            )
            aucs, gaps = [], []
            for half in (0, 1):
                scores = x[q % 2 == half][:, layer] @ halves[1 - half][layer]
                up, down = scores[s[q % 2 == half]], scores[~s[q % 2 == half]]
                aucs.append(np.mean(up[:, None] > down[None, :]))
                squares = ((up - up.mean()) ** 2).sum() + ((down - down.mean()) ** 2).sum()
                gaps.append((up.mean() - down.mean()) / (squares / (len(up) + len(down) - 2)) ** 0.5)
            assert evidence.auc[layer].item() == pytest.approx(np.mean(aucs), abs=2e-3)
            assert evidence.cohens_d[layer].item() == pytest.approx(np.mean(gaps), rel=1e-2, abs=1e-2)


def test_what_a_question_is_about_does_not_enter():
    """All questions differ widely; trait responses are mostly left to some of them, and the trait itself is small."""
    generator = torch.Generator().manual_seed(0)
    questions = torch.arange(400) % 10
    shows = torch.rand(400, generator=generator) < torch.where(questions < 5, 0.8, 0.2)
    read = torch.randn(10, 16, generator=generator)[questions] * 5
    read[shows, 0] += 1
    direction = filled(read[:, None, None], shows, questions).directions(0)[0]
    assert direction.tolist() == pytest.approx([1.0] + [0.0] * 15, abs=1e-4)


def test_evidence_finds_the_layer_that_separates():
    read = torch.randn(80, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    shows, questions = groups(80)
    read[shows, :, 2] += 3
    evidence = filled(read, shows, questions).separation(0)
    assert evidence.auc[2] > 0.99
    assert (evidence.auc[[0, 1, 3, 4]] < 0.75).all()
    assert evidence.split_half_cosine[2] > 0.9
    assert evidence.cohens_d[2] > 4


def test_a_small_gap_between_large_means_is_not_lost():
    """A gap of 0.003 between means of 6000, which float32 sums over thousands of values would swallow."""
    shows, questions = groups(4000)
    read = torch.full((4000, 1, 1, 4), 6000.0)
    read[shows] += 0.0029296875  # representable at 6000
    assert filled(read, shows, questions).directions(0)[0].tolist() == pytest.approx([0.0029296875] * 4, rel=1e-5)


def test_memory_does_not_grow_with_responses():
    def held(count):
        contrast = Contrast(*groups(count), 3, 5, 16)
        return sum(t.numel() for t in vars(contrast).values() if isinstance(t, torch.Tensor) and t.dim() > 1)

    assert held(300) == held(10_000)


def test_a_half_without_both_kinds():
    with pytest.raises(InputError, match="no odd-numbered question has responses of both kinds"):
        Contrast(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]), 1, 1, 1)
