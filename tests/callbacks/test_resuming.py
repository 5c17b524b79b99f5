"""A resumed run that is given other inputs than its checkpoint was made with."""

import warnings

import pytest
import torch
from builders import ForeignModule, batches, make_vector, tiny_model
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from persona_callbacks import (
    Ablation,
    Adaptive,
    Law,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    Schedule,
)
from persona_callbacks.steering import LikeliestStart

VECTOR, OTHER = make_vector(), make_vector(seed=9)


def train(folder, tokenizer, callbacks, *, steps, resume=False, peft=True):
    """Some steps of batches that are the same every time."""
    seed_everything(7, verbose=False)
    module = ForeignModule(tiny_model(peft=peft), tokenizer)
    saver = ModelCheckpoint(folder, filename="last", every_n_train_steps=3, enable_version_counter=False)
    trainer = Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, callbacks=[*callbacks, saver])  # fmt: skip
    checkpoint = str(folder / "last.ckpt") if resume else None
    trainer.fit(module, batches(3), ckpt_path=checkpoint, weights_only=True if resume else None)
    return trainer


def steering(law, vector=VECTOR, **more):
    return PreventativeSteering([vector], law, **more)


class Doubling(Law):
    """A user's law; what it computes is public."""

    def __init__(self, height):
        self.height = height

    def begin(self, fit):
        self.now = dict.fromkeys([vector.trait for vector in fit.vectors], self.height)
        return self.now


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (steering(0.7), steering(0.2), r"law.coefficient is 0.7 in the checkpoint, 0.2 was asked for\. Resume"),
        (steering(0.7), steering(0.7, OTHER), rf"vectors.evil is 'PersonaVector {VECTOR.fingerprint[:12]}' in the"),
        (steering(0.7), steering(0.7, layers="chosen"), "layers is 'all' in the checkpoint, 'chosen' was asked for"),
        (steering(0.7), steering(0.7, positions="response"), "positions is 'all' in the checkpoint, 'response' was"),
        (steering(Schedule(0.7)), steering(Schedule(0.7, decay="linear")), "law.decay is 'none' in .*, 'linear' was"),
        (steering(Doubling(0.3)), steering(Doubling(0.4)), "law.height is 0.3 in the checkpoint, 0.4 was asked for"),
        (steering(Adaptive(LikeliestStart(4))), steering(Adaptive(LikeliestStart(8))), "law.start.samples is 4 in"),
        (steering(Adaptive(0.5)), steering(Adaptive(0.5, target=1.0)), "law.target is 0.0 in the checkpoint, 1.0 was"),
        (steering(Adaptive(0.5)), steering(0.5), r"law.class is '.*Adaptive' in the checkpoint, '.*Constant' was"),
        (Ablation([VECTOR]), Ablation([OTHER]), "Ablation: .* vectors.evil is"),
        (Ablation([VECTOR]), Ablation([VECTOR], layers=[2]), r"layers is 'all' in the checkpoint, \[2\] was asked for"),
        (ProjectionRegularisation([VECTOR]), ProjectionRegularisation([VECTOR], 0.5), "weight is 1.0 in .*, 0.5 was"),
        (ProjectionRegularisation([VECTOR]), ProjectionRegularisation([OTHER]), "vectors.evil is"),
    ],
)  # fmt: skip
def test_other_inputs_are_refused_with_both_values(before, after, named, tokenizer, tmp_path):
    train(tmp_path, tokenizer, [PersonaMonitor([VECTOR]), before], steps=3)
    with pytest.raises(MisconfigurationException, match=named):
        train(tmp_path, tokenizer, [PersonaMonitor([VECTOR]), after], steps=6, resume=True)


@pytest.mark.parametrize(
    "make", [lambda: steering(Adaptive(0.5)), lambda: steering(Doubling(0.3)), lambda: Ablation([VECTOR])]
)
def test_the_same_inputs_are_taken_in_silence_however_often(make, tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?s)P.*(older version|as in the checkpoint)")
        for steps in (3, 6, 9):
            trainer = train(tmp_path, tokenizer, [PersonaMonitor([VECTOR]), make()], steps=steps, resume=steps > 3)
    assert trainer.global_step == 9


def test_monitor_measures_a_changed_vector_anew_and_keeps_the_others(tokenizer, tmp_path):
    kind = make_vector("kind", layer=2, seed=4)
    train(tmp_path, tokenizer, [first := PersonaMonitor([VECTOR, kind], every_n_steps=1)], steps=3)
    resumed = PersonaMonitor([OTHER, kind], every_n_steps=1)
    with pytest.warns(UserWarning, match=r"PersonaMonitor: vector of evil: not as in the checkpoint. .* dropped"):
        train(tmp_path, tokenizer, [resumed], steps=6, resume=True)
    train(tmp_path / "other", tokenizer, [other := PersonaMonitor([OTHER, kind], every_n_steps=1)], steps=3)
    assert [reading.step for reading in resumed.readings] == [0, 1, 2, 3, 4, 5, 6]
    assert [reading.shift["kind"] for reading in resumed.readings[:4]] == [r.shift["kind"] for r in first.readings]
    assert [sorted(reading.shift) for reading in resumed.readings] == [["kind"]] * 3 + [["evil", "kind"]] * 4
    assert resumed.readings[3].shift["evil"] == pytest.approx(other.readings[3].shift["evil"], rel=1e-4)
    assert abs(other.readings[3].shift["evil"] - first.readings[3].shift["evil"]) > 0.1, "the test needs a difference"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"position": "prompt_mean"}, "position of evil"), ({"probes": ["Why?", "Who?"]}, "probes of evil")],
)
def test_monitor_measures_with_changed_probes_or_position_anew(changes, named, tokenizer, tmp_path):
    train(tmp_path, tokenizer, [PersonaMonitor([VECTOR], every_n_steps=1)], steps=3)
    resumed = PersonaMonitor([VECTOR], every_n_steps=1, **changes)
    with pytest.warns(UserWarning, match=named):
        train(tmp_path, tokenizer, [resumed], steps=4, resume=True)
    train(tmp_path / "other", tokenizer, [other := PersonaMonitor([VECTOR], every_n_steps=1, **changes)], steps=4)
    assert [reading.step for reading in resumed.readings] == [3, 4]
    assert resumed.readings[0].shift["evil"] == pytest.approx(other.readings[3].shift["evil"], rel=1e-4)


def test_without_an_adapter_the_monitor_says_from_where_a_new_vector_counts(tokenizer, tmp_path):
    train(tmp_path, tokenizer, [PersonaMonitor([VECTOR])], steps=3, peft=False)
    resumed = PersonaMonitor([OTHER])
    with pytest.warns(UserWarning, match="no adapter to disable, .* the shift of evil counts from step 3"):
        train(tmp_path, tokenizer, [resumed], steps=4, resume=True, peft=False)
    assert (resumed.readings[0].step, resumed.readings[0].shift) == (3, {"evil": pytest.approx(0, abs=1e-5)})


def test_checkpoints_of_older_versions_load_with_one_warning_each(tokenizer, tmp_path):
    train(tmp_path, tokenizer, [PersonaMonitor([VECTOR]), steering(0.7)], steps=3)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for state in checkpoint["callbacks"].values():
        state.pop("made_with", None)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    callbacks = [PersonaMonitor([VECTOR]), steering(0.2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = train(tmp_path, tokenizer, callbacks, steps=4, resume=True)
    older = [str(one.message) for one in caught if "older version" in str(one.message)]
    assert [text.partition(":")[0] for text in older] == ["PersonaMonitor", "PreventativeSteering"]
    assert trainer.global_step == 4
    assert callbacks[1].coefficients == {"evil": 0.7}
