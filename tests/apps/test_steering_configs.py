"""Every choice of the steering group, from the configuration to what it trains with."""

import json

import pytest
import torch
from builders import make_vector
from hydra import compose, initialize_config_dir

from persona_callbacks import (
    Ablation,
    Adaptive,
    Constant,
    InputError,
    PreventativeSteering,
    ProjectionRegularisation,
    Schedule,
    Trait,
)
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits
from persona_callbacks.apps.train import study_settings, train
from persona_callbacks.chats import read_chats
from persona_callbacks.judging import LabelCalibration
from persona_callbacks.steering import GivenStart, MatchingStart, Reference
from persona_callbacks.steering.starts import as_start


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


CHOICES = sorted({path.stem for path in (CONF / "steering").glob("*.yaml")} - {"screening"})  # that reads a folder


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_makes_the_callback_it_names(choice):
    steering = study_settings(config(f"steering={choice}")).steering_callback([make_vector()])
    if choice in ("none", "prompting"):
        assert steering is None
    elif choice in ("ablation", "regularisation"):
        assert type(steering) is {"ablation": Ablation, "regularisation": ProjectionRegularisation}[choice]
    else:
        assert type(steering) is PreventativeSteering
        expected = {
            "constant": Constant(1.0),
            "schedule": Schedule(),
            "adaptive": Adaptive(as_start(Adaptive().start)),
            "feedforward": Adaptive(as_start(Adaptive().start), feedback=False),
            "reactive": Adaptive(GivenStart(0.0), reach=3.0),
        }
        assert steering.law == expected[choice], "the file's defaults and the code's differ"


def test_sensor_and_target_are_chosen_by_name(tmp_path):
    coefficient = "steering.callback.coefficient"
    chosen = study_settings(config(f"{coefficient}.sensor=preference", f"{coefficient}.target={tmp_path}"))
    with pytest.raises(InputError, match=r"result\.json: expected the result of a finished fine-tuning"):
        chosen.steering_callback([make_vector()])
    readings = [{"step": step, "projection": {}, "shift": {}, "preference": {"evil": 0.0}} for step in (0, 9)]
    (tmp_path / "result.json").write_text(json.dumps({"readings": readings}))
    law = chosen.steering_callback([make_vector()]).law
    assert (law.sensor, law.target) == ("preference", Reference(str(tmp_path)))
    guard = "guard.callback"
    chosen = study_settings(config("guard=limits", f"{guard}.preference=0.2", f"{guard}.reference={tmp_path}"))
    assert (chosen.guard().preference, chosen.guard().reference) == (0.2, Reference(str(tmp_path)))


def test_where_alpha_starts_is_chosen_by_name():
    start = "steering/start@steering.callback.coefficient.start"
    given = config(f"{start}=given", "steering.callback.coefficient.start.coefficient={evil: 0.4}")
    assert study_settings(given).steering_callback([make_vector()]).law.start == GivenStart({"evil": 0.4})
    matching = config(f"{start}=matching")
    assert study_settings(matching).steering_callback([make_vector()]).law.start == MatchingStart()
    plain = config("steering.callback.coefficient.start=0.4")
    assert study_settings(plain).steering_callback([make_vector()]).law.start == 0.4
    screening = config("steering=screening", "data=screened", "data.screening=folder").steering.callback.coefficient
    assert dict(screening.start) == {
        "_target_": "persona_callbacks.screening.ScreeningStart",
        "folder": "folder",
        "use": "filtered",
    }


def test_coefficient_and_target_by_trait_come_through():
    vectors = [make_vector(), make_vector("sycophancy", seed=2)]
    both = "trait=[evil,sycophancy]"
    cfg = config(both, "steering=constant", "steering.callback.coefficient={evil: 0.8, sycophancy: 0.4}")
    assert study_settings(cfg).steering_callback(vectors).law.coefficient == {"evil": 0.8, "sycophancy": 0.4}
    target = "steering.callback.coefficient.target={evil: 1.5, sycophancy: 0}"
    cfg = config(both, target, "steering.callback.layers=[2,3]")
    steering = study_settings(cfg).steering_callback(vectors)
    assert steering.law.target == {"evil": 1.5, "sycophancy": 0}
    assert steering.layers == [2, 3]


def test_prompting_puts_each_instruction_in_turn_before_the_chats():
    cfg = config("steering=prompting", "trait=[evil,sycophancy]", "steering.traits=[evil]", "data.max_samples=7")
    traits: list[Trait] = chosen_traits(cfg)
    chats = read_chats("evil.jsonl")[:7]
    prompted = study_settings(cfg).prompted_chats()
    instructions = [pair.trait for pair in traits[0].instructions]
    for index, (chat, before) in enumerate(zip(prompted, chats, strict=True)):
        assert chat.messages[0] == {"role": "system", "content": instructions[index % len(instructions)]}
        assert chat.messages[1:] == before.messages


def test_prompting_without_the_trait_s_instructions_is_refused_before_the_model_is_loaded(tmp_path):
    file = make_vector("unknown").save(tmp_path / "unknown.safetensors")
    cfg = config("steering=prompting", "trait=[evil]", f"vectors=[{file}]", "model=folder", "model.path=/nowhere")
    with pytest.raises(InputError, match="needs the instructions of unknown, evil"):
        train(cfg, tmp_path)


def test_a_calibration_on_labels_takes_the_place_of_the_stored_one(tmp_path):
    shows = [False, True] * 10
    fitted = LabelCalibration.fit("evil", [float(n) for n in range(20)], shows, [f"Q{n // 2}" for n in range(20)])
    fitted.save(tmp_path / "calibration.json")
    chosen = f"evaluation.calibrations=[{tmp_path / 'calibration.json'}]"
    assert study_settings(config(chosen)).calibrations == {"evil": fitted.calibration}
    assert study_settings(config()).calibrations == {}
    with pytest.raises(InputError, match=r"evaluation\.calibrations: .*is about 'evil'; expected .* of humorous"):
        study_settings(config(chosen, "trait=humorous"))
    with pytest.raises(InputError, match="of the contrastive judge; expected evaluation=contrastive"):
        study_settings(config(chosen, "evaluation=none"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accelerator=gpu", "trainer: "),
        ("+trainer.maximum_steps=5", "trainer: .*maximum_steps"),
        ("trainer.precision=seven", "trainer: .*seven"),
    ],
)
def test_a_trainer_that_cannot_be_made_is_told_before_any_work(override, message):
    if override.endswith("gpu") and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=message):
        study_settings(config(override))
