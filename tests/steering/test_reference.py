"""Set-points from a run on benign data."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import make_vector

from persona_callbacks import Adaptive, InputError
from persona_callbacks.files import changed_settings, plain_settings
from persona_callbacks.steering import Controller, Reading, Reference, pushes

READINGS = [
    {"step": 0, "projection": {}, "shift": {"evil": 0.0}, "preference": {"evil": 0.0}},
    {"step": 10, "projection": {}, "shift": {"evil": -2.0}, "preference": {"evil": 0.3}},
    {"step": 40, "projection": {}, "shift": {"evil": -8.0}, "preference": {"evil": 0.1}},
]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"readings": READINGS}))
    return tmp_path


def test_the_set_point_lies_between_the_readings_at_the_same_share_of_training(run):
    for reference in (Reference(run), Reference(str(run / "result.json"))):
        at = [reference.at(done, "shift", ["evil"])["evil"] for done in (0, 0.125, 0.25, 0.625, 1, 1.5)]
        assert at == pytest.approx([0, -1, -2, -5, -8, -8])
        assert reference.at(0.25, "preference", ["evil"]) == {"evil": 0.3}


def test_other_readings_are_another_reference(run, tmp_path):
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    same.write_text((run / "result.json").read_text())
    other.write_text(json.dumps({"readings": READINGS[:2]}))
    law = [plain_settings(Adaptive(target=path)) for path in (run, same, other)]
    assert changed_settings(law[0], law[1]) == {}
    assert list(changed_settings(law[0], law[2])) == ["target"]


def test_what_a_reference_lacks_is_named(run, tmp_path):
    reference = Reference(run)
    reference.check("preference", ["evil"])
    with pytest.raises(InputError, match=r"result\.json: expected the shift of kind in every reading.*shift of evil"):
        reference.check("shift", ["evil", "kind"])
    older = [{key: value for key, value in reading.items() if key != "preference"} for reading in READINGS]
    (run / "result.json").write_text(json.dumps({"readings": older}))
    with pytest.raises(InputError, match=r"expected the preference of evil .* preference of no trait"):
        Reference(run).check("preference", ["evil"])
    for content in ("{}", "[]", "no json", '{"readings": [{"step": 1}]}'):
        (run / "result.json").write_text(content)
        with pytest.raises(InputError, match=r"result\.json: expected the result of a finished fine-tuning"):
            Reference(run).check("shift", ["evil"])
    (run / "result.json").write_text('{"readings": []}')
    with pytest.raises(InputError, match="at least one step"):
        Reference(run).check("shift", ["evil"])
    with pytest.raises(InputError, match="nowhere: expected the result"):
        Adaptive(target="nowhere").check(["evil"])


def test_adaptive_steering_holds_the_reference(run):
    """The law's answers are the controller's, with targets on the line through the reference's readings."""
    vector = make_vector()
    law = Adaptive(start=0.5, target=str(run), tolerance=0.0)
    law.check(["evil"])
    with pytest.raises(InputError, match="found none after 0 optimizer steps"):
        law.check(["kind"])
    law.begin(SimpleNamespace(vectors=[vector], resumed=False, reading_interval=5, total_steps=20))
    controller = Controller(law, [0.5], pushes([vector]))
    for step, target in ((5, -2.0), (10, -4.0), (20, -8.0)):
        found = law.after_reading(Reading(step, {}, {"evil": 1.0, "other": 9.0}))
        controller.update([1.0], [target], 5)
        assert found == {"evil": controller.coefficients[0]}
    held = Adaptive(start=0.5, target=run, tolerance=0.05)
    held.begin(SimpleNamespace(vectors=[vector], resumed=False, reading_interval=5, total_steps=20))
    assert held.after_reading(Reading(10, {}, {"evil": -4.0})) == {"evil": 0.5}, "as far as the reference has moved"


def test_a_checkpoint_of_another_sensor_is_refused():
    vector = make_vector()
    fit = SimpleNamespace(vectors=[vector], resumed=True, reading_interval=5)
    law = Adaptive(start=0.5)
    law.begin(fit)
    state = law.state_dict()
    other = Adaptive(start=0.5, sensor="preference")
    other.begin(fit)
    with pytest.raises(InputError, match="steered by the shift, found sensor='preference'"):
        other.load_state_dict(state)
    older = {name: value for name, value in state.items() if name not in ("sensor", "pushes")}
    law.load_state_dict(older)
    assert law.state_dict() == state
    with pytest.raises(InputError, match="unknown sensor 'mood'"):
        Adaptive(sensor="mood")
    assert torch.tensor(state["pushes"], dtype=torch.float64).equal(pushes([vector]))
