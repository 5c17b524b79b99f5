"""A law of a user's own, in real fits of a tiny model."""

import pytest
import torch
from builders import ForeignModule, fit, make_vector, tiny_model, watched_fit, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException

from persona_callbacks import InputError, Law, PersonaMonitor, PreventativeSteering


class Ratchet(Law):
    """Raises α by .01 at each step, and by the size of the shift at each reading; wants a reading every third step."""

    reads = "shift"

    def __init__(self, trait="evil"):
        self.trait = trait
        self.told = []

    def check(self, traits):
        if self.trait not in traits:
            raise InputError(f"ratchet: no {self.trait}")

    def begin(self, fit):
        self.alpha = {vector.trait: 0.2 for vector in fit.vectors}
        self.read_at, self.longest = 0, fit.reading_interval
        self.told = [("begin", fit.total_steps, fit.resumed)]
        return self.alpha

    def after_step(self, step):
        self.told.append(("step", step))
        self.alpha = {trait: alpha + 0.01 for trait, alpha in self.alpha.items()}
        return self.alpha

    def after_reading(self, reading):
        self.told.append(("reading", reading.step, reading.shift[self.trait]))
        self.read_at = reading.step
        self.alpha = {trait: alpha + abs(reading.shift[trait]) for trait, alpha in self.alpha.items()}
        return self.alpha

    @property
    def next_reading(self):
        return self.read_at + 3

    @property
    def saturated(self):
        return {self.trait: self.read_at >= 9}

    def state_dict(self):
        return {"alpha": dict(self.alpha), "read_at": self.read_at}

    def load_state_dict(self, state):
        self.alpha, self.read_at = dict(state["alpha"]), state["read_at"]


def run(folder, tokenizer, resume=None):
    monitor, steering = (
        PersonaMonitor([make_vector()], every_n_steps=5),
        PreventativeSteering([make_vector()], Ratchet()),
    )
    module, used = watched_fit(folder, tokenizer, monitor, steering, resume)
    return module, monitor, steering, used


def test_a_law_of_ones_own_moves_the_coefficient_by_step_and_by_reading(tokenizer, tmp_path):
    _, monitor, steering, used = run(tmp_path, tokenizer)
    assert [reading.step for reading in monitor.readings] == [0, 3, 5, 8, 10, 12], "every 5 steps, and 3 after the last"
    shifts = {reading.step: reading.shift["evil"] for reading in monitor.readings}
    alpha = 0.2
    for step in range(12):
        if step:
            alpha += 0.01
        if step and step in shifts:
            alpha += abs(shifts[step])
        assert used[step] == alpha, "the α of each step, by hand"
    told = [("begin", 12, False)]
    for step in range(1, 12):
        told.append(("step", step))
        if step in shifts:
            told.append(("reading", step, shifts[step]))
    assert steering.law.told == told


def test_a_law_of_ones_own_resumes_bitwise(tokenizer, tmp_path):
    module, monitor, steering, used = run(tmp_path / "whole", tokenizer)
    for step in (3, 6, 9):  # the ends of epochs: these loaders cannot be resumed within one
        checkpoint = tmp_path / "whole" / f"at-step={step}.ckpt"
        resumed, its_monitor, its_steering, its_used = run(tmp_path / f"rest{step}", tokenizer, resume=checkpoint)
        assert its_used == {at: alpha for at, alpha in used.items() if at >= step}, step
        assert its_monitor.readings == monitor.readings
        assert its_steering.state_dict() == steering.state_dict()
        expected, found = weights(module), weights(resumed)
        assert all(torch.equal(expected[name], found[name]) for name in expected), step
        assert its_steering.law.told[:2] == [("begin", 12, True), ("step", step)]


def test_the_callback_works_on_a_copy_of_the_law(tokenizer, tmp_path):
    law, vector = Ratchet(), make_vector()
    first, second = PreventativeSteering([vector], law), PreventativeSteering([vector], law)
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [first, PersonaMonitor([vector])], tmp_path, max_steps=2)
    assert first.law.told
    assert law.told == second.law.told == []


def test_what_a_law_lacks_or_gets_wrong_is_named(tokenizer, tmp_path):
    module, vector = ForeignModule(tiny_model(peft=True), tokenizer), make_vector()
    with pytest.raises(InputError, match="no kind"):
        PreventativeSteering([vector], Ratchet("kind"))
    with pytest.raises(MisconfigurationException, match="Ratchet reads the shift of evil from a PersonaMonitor"):
        fit(module, [PreventativeSteering([vector], Ratchet())], tmp_path)

    class Wrong(Law):
        def begin(self, fit):
            return {"kind": 1.0}

    with pytest.raises(MisconfigurationException, match=r"Wrong gave coefficients of \['kind'\]"):
        fit(module, [PreventativeSteering([vector], Wrong())], tmp_path)

    class Blind(Law):
        def begin(self, fit):
            return {"evil": float(fit.reading_interval)}

    with pytest.raises(MisconfigurationException, match="its reads is None"):
        fit(module, [PreventativeSteering([vector], Blind())], tmp_path)
