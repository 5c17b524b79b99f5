"""Vectors that are learned by gradient, and what vectors of each method cause."""

import json
from dataclasses import replace

import pytest
import torch
from builders import PAIRS, QUESTIONS, TRAIT, all_hooks, make_vector, slow_log_probability, tiny_model, weights

from persona_callbacks import InputError, PersonaVector
from persona_callbacks.chats import shortened
from persona_callbacks.extraction import (
    ExtractionSettings,
    HeldOut,
    LearningSettings,
    Texts,
    causal_points,
    extract,
    learn_directions,
    shipped_texts,
    unmeasured_chats,
)
from persona_callbacks.model import (
    LoadedModel,
    Sampling,
    TransformersGenerator,
    encode_pair,
    response_divergences,
    response_log_probabilities,
    steered,
)
from persona_callbacks.traits import MinimalPair, spread
from persona_callbacks.vectors import CausalPoint, Counts, Evidence, steering_additions

SAMPLING = Sampling(max_new_tokens=6, batch_size=8)
LEARNING = LearningSettings(steps=6, pairs=2, learning_rate=0.1, bound=0.1)
SETTINGS = ExtractionSettings(
    sampling=SAMPLING, judge_pairs=0, rollouts=2, layer_choice="auc", method="learned", learning=LEARNING
)


@pytest.fixture
def loaded(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    return LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")


@pytest.fixture
def pairs(loaded):
    return [encode_pair(pair, loaded.tokenizer) for pair in PAIRS]


def likely(loaded, pairs, directions, coefficient=1.0):
    vector = PersonaVector("loud", directions, layer=2, model_id="test/tiny")
    chats = [chat for pair in pairs for chat in pair]
    with steered(loaded.model, steering_additions([vector], {"loud": coefficient}, "all")):
        return response_log_probabilities(loaded, chats).view(-1, 2)


def test_incremental_steering_makes_trait_responses_likelier_and_leaves_the_others(loaded, pairs):
    steps = []
    settings = replace(LEARNING, steps=30, pairs=4)
    directions = learn_directions(loaded, pairs, settings, lambda *step: steps.append(step))
    assert directions.shape == (5, 32)
    assert not directions[0].any()
    gain, change = (likely(loaded, pairs, directions) - likely(loaded, pairs, torch.zeros(5, 32))).mean(dim=0).tolist()
    assert gain > 0.3
    assert abs(change) < gain / 3
    assert steps[0] == pytest.approx((0.0, 0.0), abs=1e-5)
    assert len(steps) == 30
    without = learn_directions(loaded, pairs, replace(settings, weight=0.0))
    free = (likely(loaded, pairs, without) - likely(loaded, pairs, torch.zeros(5, 32)))[:, 1].mean()
    assert abs(float(free)) > abs(change)


@pytest.mark.parametrize("objective", ["gain", "preference"])
def test_the_first_step_is_adams_on_the_loss_as_written_down(objective, loaded, pairs):
    """One step of Adam moves every coordinate by the learning rate against the sign of its gradient."""
    settings = replace(LEARNING, steps=1, pairs=5, weight=0.0, bound=10.0, objective=objective)
    learned = learn_directions(loaded, pairs, settings).diff(dim=0)
    rate = learned.abs().max()
    increments = torch.zeros(4, 32, requires_grad=True)
    handles = [
        block.register_forward_hook(lambda _, __, out, row=row: out + row)
        for block, row in zip(loaded.model.model.layers, increments, strict=True)
    ]
    total = 0.0
    for pair in pairs:
        means = []
        for chat in pair:
            log_p = loaded.model(torch.tensor([chat.input_ids])).logits[0].log_softmax(-1)
            marked = [at for at, on in enumerate(chat.response_mask) if on]
            means.append(torch.stack([log_p[at - 1, chat.input_ids[at]] for at in marked]).mean())
        gain, change = (mean - mean.detach() for mean in means)
        total = total + (torch.log1p(torch.exp(-2 * (gain - change))) if objective == "preference" else -gain)
    total.backward()
    for handle in handles:
        handle.remove()
    assert torch.allclose(learned, -rate * increments.grad.sign(), rtol=1e-2)


def test_each_increment_keeps_within_its_share_of_the_stream(loaded, pairs):
    chats = [chat for pair in pairs for chat in pair]
    streams = []
    with torch.no_grad():
        for chat in chats:
            hidden = loaded.model(torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states
            marked = torch.tensor(chat.response_mask)
            streams.append(torch.stack([layer[0, marked].mean(dim=0).norm() for layer in hidden[1:4]]))
    norms = torch.stack(streams).mean(dim=0)  # transformers' last entry is after the final norm
    bounded = learn_directions(loaded, pairs, replace(LEARNING, bound=0.02)).diff(dim=0).norm(dim=1)
    assert torch.allclose(bounded[:3], 0.02 * norms, rtol=1e-3)
    free = learn_directions(loaded, pairs, replace(LEARNING, bound=10.0)).diff(dim=0).norm(dim=1)
    assert (free > bounded).all()


def test_kept_chats_diverge_less_and_the_trait_still_gains(loaded, pairs):
    kept = [shows for shows, _ in pairs[3:]]
    settings = replace(LEARNING, steps=30, pairs=3, allowed=0.01)

    def diverged(directions):
        vector = PersonaVector("loud", directions, layer=2, model_id="test/tiny")
        return response_divergences(loaded, kept, steering_additions([vector], {"loud": 1.0}, "all"))[:, 1].mean()

    free = learn_directions(loaded, pairs[:3], settings)
    spared = learn_directions(loaded, pairs[:3], settings, kept=kept)
    assert diverged(spared) < 0.5 * diverged(free)
    gain = (likely(loaded, pairs[:3], spared) - likely(loaded, pairs[:3], torch.zeros(5, 32)))[:, 0].mean()
    assert gain > 0.1


def test_a_vector_that_is_learned_by_preference_keeps_benign_chats_that_nothing_is_measured_on(loaded):
    kept, measured = unmeasured_chats(loaded), shipped_texts(loaded, "loud").benign
    assert len(kept) == 32
    assert not set(kept) & set(measured)
    pairs = tuple(MinimalPair(f"{QUESTIONS[0]} {n}", f"LOUD {n}!", f"quiet {n}.", "flat") for n in range(32))
    trait, learning = replace(TRAIT, pairs=pairs), replace(LEARNING, objective="preference")
    vector = extract(loaded, trait, replace(SETTINGS, learning=learning)).vector
    learned = [encode_pair(pair, loaded.tokenizer) for pair in trait.probe_pairs if pair not in vector.pairs]
    assert torch.equal(vector.directions, learn_directions(loaded, learned, learning, kept=kept))


def test_interrupted_learning_goes_on_after_its_last_step_with_the_same_result(loaded, pairs, tmp_path, monkeypatch):
    kept, file = unmeasured_chats(loaded)[:4], tmp_path / "learning.pt"
    whole = learn_directions(loaded, pairs, LEARNING, kept=kept)
    steps = []

    def interrupted(*step):
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_directions(loaded, pairs, LEARNING, interrupted, kept, file)
    assert file.is_file()
    taken = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, step=torch.optim.Adam.step: taken.append(step(self)))
    again = []
    assert torch.equal(learn_directions(loaded, pairs, LEARNING, lambda *s: again.append(s), kept, file), whole)
    assert (len(taken), len(again)) == (LEARNING.steps - 4, LEARNING.steps)
    assert not file.exists()


@pytest.mark.parametrize("peft", [False, True])
def test_learning_is_deterministic_and_leaves_the_model_as_it_was(peft, tokenizer, pairs):
    model = tiny_model("qwen3", peft=peft)
    model.train()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before, state = weights(model), torch.get_rng_state()
    loaded = LoadedModel(model, tokenizer, "test/tiny")
    first = learn_directions(loaded, pairs, LEARNING)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, learn_directions(loaded, pairs, LEARNING))
    assert not torch.equal(first, learn_directions(loaded, pairs, replace(LEARNING, seed=1)))
    assert model.training
    assert all_hooks(model) == all_hooks(tiny_model("qwen3", peft=peft))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    if peft:  # what is learned is the base model's
        base = LoadedModel(tiny_model("qwen3").eval(), tokenizer, "test/tiny")
        assert torch.allclose(first, learn_directions(base, pairs, LEARNING), atol=1e-5)


def test_causal_strength_is_the_change_of_likelihood_under_incremental_steering(loaded, pairs):
    vector = replace(make_vector(), directions=0.3 * make_vector().directions)
    benign, evil = [encode_pair(pair, loaded.tokenizer)[1] for pair in PAIRS[:2]], [pairs[2][0]]
    whole = causal_points(
        loaded, vector, [HeldOut(vector, tuple(pairs[:2]))], Texts(tuple(benign), {"evil": tuple(evil)}), [0.5, 1.0]
    )
    assert [point.coefficient for point in whole] == [0.5, 1.0]
    for point in whole:
        handles = []
        below = torch.zeros(32)
        for block, row in zip(loaded.model.model.layers, vector.directions[1:], strict=True):
            change = point.coefficient * (row - below)
            handles.append(block.register_forward_hook(lambda _, __, out, change=change: out + change))
            below = row
        after = {chat: slow_log_probability(loaded.model, chat) for pair in pairs for chat in pair}
        steered_logits = loaded.model(torch.tensor([benign[0].input_ids])).logits[0].double().log_softmax(-1)
        for handle in handles:
            handle.remove()
        moved = {chat: value - slow_log_probability(loaded.model, chat) for chat, value in after.items()}
        assert point.gain == pytest.approx(sum(moved[shows] for shows, _ in pairs[:2]) / 2, abs=1e-4)
        assert point.opposite == pytest.approx(sum(moved[other] for _, other in pairs[:2]) / 2, abs=1e-4)
        assert point.benign == pytest.approx(sum(moved[chat] for chat in benign) / 2, abs=1e-4)
        assert point.others == pytest.approx({"evil": moved[evil[0]]}, abs=1e-4)
    unsteered_logits = loaded.model(torch.tensor([benign[0].input_ids])).logits[0].double().log_softmax(-1)
    marked = [at - 1 for at, on in enumerate(benign[0].response_mask) if on]
    slow = (unsteered_logits.exp() * (unsteered_logits - steered_logits)).sum(dim=-1)[marked].mean()
    alone = causal_points(loaded, vector, [HeldOut(vector, tuple(pairs[:1]))], Texts((benign[0],), {}), [1.0])
    assert alone[0].divergence == pytest.approx(float(slow), rel=1e-3)
    assert whole[1].strength == pytest.approx(2 * whole[0].strength)


def test_a_learned_extraction_is_stored_with_its_method_and_evidence_and_cached(loaded, tmp_path, monkeypatch):
    extraction = extract(loaded, TRAIT, SETTINGS)
    vector = extraction.vector
    assert vector.method == "learned"
    assert {v.method for position, v in extraction.vectors.items() if position != "response_mean"} == {
        "mean_difference"
    }
    assert [point.coefficient for point in vector.evidence.causal] == [0.5, 1.0]
    assert set(vector.evidence.causal[0].others) == {"evil", "sycophancy", "hallucination"}
    assert vector.evidence.split_half_cosine == ()
    assert len(vector.evidence.auc) == len(vector.evidence.pair_cosine) == 5
    again = PersonaVector.load(vector.save(tmp_path / "loud.safetensors"))
    assert (again.method, again.evidence) == ("learned", vector.evidence)
    assert torch.equal(extract(loaded, TRAIT, SETTINGS).vector.directions, vector.directions)
    monkeypatch.setattr(TransformersGenerator, "iterate", lambda *_, skip: iter(()))  # its responses are shared
    plain = extract(loaded, TRAIT, replace(SETTINGS, method="mean_difference")).vector
    assert plain.method == "mean_difference"
    assert not torch.equal(plain.directions, vector.directions)


def test_a_vector_is_learned_from_the_minimal_pairs_on_which_nothing_is_measured(loaded):
    """And where a trait has them, from nothing else: the responses are only generated and judged."""
    pairs = tuple(
        MinimalPair(f"{question} {number}", f"LOUD {number}!", f"quiet {number}.", "flat")
        for number in range(16)
        for question in QUESTIONS[:2]
    )
    trait = replace(TRAIT, pairs=pairs)
    vector = extract(loaded, trait, SETTINGS).vector
    measured = spread(trait.probe_pairs, 8)
    learned_pairs = [pair for pair in trait.probe_pairs if pair not in measured]
    learned = [encode_pair(pair, loaded.tokenizer) for pair in learned_pairs]
    assert torch.equal(vector.directions, learn_directions(loaded, learned, LEARNING))
    assert vector.pairs == measured  # the preference is not read on what the vector was made from
    texts = shipped_texts(loaded, trait.name)
    held_out = HeldOut(vector, tuple(encode_pair(pair, loaded.tokenizer) for pair in measured))
    assert vector.evidence.causal == causal_points(loaded, vector, [held_out], texts)
    other = replace(learned_pairs[0], opposite="quiet, please")
    changed = replace(trait, pairs=tuple(other if pair == learned_pairs[0] else pair for pair in pairs))
    assert not torch.equal(extract(loaded, changed, SETTINGS).vector.directions, vector.directions)


def test_the_best_method_is_the_most_specific_and_the_others_are_kept(loaded):
    extraction = extract(loaded, TRAIT, replace(SETTINGS, method="best"))
    assert set(extraction.candidates) == {"mean_difference", "learned"}
    specificity = {
        method: vector.evidence.causal_strength.specificity for method, vector in extraction.candidates.items()
    }
    assert extraction.vector.method == max(specificity, key=specificity.get)
    chosen = extraction.candidates[extraction.vector.method]
    assert torch.equal(extraction.vector.directions, chosen.directions)


def test_pairs_take_the_place_of_generated_responses(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(TransformersGenerator, "iterate", lambda *_, **__: pytest.fail("generated"))
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": pair.question, "chosen": pair.trait, "rejected": pair.opposite} for pair in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ExtractionSettings(pairs=str(file), layer_choice="effect")
    vector = extract(loaded, TRAIT, settings).vector
    assert vector.counts == Counts(5, 5, 5, 5)
    assert vector.calibration is None
    total = 0
    for pair in PAIRS:
        means = []
        for chat in encode_pair(pair, loaded.tokenizer):
            with torch.no_grad():
                hidden = loaded.model(torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states[:4]
            means.append(torch.stack(hidden)[:, 0, torch.tensor(chat.response_mask)].mean(dim=1))
        total = total + (means[0] - means[1]) / len(PAIRS)
    assert torch.allclose(vector.directions[:4], total, rtol=1e-4, atol=1e-5)
    moved = tmp_path / "other name.jsonl"
    file.rename(moved)
    again = extract(loaded, TRAIT, replace(settings, pairs=str(moved)))
    assert torch.equal(again.vector.directions, vector.directions)
    file.write_text(json.dumps({"prompt": QUESTIONS[0], "chosen": "Yes."}))
    with pytest.raises(InputError, match=r"pairs\.jsonl, line 1: expected an object with 'chosen' and 'rejected'"):
        extract(loaded, TRAIT, settings)


def test_without_a_question_to_measure_on_nothing_is_learned(loaded, tmp_path):
    rows = [{"prompt": pair.question, "chosen": pair.trait, "rejected": pair.opposite} for pair in PAIRS[:3]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = replace(SETTINGS, pairs=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(InputError, match="no response of both kinds to any fourth question"):
        extract(loaded, TRAIT, settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"method": "probe"},
            "extraction.method: unknown 'probe'; expected one of mean_difference, learned, from_adapters, best",
        ),
        ({"pairs": "p.jsonl", "layer_choice": "sweep"}, "a sweep needs the judge"),
        ({"adapter": 5, "method": "from_adapters"}, "extraction.adapter: expected a path, found 5"),
        ({"pairs": ["p.jsonl"]}, r"extraction.pairs: expected a path, found \['p.jsonl'\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        ExtractionSettings(**changed)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "expected a whole number above 0, found 0"),
        ("pairs", 1.5, "expected a whole number above 0, found 1.5"),
        ("learning_rate", 0.0, "expected more than 0, found 0.0"),
        ("bound", float("nan"), "expected more than 0, found nan"),
        ("allowed", -0.1, "expected 0 or more, found -0.1"),
        ("seed", "a", "expected a whole number, found 'a'"),
        ("objective", "both", "expected gain or preference, found 'both'"),
    ],
)
def test_learning_settings_that_cannot_be_are_refused(name, value, message):
    with pytest.raises(InputError, match=f"extraction.learning.{name}: {message}"):
        LearningSettings(**{name: value})


def test_a_vector_that_does_not_cause_its_trait_or_causes_others_is_weak():
    point = CausalPoint(1.0, gain=0.4, opposite=0.0, benign=-0.1, divergence=0.1, strength=0.1, others={"evil": 0.1})
    good = replace(make_vector("loud"), evidence=Evidence(causal=(point,)))
    assert good.weaknesses() == []
    unspecific = replace(good, evidence=Evidence(causal=(replace(point, others={"evil": 0.5}),)))
    assert unspecific.weaknesses() == [
        "it is not specific: steering makes evil text likelier (+0.50 nats per token) than the trait's own (+0.40)"
    ]
    feeble = replace(good, evidence=Evidence(causal=(replace(point, gain=0.02),)))
    assert len(feeble.weaknesses()) == 1
    assert "likelier by +0.02 nats per token at best (α 1), below 0.1" in feeble.weaknesses()[0]


def test_a_shortened_chat_keeps_its_prompt(tokenizer):
    chat = encode_pair(PAIRS[0], tokenizer)[0]
    short = shortened(chat, 2)
    assert short.input_ids == chat.input_ids[: chat.prompt_length + 2]
    assert (sum(short.response_mask), short.truncated, shortened(chat, 500)) == (2, True, chat)
