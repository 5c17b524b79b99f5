"""Numeric settings that are no numbers are refused where they are given, and named."""

import math

import pytest
from builders import LOUD, make_vector

from persona_callbacks import (
    Adaptive,
    DriftGuard,
    InputError,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    Schedule,
    TraitEvaluation,
)
from persona_callbacks.extraction import ExtractionSettings
from persona_callbacks.judging import LlmJudge
from persona_callbacks.model import Endpoint, Sampling
from persona_callbacks.screening import ScreeningSettings
from persona_callbacks.steering import GivenStart, LikeliestStart, MatchingStart

URL = "http://localhost:8000/v1"
EVIL = make_vector()


def settings(kind, *names, **others):
    return [(lambda value, name=name: kind(**{name: value}, **others), name) for name in names]


FACTORIES = [
    *settings(lambda **given: PreventativeSteering([EVIL], **given), "coefficient", "batch_size"),
    (lambda value: PreventativeSteering([EVIL], {"evil": value}), "coefficient of evil"),
    (lambda value: PreventativeSteering([EVIL], Schedule(value)), "coefficient"),
    (lambda value: PreventativeSteering([EVIL], Adaptive(target={"evil": value})), "target of evil"),
    *settings(Schedule, "warmup", "final"),
    *settings(Adaptive, "proportional", "integral", "slew", "reach", "tolerance", "start"),
    (GivenStart, "start"), (lambda value: GivenStart({"evil": value}), "start"),
    *settings(LikeliestStart, "samples"), *settings(MatchingStart, "samples", "max_new_tokens"),
    *settings(DriftGuard, "shift", "expression"), (lambda value: DriftGuard(shift={"evil": value}), "shift"),
    *settings(lambda **given: ProjectionRegularisation([EVIL], **given), "weight"),
    *settings(lambda **given: PersonaMonitor([EVIL], **given), "every_n_steps", "batch_size"),
    *settings(lambda **given: TraitEvaluation([LOUD], judges={"loud": None}, **given), "every_n_steps", "questions"),
    *settings(Sampling, "max_new_tokens", "temperature", "batch_size", "seed"),
    *settings(ExtractionSettings, "rollouts", "questions", "judge_pairs", "sweep_layers", "sweep_questions",
              "batch_size", "sweep_coefficient"),
    *settings(ScreeningSettings, "subset", "checked", "false_positive_rate", "max_length", "max_new_tokens",
              "batch_size", "batch_tokens", "shard_rows", "most_rejected", "seed"),
    *settings(lambda **given: Endpoint(URL, "m", **given), "timeout", "retries", "temperature", "max_tokens"),
    *settings(lambda **given: LlmJudge(Endpoint(URL, "m"), LOUD, **given), "max_requests", "concurrency"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "many", True, [1]], ids=repr)
@pytest.mark.parametrize(("make", "name"), FACTORIES, ids=[f"{n}-{name}" for n, (_, name) in enumerate(FACTORIES)])
def test_what_is_no_number_is_named(make, name, value):
    with pytest.raises(InputError, match=name):
        make(value)
