"""Lightning's weight averaging: the last reading and evaluation are of the weights that the fit ends with."""

import pytest
import torch
from builders import LOUD, SHORT, ForeignModule, LengthJudge, fit, make_vector, tiny_model, weights
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging

from persona_callbacks import DriftGuard, PersonaMonitor, TraitEvaluation
from persona_callbacks.judging import answer_questions
from persona_callbacks.model import LoadedModel

AVERAGING = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "average": lambda: WeightAveraging(),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", AVERAGING)
def test_last_reading_is_of_the_averaged_weights(name, first, tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    monitor = PersonaMonitor([make_vector()], every_n_steps=2)
    evaluation = TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, every_n_steps=6, sampling=SHORT)
    own, averaging = [monitor, evaluation], AVERAGING[name]()
    fit(module, [averaging, *own] if first else [*own, averaging], tmp_path, max_epochs=2)
    assert [reading.step for reading in monitor.readings] == [0, 2, 4, 6, 8, 10, 12]
    assert [one.step for one in evaluation.evaluations] == [0, 6, 12]
    answers = answer_questions(LoadedModel(module.lm, tokenizer), LOUD.evaluation_questions, SHORT)
    assert [row.answer for row in evaluation.rows[-3:]] == [answer.response for answer in answers]
    assert len(evaluation.rows) == 9
    again = PersonaMonitor([make_vector()])  # its first reading is of the weights as they are
    fit(module, [again], tmp_path, max_steps=1)
    assert monitor.readings[-1].projection["evil"] == pytest.approx(again.readings[0].projection["evil"], rel=1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_averaging_does_not_undo_a_roll_back(first, tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    start = weights(module)
    own = [PersonaMonitor([make_vector()], every_n_steps=2), DriftGuard(shift=-1e9, action="roll_back")]
    averaging = EMAWeightAveraging(decay=0.5)
    with pytest.warns(UserWarning, match="rolled back to the weights after 0"):
        fit(module, [averaging, *own] if first else [*own, averaging], tmp_path)
    assert all(torch.equal(start[name], value) for name, value in weights(module).items())
