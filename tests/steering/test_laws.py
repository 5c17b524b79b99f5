"""The laws that move the coefficient: schedules, and the controller on simulated plants."""

import random

import pytest
import torch
from builders import make_vector

from persona_callbacks import Adaptive, InputError, Schedule
from persona_callbacks.steering import Controller, LikeliestStart, MatchingStart, nonnegative_minimum, pushes, solve

ONE = torch.tensor([[1.0]], dtype=torch.float64)


def plant(law, *, gain, rate, undo, start, noise=0.03, steps=200, demand=lambda step: 1.0, longest=10):
    """Training as it was seen to respond: the shift moves, at ``rate`` a step, towards gain · (demand - α), and back
    towards zero only ``undo`` times as fast. In units of the direction's norm. Returns shifts and α by step.
    """
    noises = random.Random(0)
    controller = Controller(law, [start], ONE)
    shift, due, last, shifts, alphas = 0.0, 1, 0, [], []
    for step in range(1, steps + 1):
        towards = gain * (demand(step) - controller.coefficients[0])
        back = abs(towards) < abs(shift) or towards * shift < 0
        shift += rate * (towards - shift) * (undo if back else 1)
        if step == due or step % longest == 0:
            controller.update([shift + noises.gauss(0, noise)], [0.0], longest, step - last)
            due, last = step + controller.interval, step
        shifts.append(shift)
        alphas.append(controller.coefficients[0])
    return shifts, alphas


PLANTS = [
    pytest.param(gain, rate, undo, id=f"gain{gain}-rate{rate}-undo{undo}")
    for gain in (0.16, 1.6, 16)
    for rate in (0.01, 0.1, 1)
    for undo in (1, 0.1)
]


@pytest.mark.parametrize(("gain", "rate", "undo"), PLANTS)
@pytest.mark.parametrize("start", [0.65, 1.3])
def test_controller_holds_any_plant_without_overshoot(gain, rate, undo, start):
    law = Adaptive()
    shifts, alphas = plant(law, gain=gain, rate=rate, undo=undo, start=start)
    unsteered = plant(Adaptive(slew=1e-9), gain=gain, rate=rate, undo=undo, start=0.0, noise=0)[0][-1]
    kept = plant(Adaptive(slew=1e-9), gain=gain, rate=rate, undo=undo, start=start, noise=0)[0][-1]
    late = torch.tensor(shifts[-50:]).mean().item()
    # A plant that answers within a step and with a high gain swings; the slew limit bounds by how much.
    swing = 1.5 * gain * law.slew * rate
    assert abs(late) <= max(0.15 * unsteered, 0.6 * abs(kept), 0.1, swing), "no better than leaving α where it started"
    # What too high a start does is not the controller's overshoot.
    assert min(shifts) >= -max(0.15 * unsteered, 0.15, 1.2 * gain * max(0.0, start - 1), swing)
    assert max(alphas) <= start + law.reach
    assert min(alphas) >= 0


@pytest.mark.parametrize(("gain", "rate", "undo"), PLANTS)
def test_controller_does_not_wind_up(gain, rate, undo):
    """Data far beyond reach hold α at its bound; when they end, α leaves it as soon as the shift is seen to fall."""
    law = Adaptive()
    shifts, alphas = plant(law, gain=gain, rate=rate, undo=undo, start=1.0, steps=300,
                      demand=lambda step: 3.0 if step <= 150 else 0.0)  # fmt: skip
    if gain == 0.16:
        assert max(shifts) < 0.5  # there was hardly a shift to answer
        return
    assert alphas[149] == pytest.approx(1.0 + law.reach)
    # By then the shift is seen to fall, or, where it hardly can, is still above target.
    assert min(alphas[150:]) < 1.0 or min(shifts[150:]) > law.tolerance


def test_reactive_controller_is_too_late():
    """Without feed-forward, what has moved before α has risen stays where undoing is slow."""
    how = {"gain": 1.6, "rate": 0.3, "undo": 0.05, "steps": 26}
    reactive, _ = plant(Adaptive(start=0.0, reach=3.0), start=0.0, **how)
    informed, _ = plant(Adaptive(), start=0.9, **how)
    assert max(reactive) > 0.5
    assert max(informed) < 0.25


def test_unreachable_target_is_reported_and_steady_readings_become_rare():
    controller = Controller(Adaptive(), [0.5], ONE)
    for _ in range(20):
        controller.update([2.0], [0.0], 10)
    assert controller.saturated == [True]
    assert controller.interval == 10
    controller.update([-0.5], [0.0], 10)
    assert controller.saturated == [False]
    assert controller.interval == 1


def test_while_the_coefficient_creeps_readings_become_rare_and_it_creeps_as_fast():
    """A steady error within reach: what is kept is summed over steps, however rarely they are read."""
    seldom, often = (Controller(Adaptive(), [0.5], ONE) for _ in range(2))
    due, last, readings = 1, 0, 0
    for step in range(1, 41):
        often.update([0.15], [0.0], 1)
        if step == due:
            seldom.update([0.15], [0.0], 10, step - last)
            due, last, readings = step + seldom.interval, step, readings + 1
            # α after a reading holds what was kept before it
            assert seldom.coefficients[0] == pytest.approx(often.coefficients[0], abs=0.05)
    assert readings < 12
    assert often.coefficients[0] > 0.7


def test_a_coefficient_that_moves_fast_is_read_at_every_step():
    controller = Controller(Adaptive(), [0.5], ONE)
    for _ in range(3):
        controller.update([1.0], [0.0], 10)  # steady, and far from what is held
        assert controller.interval == 1


def test_correlated_traits_are_not_pushed_twice():
    evil, other = make_vector("evil", seed=1), make_vector("other", seed=2)
    shared = evil.directions + 0.3 * other.directions
    vectors = [evil, type(evil)(trait="like", directions=shared, layer=2, model_id="", probes=evil.probes)]
    moves = pushes(vectors)
    # An independent reading of the definition.
    for row, at in enumerate(vectors):
        for column, by in enumerate(vectors):
            expected = by.directions[at.layer].double() @ at.directions[at.layer].double() / at.direction().norm()
            assert moves[row, column].item() == pytest.approx(expected.item(), rel=1e-5)
    both = solve(moves, torch.tensor([3.0, 2.0], dtype=torch.float64))
    assert torch.allclose(moves @ both, torch.tensor([3.0, 2.0], dtype=torch.float64))
    twice = solve(pushes([evil, type(evil)(trait="same", directions=evil.directions, layer=3, model_id="")]),
                  torch.tensor([4.0, 4.0], dtype=torch.float64))  # fmt: skip
    assert twice.sum().item() == pytest.approx(4.0 / evil.direction().norm().item())


def test_nonnegative_minimum_against_a_fine_grid():
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.linspace(0, 3, 61), torch.linspace(0, 3, 61)).double()
    for _ in range(20):
        root = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        curvature = root @ root.T + 0.3 * torch.eye(2, dtype=torch.float64)
        slope = torch.randn(2, generator=generator, dtype=torch.float64)
        found = nonnegative_minimum(curvature, slope)
        values = torch.einsum("gi,ij,gj->g", grid, curvature, grid) / 2 + grid @ slope
        assert (found >= 0).all()
        assert found @ curvature @ found / 2 + slope @ found <= values.min() + 1e-9
        if found.max() < 3:
            assert (found - grid[values.argmin()]).abs().max() <= 0.3


def test_schedule():
    steps = Schedule(2.0, warmup=10, decay="none")
    assert [steps.factor(step, 100) for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    share = Schedule(warmup=0.2, decay="linear", final=0.5)
    assert [share.factor(step, 100) for step in (0, 10, 20, 60, 100)] == pytest.approx([0, 0.5, 1, 0.75, 0.5])
    cosine = Schedule(warmup=0, decay="cosine")
    assert [cosine.factor(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0], abs=1e-12)


def test_bad_settings_are_named():
    for wrong, named in (
        (lambda: Schedule(decay="slow"), "unknown decay 'slow'"),
        (lambda: Schedule(warmup=2.5), "warmup is 2.5"),
        (lambda: Schedule(final=2), "final is 2"),
        (lambda: Adaptive(start="guess"), "start is 'guess'; expected a number"),
        (lambda: Adaptive(start={"evil": -0.1}), "start is {'evil': -0.1}"),
        (lambda: LikeliestStart(samples=0), "samples of LikeliestStart is 0"),
        (lambda: MatchingStart(max_new_tokens=0), "max_new_tokens of MatchingStart is 0"),
        (lambda: Adaptive(slew=0), "slew is 0"),
        (lambda: Adaptive(reach=-1), "reach is -1"),
        (lambda: Adaptive(start=0.0, feedback=False), "neither"),
    ):
        with pytest.raises(InputError, match=named):
            wrong()
