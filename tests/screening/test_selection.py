"""Training on what a screening leaves: weights against their definition, and a real run on them."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from builders import CHATS, QUICK, make_vector, tiny_model
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from persona_callbacks import Adaptive, InputError
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.train import train
from persona_callbacks.chats import Chat
from persona_callbacks.model import LoadedModel
from persona_callbacks.screening import (
    Screening,
    ScreeningSettings,
    ScreeningStart,
    fit_line,
    reweighted,
    screen,
    screened_data,
    starting_coefficients,
)
from persona_callbacks.training import ChatData

TRAITS = ["evil", "other"]


@pytest.fixture
def screening(tokenizer, tmp_path):
    data, benign = tmp_path / "data.jsonl", tmp_path / "benign.jsonl"
    data.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    benign.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS[:10]), encoding="utf-8")
    settings = ScreeningSettings(
        "approximate", checked=0, max_length=150, reference=str(benign), false_positive_rate=0.3, **QUICK
    )
    vectors = [make_vector(), make_vector("other", layer=2, seed=2)]
    summary = screen(
        LoadedModel(tiny_model(), tokenizer, "tiny", ""), Screening.plan(data, settings, tmp_path / "out"), vectors
    )
    return tmp_path / "out", summary, vectors


def test_weights_meet_the_limits_and_change_the_data_least():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 2, generator=generator, dtype=torch.float64) + torch.tensor([0.8, -0.5])
    scores[:, 1] += 0.5 * scores[:, 0]
    weights = reweighted(scores, [0.0, 0.3], TRAITS)
    assert weights.mean().item() == pytest.approx(1)
    means = (weights[:, None] * scores).mean(dim=0)
    assert means[0].item() == pytest.approx(0.0, abs=1e-6)
    assert means[1].item() <= 0.3 + 1e-6
    # Of weights that meet the same limits, none is closer to 1: move along what leaves the means as they are.
    entropy = (weights * weights.log()).mean()
    for _ in range(20):
        step = torch.randn(200, generator=generator, dtype=torch.float64)
        fixed = torch.cat([scores, torch.ones(200, 1, dtype=torch.float64)], dim=1)
        step = step - fixed @ torch.linalg.lstsq(fixed, step[:, None]).solution[:, 0]
        moved = weights + 0.1 * weights.min() * step / step.abs().max()
        assert (moved * moved.log()).mean() > entropy
    assert torch.allclose(reweighted(scores, [5.0, 5.0], TRAITS), torch.ones(200, dtype=torch.float64))
    with pytest.raises(InputError, match="every chat lies further along evil"):
        reweighted(scores, [-9.0, 0.0], TRAITS)
    # Each limit can be met, but not both: what lowers one trait raises the other.
    opposed = torch.tensor([[2.0, -1.0], [-1.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="no weights bring all traits to the benign reference at once"):
        reweighted(opposed, [0.0, 0.0], TRAITS)


def test_filtered_and_reweighted_chats(screening):
    folder, summary, _ = screening
    kept = screened_data(folder, "filtered")
    assert len(kept.chats) == len(CHATS) - summary.flagged < len(CHATS)
    assert set(kept.weights) == {1.0}
    assert all(kept.differences[one.trait] <= one.threshold for one in summary.traits)
    tilted = screened_data(folder, "reweighted")
    assert len(tilted.chats) == len(tilted.weights) == len(CHATS)
    assert all(tilted.differences[one.trait] <= max(one.reference, one.mean) + 1e-4 for one in summary.traits)
    assert sum(tilted.weights) == pytest.approx(len(CHATS))
    (folder.parent / "data.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="has changed since it was screened"):
        screened_data(folder, "filtered")
    with pytest.raises(InputError, match="holds no finished screening"):
        screened_data(folder.parent, "filtered")
    with pytest.raises(InputError, match="unknown use 'all'"):
        screened_data(folder, "all")


@pytest.mark.parametrize("processes", [1, 2])
def test_chats_are_drawn_as_often_as_their_weight_says(tokenizer, processes):
    chats = [Chat(tuple(chat["messages"])) for chat in CHATS[:8]]
    weights = [2.0, 0.0, 1.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    counts = Counter()
    for epoch in range(200):
        for rank in range(processes):
            data = ChatData(chats, tokenizer, 1, weights=weights)
            data.trainer = SimpleNamespace(world_size=processes, global_rank=rank)
            order = data.train_dataloader().sampler
            order.set_epoch(epoch)
            drawn = Counter(order)
            assert len(list(order)) == 8 // processes
            counts += drawn
    for chat, weight in enumerate(weights):
        assert counts[chat] / 200 == pytest.approx(weight, abs=0.15)
    with pytest.raises(InputError, match="2 weights for 8 chats"):
        ChatData(chats, tokenizer, weights=[1.0, 1.0])


def test_steering_starts_at_half_the_predicted_shift(screening, monkeypatch):
    folder, _, vectors = screening
    data = screened_data(folder, "filtered")
    x = [0.0, 1.0, 2.0, 3.0]
    lines = {v.trait: fit_line(v, "approximate", "ours", x, [1.0 + a for a in x]) for v in vectors}
    monkeypatch.setattr("persona_callbacks.screening.start.find_lines", lambda vectors, method: lines)
    found = starting_coefficients(data, vectors)
    for vector in vectors:
        norm = float(vector.direction().norm())
        expected = max(0.0, 0.5 * (1.0 + data.differences[vector.trait]) / norm)
        assert found[vector.trait] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    lines.pop("other")
    with pytest.raises(InputError, match="other: no line predicts its shift"):
        starting_coefficients(data, vectors)
    lines["other"] = fit_line(vectors[1], "approximate", "ours", x, [1.0 + a for a in x])
    start = ScreeningStart(folder, "filtered")
    assert start.coefficients(SimpleNamespace(vectors=vectors)) == found
    with pytest.raises(InputError, match="start is"):
        Adaptive(start={"evil": -0.1})


def test_a_start_from_a_screening_is_checked_before_there_are_vectors(screening, monkeypatch):
    folder, _, vectors = screening
    line = fit_line(vectors[0], "approximate", "ours", [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.5, 3.0])
    monkeypatch.setattr("persona_callbacks.screening.start.shipped_lines", lambda: [replace(line, model_id="tiny")])
    start = ScreeningStart(folder)
    start.check(["evil"])
    with pytest.raises(InputError, match="other: no line predicts its shift"):
        start.check(["evil", "other"])
    with pytest.raises(InputError, match="kindness: the data were not screened for it"):
        start.check(["kindness"])
    with pytest.raises(InputError, match="holds no finished screening"):
        ScreeningStart(folder.parent).check(["evil"])
    with pytest.raises(InputError, match=r"needs data=screened data\.screening=FOLDER"):
        ScreeningStart(None)
    with pytest.raises(InputError, match="unknown use 'all'"):
        ScreeningStart(folder, "all")


@pytest.mark.parametrize("use", ["filtered", "reweighted"])
def test_the_app_trains_on_what_a_screening_leaves(screening, tokenizer, use, tmp_path):
    folder, summary, _ = screening
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    make_vector().save(tmp_path / "evil.safetensors")
    lines = [
        "model=folder", f"model.path={tmp_path / 'model'}", "trait=[]", f"vectors=[{tmp_path / 'evil.safetensors'}]",
        "data=screened", f"data.screening={folder}", f"data.use={use}", "data.max_length=150", "steering=none",
        "evaluation=none", "logger=csv", "sample_answers=0", "trainer.accelerator=cpu", "data.batch_size=4",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        (result,) = train(compose("train", lines), tmp_path / "run")
        with pytest.raises(InstantiationException, match="start=screening: it needs data=screened") as error:
            train(compose("train", ["data=evil", "steering=screening"]), tmp_path / "other")
        assert isinstance(error.value.__cause__, InputError)  # which the command shows in one line
    facts = yaml.safe_load((tmp_path / "run" / "unsteered" / "csv" / "hparams.yaml").read_text())
    assert facts["data_chats"] == (len(CHATS) if use == "reweighted" else len(CHATS) - summary.flagged)
    assert facts["data_file"] == summary.data
    assert facts["screened/evil"] == pytest.approx(screened_data(folder, use).differences["evil"])
    assert result.loss > 0
