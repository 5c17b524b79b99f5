"""Steering and guarding by what the model prefers on minimal pairs, in real fits of a tiny model."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from builders import (
    PAIRS,
    ForeignModule,
    chat,
    fit,
    make_vector,
    slow_log_probability,
    tiny_model,
    watched_fit,
    weights,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException

from persona_callbacks import Adaptive, DriftGuard, InputError, PersonaMonitor, PreventativeSteering
from persona_callbacks.model import LoadedModel
from persona_callbacks.steering import Controller, preference_pushes
from persona_callbacks.vectors import negate


def causal_vector(tokenizer, trait="evil", pairs=PAIRS):
    """A vector that makes the pairs' trait responses likelier: at the last layer, their tokens minus the others'."""
    head = tiny_model().lm_head.weight.detach()
    direction = torch.zeros(32)
    for pair in pairs:
        for sign, text in ((1, pair.trait), (-1, pair.opposite)):
            encoded = chat(pair.question, text, tokenizer)
            tokens = [t for t, on in zip(encoded.input_ids, encoded.response_mask, strict=True) if on]
            direction += sign * head[tokens].mean(dim=0)
    directions = torch.zeros(5, 32)
    directions[4] = 3 * direction / direction.norm()
    return replace(make_vector(trait), directions=directions, layer=4, pairs=pairs)


def slow_push(model, pairs, by, tokenizer):
    """By how much a hook that adds a direction after the last block makes each trait response likelier."""

    def prefer():
        return torch.tensor(
            [
                slow_log_probability(model, chat(pair.question, pair.trait, tokenizer))
                - slow_log_probability(model, chat(pair.question, pair.opposite, tokenizer))
                for pair in pairs
            ]
        )

    before = prefer()
    handle = model.model.layers[-1].register_forward_hook(lambda _, __, output: output + by.directions[4])
    after = prefer()
    handle.remove()
    return (after - before).mean().item()


def fake_fit(vectors, tokenizer):
    return SimpleNamespace(
        vectors=vectors, pairs={v.trait: v.pairs for v in vectors}, layers="all", batch_size=2, sum=lambda own: own,
        loaded=LoadedModel(tiny_model(peft=True), tokenizer),
    )  # fmt: skip


def test_pushes_equal_a_slow_reference_and_are_of_the_base_model(tokenizer):
    first, second = causal_vector(tokenizer), causal_vector(tokenizer, "other", PAIRS[1:4])
    measured = preference_pushes(fake_fit([first, second], tokenizer))
    plain = tiny_model().eval()
    for row, of in enumerate((first, second)):
        for column, by in enumerate((first, second)):
            expected = slow_push(plain, of.pairs, by, tokenizer)
            assert measured[row, column].item() == pytest.approx(expected, rel=1e-3)
    assert measured.diagonal().min() > 0.05


def test_a_vector_that_does_not_cause_its_trait_is_refused(tokenizer, tmp_path):
    vector = causal_vector(tokenizer)
    for wrong in (
        replace(negate(vector, "evil"), pairs=PAIRS),
        replace(vector, directions=1e-3 * make_vector().directions, layer=3),
        replace(vector, pairs=PAIRS[:1]),
    ):
        with pytest.raises(
            InputError, match=r"moves the preference of evil on its \d minimal pairs by .* ± .* does not"
        ):
            preference_pushes(fake_fit([wrong], tokenizer))
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    turned = replace(negate(vector, "evil"), pairs=PAIRS)
    with pytest.raises(InputError, match="choose sensor='shift'"):
        fit(module, [PersonaMonitor([turned]), PreventativeSteering([turned], Adaptive(0.5, sensor="preference"))],
            tmp_path)  # fmt: skip


def test_pairs_are_needed(tokenizer, tmp_path):
    vector = causal_vector(tokenizer)
    steering = PreventativeSteering([vector], Adaptive(start=0.5, sensor="preference"))
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    with pytest.raises(MisconfigurationException, match="preference of evil from a PersonaMonitor, and found minimal"):
        fit(module, [PersonaMonitor([vector], pairs=0), steering], tmp_path)
    with pytest.raises(
        MisconfigurationException, match=r"preference of evil from a PersonaMonitor; add PersonaMonitor"
    ):
        fit(module, [steering], tmp_path)
    with pytest.raises(MisconfigurationException, match="a limit on preference watches nothing"):
        fit(module, [PersonaMonitor([vector], pairs=0), DriftGuard(preference=0.1)], tmp_path)


def run(folder, tokenizer, resume=None):
    vector = causal_vector(tokenizer)
    monitor = PersonaMonitor([vector], every_n_steps=4)
    steering = PreventativeSteering([vector], Adaptive(start=0.2, sensor="preference", tolerance=0.0))
    module, used = watched_fit(folder, tokenizer, monitor, steering, resume)
    return module, monitor, steering, used


def test_the_loop_is_closed_on_the_preference(tokenizer, tmp_path):
    _, monitor, steering, used = run(tmp_path, tokenizer)
    pushes = preference_pushes(fake_fit(steering.vectors, tokenizer))
    by_hand = Controller(steering.law, [0.2], pushes)
    alphas = {0: 0.2}
    for reading in monitor.readings[1:]:
        by_hand.update([reading.preference["evil"]], [0.0], 4)
        alphas[reading.step] = by_hand.coefficients[0]
    for step, alpha in used.items():
        assert alpha == pytest.approx(alphas[max(at for at in alphas if at <= step)], rel=1e-4)
    assert len(set(used.values())) > 3, "α never moved"


def test_it_resumes_bitwise(tokenizer, tmp_path):
    module, monitor, steering, used = run(tmp_path / "whole", tokenizer)
    for step in (3, 9):  # the ends of epochs: these loaders cannot be resumed within one
        checkpoint = tmp_path / "whole" / f"at-step={step}.ckpt"
        resumed, its_monitor, its_steering, its_used = run(tmp_path / f"rest{step}", tokenizer, checkpoint)
        assert its_used == {at: alpha for at, alpha in used.items() if at >= step}, step
        assert its_monitor.readings == monitor.readings
        assert its_steering.state_dict() == steering.state_dict()
        expected, found = weights(module), weights(resumed)
        assert all(torch.equal(expected[name], found[name]) for name in expected), step


def test_guard_limits_the_preference_from_the_base_model_or_from_a_reference(tokenizer, tmp_path):
    vector = causal_vector(tokenizer)
    free = PersonaMonitor([vector], every_n_steps=1, pairs_every_n_steps=1)
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [free], tmp_path)
    preferences = [reading.preference["evil"] for reading in free.readings]
    last = len(preferences) - 1

    def tripped(**limits):
        guard = DriftGuard(**limits)
        fit(
            ForeignModule(tiny_model(peft=True), tokenizer),
            [PersonaMonitor([vector], every_n_steps=1), guard],
            tmp_path,
        )
        return guard.tripped

    highest = max(preferences[1:])
    assert not tripped(preference=highest + 1e-6)
    with pytest.warns(UserWarning, match="preference of evil is"):
        assert tripped(preference={"evil": highest - 1e-6})
    (tmp_path / "result.json").write_text(json.dumps({"readings": [asdict(reading) for reading in free.readings]}))
    assert not tripped(preference=1e-6, reference=tmp_path), "it does what the reference did"
    lower = [{**asdict(reading), "preference": {"evil": preferences[row] - 0.1 * (row == last)}}
             for row, reading in enumerate(free.readings)]  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps({"readings": lower}))
    with pytest.warns(UserWarning, match=f"after {last} optimizer steps: preference of evil is"):
        assert tripped(preference={"evil": 0.05}, reference=str(tmp_path))
    with pytest.raises(InputError, match="expected the preference of kind in every reading"):
        DriftGuard(preference={"kind": 0.1}, reference=tmp_path)


def test_readings_asked_for_by_the_shift_leave_the_pairs_out_and_change_nothing(tokenizer, tmp_path):
    def run(pairs):
        vector = replace(make_vector(), directions=make_vector().directions * 0.3, pairs=PAIRS)
        steering = PreventativeSteering([vector], Adaptive(start=0.2, tolerance=1e-6))
        monitor = PersonaMonitor([vector], every_n_steps=4, pairs=pairs)
        guard = DriftGuard(shift=1e9, preference=1e9, action="roll_back")
        module = ForeignModule(tiny_model(peft=True), tokenizer)
        fit(module, [monitor, steering, *([guard] if pairs else [])], tmp_path, limit_train_batches=5)
        return monitor, steering, weights(module), guard

    monitor, steering, trained, guard = run(pairs=5)
    assert [reading.step for reading in monitor.readings] == [0, 1, 2, 3, 4, 5]
    assert [reading.step for reading in monitor.readings if reading.preference] == [0, 4, 5], "its own, and the last"
    assert guard.state_dict()["good_step"] == 5, "only readings with what is limited are within all limits"
    without, same, alike, _ = run(pairs=0)
    assert [reading.shift for reading in without.readings] == [reading.shift for reading in monitor.readings]
    assert steering.coefficients == same.coefficients != {"evil": 0.2}
    assert all(torch.equal(trained[name], alike[name]) for name in trained)
