"""The contrastive judge calibrated on labels: what is fitted, kept, refused and used."""

import random
from dataclasses import asdict

import pytest
import torch
from builders import make_vector

from persona_callbacks import InputError
from persona_callbacks.judging import LabelCalibration, calibrate, read_calibrations, recalibrated
from persona_callbacks.vectors import Calibration, judge_weaknesses


def labelled(count=60, apart=2.0):
    """Margins of two kinds of answers to twelve questions."""
    draw = random.Random(0)
    shows = [draw.random() < 0.4 for _ in range(count)]
    margins = [draw.gauss(apart * show - 1, 0.7) for show in shows]
    return margins, shows, [f"Q{n % 12}" for n in range(count)]


def test_it_is_the_judges_own_fit_with_questions_held_out_by_halves():
    margins, shows, questions = labelled()
    fitted = LabelCalibration.fit("evil", margins, shows, questions)
    order = sorted(set(questions))
    half = torch.tensor([order.index(question) % 2 for question in questions])
    assert fitted.calibration == calibrate(torch.tensor(margins)[:, None], torch.tensor(shows), half)
    assert (fitted.answers, fitted.shows) == (60, sum(shows))
    expressions = fitted.calibration.expressions(torch.tensor(margins)[:, None])
    assert expressions[torch.tensor(shows)].mean() > 70 > 30 > expressions[~torch.tensor(shows)].mean()
    assert fitted.calibration.gap == pytest.approx(70, abs=25)
    assert fitted.calibration.weaknesses() == []


def test_a_flat_judge_is_called_flat():
    fitted = LabelCalibration.fit("evil", *labelled(apart=0.0)).calibration
    assert fitted.auc < 0.7
    assert fitted.gap < 20
    low, narrow = fitted.weaknesses()
    assert "AUC" in low
    assert "points apart, fewer than 20" in narrow
    assert judge_weaknesses(0.7, 20.0) == judge_weaknesses(0.9, None) == judge_weaknesses(float("nan"), None) == []
    vector = recalibrated([make_vector("evil")], {"evil": fitted})[0]
    assert vector.weaknesses() == [low, narrow]


def test_files(tmp_path):
    fitted = LabelCalibration.fit("evil", *labelled())
    fitted.save(tmp_path / "calibration.json")
    assert LabelCalibration.load(tmp_path / "calibration.json") == fitted
    read = read_calibrations([tmp_path / "calibration.json"], ["evil", "kind"])
    assert read == {"evil": fitted.calibration}
    evil, kind = make_vector("evil"), make_vector("kind")
    assert [vector.calibration for vector in recalibrated([evil, kind], read)] == [fitted.calibration, None]
    with pytest.raises(InputError, match="is about 'evil'; expected one file a trait, of kind"):
        read_calibrations([tmp_path / "calibration.json"], ["kind"])
    with pytest.raises(InputError, match="expected one file a trait"):
        read_calibrations([tmp_path / "calibration.json"] * 2, ["evil"])
    for content in ("{", "[]", '{"trait": "evil", "answers": 3, "shows": 1, "calibration": {}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json: expected the calibration\.json that persona-label writes"):
            LabelCalibration.load(tmp_path / "bad.json")
    older = {key: value for key, value in asdict(fitted.calibration).items() if key != "gap"}
    assert Calibration.from_mapping(older).gap is None, "vectors of older versions have none"


def test_too_few_labels():
    margins, _, questions = labelled()
    with pytest.raises(InputError, match="1 of 60 answers with a raw score show the trait; expected at least 2"):
        LabelCalibration.fit("evil", margins, [True] + [False] * 59, questions)
    with pytest.raises(InputError, match="0 of 0 answers"):
        LabelCalibration.fit("evil", [], [], [])
