"""Adaptive and scheduled steering, ablation, regularisation, and the guard, in real fits of tiny models."""

import copy
import math
from collections import Counter

import lightning.pytorch as pl
import pytest
import torch
from builders import ForeignModule, all_hooks, batches, fit, make_vector, tiny_model, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from persona_callbacks import (
    Ablation,
    Adaptive,
    DriftGuard,
    InputError,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    Schedule,
    TraitEvaluation,
)
from persona_callbacks.callbacks._samples import sample_chats
from persona_callbacks.steering import LikeliestStart, MatchingStart
from persona_callbacks.vectors import algebra as arithmetic
from persona_callbacks.vectors import incremental_directions, steering_additions

SMALL = make_vector().directions * 0.1


def small_vector(trait="evil", seed=1):
    vector = make_vector(trait, seed=seed)
    return type(vector)(trait=trait, directions=vector.directions * 0.3, layer=3, model_id="", probes=vector.probes)


def written_into(model, additions, keep=None):
    """The model with the vectors in its code: each block's own forward adds them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer, block in enumerate(base.model.layers, start=1):
        plain = block.forward

        def forward(*args, _plain=plain, _layer=layer, **kwargs):
            hidden = _plain(*args, **kwargs)
            added = additions[_layer].to(hidden.dtype)
            return hidden + (added if keep is None else keep().unsqueeze(-1).to(hidden.dtype) * added)

        block.forward = forward
    return model


class Gradients(pl.Callback):
    """The gradients of every optimizer step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [({}, 1e-5), ({"accumulate_grad_batches": 3}, 1e-5), ({"precision": "bf16-mixed"}, 0.02),
     ({"precision": "bf16-true"}, 0.02), ({"half": True}, 0.02), ({"checkpointing": True}, 1e-5),
     ({"checkpointing": False}, 1e-5), ({"compile": "whole"}, 1e-5), ({"compile": "blocks"}, 1e-5)],
    ids=["plain", "accumulation", "bf16", "bf16-true", "16-mixed", "reentrant", "not-reentrant", "compiled",
         "compiled blocks"],
)  # fmt: skip
@pytest.mark.parametrize("positions", ["all", "response"])
def test_gradients_are_those_of_a_model_with_the_vector_in_its_code(how, tolerance, positions, tokenizer, tmp_path):
    how = dict(how)
    vectors, alphas = [small_vector(), small_vector("other", 2)], {"evil": 0.7, "other": -0.4}
    additions = steering_additions(vectors, alphas, "all")
    checkpointing, compiled = how.pop("checkpointing", None), how.pop("compile", None)
    half = how.pop("half", False)  # on a CPU Lightning takes bfloat16 for precision="16-mixed"

    def gradients(steer):
        model = tiny_model(peft=True)
        module = ForeignModule(model, tokenizer)
        seen = Gradients()
        callbacks = [seen]
        if steer:
            callbacks.append(PreventativeSteering(vectors, alphas, positions=positions))
            if checkpointing is not None:
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        else:
            marked = {}
            written_into(model, additions, (lambda: marked["now"]) if positions == "response" else None)
            plain = module.training_step

            def step(batch, batch_idx):
                marked["now"] = batch["labels"] != -100
                return plain(batch, batch_idx)

            module.training_step = step
        if steer and compiled:
            torch._dynamo.reset()
        if steer and compiled == "whole":
            module.lm = torch.compile(model, backend="aot_eager")
        if steer and compiled == "blocks":
            for block in model.get_base_model().model.layers:
                block.compile(backend="aot_eager")
        if half:
            how["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
        fit(module, callbacks, tmp_path, max_steps=2, limit_val_batches=0, **how)
        return [{name.replace("_orig_mod.", ""): g for name, g in one.items()} for one in seen.seen]

    expected, found = gradients(steer=False), gradients(steer=True)
    assert len(expected) == len(found) == 2
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name, gradient in one.items():
            assert (gradient - other[name]).norm() <= tolerance * gradient.norm() + 1e-6, name


@pytest.mark.parametrize(
    "compiled",
    [pytest.param("whole", marks=pytest.mark.slow), pytest.param("whole, in place", marks=pytest.mark.slow),
     "blocks, in place"],
)  # fmt: skip
def test_readings_of_a_compiled_model_are_those_of_the_eager_one(compiled, tokenizer, tmp_path):
    """Probes attach and detach hooks while the compiled code is there, before its first call and after it."""

    def run(how):
        module, vectors = ForeignModule(tiny_model(peft=True), tokenizer), [small_vector(), small_vector("other", 2)]
        if how:
            torch._dynamo.reset()
        if how == "whole":
            module.lm = torch.compile(module.lm, backend="aot_eager")
        elif how == "whole, in place":
            module.lm.compile(backend="aot_eager")
        elif how:
            for block in module.lm.get_base_model().model.layers:
                block.compile(backend="aot_eager")
        monitor, steering = PersonaMonitor(vectors, every_n_steps=2), PreventativeSteering(vectors, 0.5)
        trainer = fit(module, [monitor, steering], tmp_path, max_steps=4, limit_val_batches=1)
        read = [value for r in monitor.readings for value in (*r.projection.values(), *r.shift.values())]
        return [*read, *(float(value) for value in trainer.callback_metrics.values())], all_hooks(module)

    (expected, hooks), (found, left) = run(None), run(compiled)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert left == hooks


def test_increments_sum_to_the_raw_direction_where_blocks_are_identity(tokenizer, tmp_path):
    model = tiny_model()
    for block in model.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
        block.requires_grad_(False)
    vector, streams = make_vector(), []
    model.model.layers[-1].register_forward_hook(lambda *_: None)

    class Watching(ForeignModule):
        def training_step(self, batch, batch_idx):
            # After every hook that is there: what enters the final norm.
            watch = self.lm.model.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0].detach()))
            loss = super().training_step(batch, batch_idx)
            watch.remove()
            return loss

    module = Watching(model, tokenizer)
    batch = next(iter(batches()))
    embedded = model.model.embed_tokens(batch["input_ids"]).detach()
    fit(module, [PreventativeSteering([vector], 1.3)], tmp_path, max_steps=1, limit_val_batches=0)
    assert torch.allclose(streams[0] - embedded, (1.3 * vector.directions[-1]).expand_as(embedded), atol=1e-5)


def adaptive(vectors, **law):
    return PersonaMonitor(vectors, every_n_steps=4), PreventativeSteering(
        vectors, Adaptive(LikeliestStart(samples=6), **law)
    )


def test_adaptive_starts_where_the_data_are_likeliest(tokenizer, tmp_path):
    """Against a brute-force search with the vector written into the model's code."""
    vector = small_vector()
    chats = sample_chats("test", type("T", (), {"train_dataloader": batches()})(), 6, lambda: tokenizer)

    def loss(alpha):
        model = written_into(tiny_model(), steering_additions([vector], {"evil": alpha}, "all")).eval()
        total, count = 0.0, 0
        for chat in chats:
            ids = torch.tensor([chat.input_ids])
            labels = torch.where(torch.tensor([chat.loss_mask]), ids, -100)
            with torch.no_grad():
                total += model(input_ids=ids, labels=labels).loss.item() * sum(chat.loss_mask)
            count += sum(chat.loss_mask)
        return total / count

    values = [loss(alpha) for alpha in (0.0, 0.4, 0.8)]
    slope, curvature = (4 * values[1] - values[2] - 3 * values[0]) / 0.8, (values[2] - 2 * values[1] + values[0]) / 0.16
    expected = min(2.0, max(0.0, -slope / curvature)) if curvature > 0 else 2.0 * (slope < 0)
    steering = PreventativeSteering([vector], Adaptive(LikeliestStart(samples=6), feedback=False))
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [steering], tmp_path, max_steps=1, limit_val_batches=0)
    assert steering.coefficients["evil"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
def test_start_does_not_depend_on_padding(side, mask, tokenizer, tmp_path):
    def start(pad):
        torch.manual_seed(0)
        items = []
        for item in batches().dataset:
            kept = {name: values[item["attention_mask"] == 1] for name, values in item.items()}
            if not mask:
                del kept["attention_mask"]
            fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
            items.append({name: pad(values, fill[name]) for name, values in kept.items()})
        steering = PreventativeSteering([small_vector()], Adaptive(LikeliestStart(samples=6), feedback=False))
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, callbacks=[steering],
                             default_root_dir=tmp_path)  # fmt: skip
        trainer.fit(ForeignModule(tiny_model(peft=True), tokenizer), torch.utils.data.DataLoader(items))
        return steering.coefficients["evil"]

    def padded(values, fill):
        return torch.nn.functional.pad(values, (20, 0) if side == "left" else (0, 20), value=fill)

    expected = start(lambda values, fill: values)
    assert expected > 0
    assert start(padded) == pytest.approx(expected, rel=1e-6)


def test_padding_that_may_be_text_is_told(tokenizer):
    twin = copy.deepcopy(tokenizer)
    twin.pad_token = twin.eos_token
    pad = twin.pad_token_id
    item = {"input_ids": [pad, pad, 7, 8], "labels": [-100, -100, -100, 8]}
    trainer = type("T", (), {"train_dataloader": torch.utils.data.DataLoader([item])})()
    with pytest.warns(UserWarning, match="Give the items an 'attention_mask'"):
        (chat,) = sample_chats("test", trainer, 1, lambda: twin)
    assert chat.input_ids == (pad, pad, 7, 8)
    (chat,) = sample_chats("test", trainer, 1, lambda: tokenizer)
    assert chat.input_ids == (pad, pad, 7, 8), "no pad token of this tokenizer"


def test_projection_difference_start_against_a_slow_reading(tokenizer, tmp_path):
    vector = small_vector()
    steering = PreventativeSteering([vector], Adaptive(MatchingStart(samples=6, max_new_tokens=5), feedback=False))
    model = tiny_model(peft=True)
    base = tiny_model().eval()
    fit(ForeignModule(model, tokenizer), [steering], tmp_path, max_steps=1, limit_val_batches=0)
    differences = []
    unit = vector.unit_direction()
    for chat in sample_chats("test", type("T", (), {"train_dataloader": batches()})(), 6, lambda: tokenizer):
        prompt = list(chat.input_ids[: chat.prompt_length])
        own = list(prompt)
        for _ in range(5):
            logits = base(torch.tensor([own])).logits[0, -1].detach()
            if len(own) == len(prompt):
                logits[tokenizer.eos_token_id] = -math.inf
            own.append(int(logits.argmax()))
            if own[-1] == tokenizer.eos_token_id:
                own.pop()
                break
        means = [
            base(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0, len(prompt) :].detach().mean(dim=0)
            for ids in (list(chat.input_ids), own)
        ]
        differences.append(float((means[0] - means[1]) @ unit))
    expected = max(0.0, sum(differences) / 6 / float(vector.direction().norm()))
    assert steering.coefficients["evil"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_adaptive_reads_often_at_first_and_answers_between_optimizer_steps_only(tokenizer, tmp_path):
    vectors = [small_vector(), small_vector("other", 2)]
    monitor, steering = adaptive(vectors)
    during = []

    class Watching(ForeignModule):
        def training_step(self, batch, batch_idx):
            during.append((self.trainer.global_step, dict(steering.coefficients)))
            return super().training_step(batch, batch_idx)

    fit(Watching(tiny_model(peft=True), tokenizer), [steering, monitor], tmp_path, accumulate_grad_batches=2,
        max_epochs=3)  # fmt: skip
    assert {reading.step for reading in monitor.readings} > {0, 1, 4, 8}, "more than the monitor's own, from the start"
    by_step = {}
    for step, coefficients in during:
        assert by_step.setdefault(step, coefficients) == coefficients, "α moved while gradients were accumulated"
    assert len({tuple(one.values()) for one in by_step.values()}) > 1, "α never moved"
    assert all(value >= 0 for one in by_step.values() for value in one.values())


def test_adaptive_steering_does_not_depend_on_the_order_of_callbacks(tokenizer, tmp_path):
    def run(reverse):
        monitor, steering = adaptive([small_vector()])
        module = ForeignModule(tiny_model(peft=True), tokenizer)
        fit(module, [steering, monitor] if reverse else [monitor, steering], tmp_path, max_epochs=2)
        return weights(module), steering.coefficients

    first, second = run(reverse=False), run(reverse=True)
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_two_adaptive_steerings_each_get_the_readings_they_ask_for(tokenizer, tmp_path):
    """With requests that overwrote each other, the steering that comes first would wait for the other's readings."""

    class Every(Adaptive):
        def __init__(self, steps):
            super().__init__(start=0.5)
            self.steps, self.read = steps, []

        def after_reading(self, reading):
            self.read.append(reading.step)
            return super().after_reading(reading)

        @property
        def next_reading(self):
            return ([0, *self.read][-1] // self.steps + 1) * self.steps

    vectors = [small_vector(), small_vector("other", 2)]
    monitor = PersonaMonitor(vectors, every_n_steps=100)
    steerings = [PreventativeSteering([vector], Every(steps)) for vector, steps in zip(vectors, (4, 3), strict=True)]
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [monitor, *steerings_with_keys(steerings)], tmp_path,
        max_epochs=3)  # fmt: skip
    assert [reading.step for reading in monitor.readings] == [0, 3, 4, 6, 8, 9, 12, 15, 16, 18]
    monitor = PersonaMonitor(vectors)
    first, second = object(), object()
    monitor.request(first, 5)
    monitor.request(second, 7)
    monitor.request(first, 6)
    assert sorted(step for step, _ in monitor._requests.values()) == [6, 7]
    monitor.request(second, None)
    assert [step for step, _ in monitor._requests.values()] == [6]


def steerings_with_keys(steerings):
    """Two callbacks of one class need state keys of their own."""
    for steering in steerings:
        key = f"PreventativeSteering-{steering.vectors[0].trait}"
        steering.__class__ = type(key, (PreventativeSteering,), {"state_key": key})
    return steerings


def test_state_of_a_checkpoint_from_before_laws_is_read(tokenizer, tmp_path):
    monitor, steering = adaptive([small_vector()], tolerance=0.0)
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [monitor, steering], tmp_path)
    state = steering.state_dict()
    controller = {name: value for name, value in state["law"].items() if name != "last_reading"}
    older = {"coefficients": state["coefficients"], "controller": controller, "seen": state["step_read"], "told": True}
    _, restored = adaptive([small_vector()], tolerance=0.0)
    restored.load_state_dict(older)
    assert restored.coefficients == state["coefficients"]
    assert restored.state_dict() == {**state, "step": -1, "warned": True}


def test_settings_are_checked_without_vectors():
    good = {"traits": ["evil"], "num_layers": 4}
    for callback in (PreventativeSteering, Ablation, ProjectionRegularisation, PersonaMonitor, TraitEvaluation):
        callback.check(**good)
    for callback, wrong, named in (
        (PreventativeSteering, {"layers": [9]}, "unknown layer 9"),
        (PreventativeSteering, {"layers": "every"}, "'all', 'chosen' or a list"),
        (PreventativeSteering, {"coefficient": {"kind": 1.0}}, "coefficient names the traits"),
        (PreventativeSteering, {"coefficient": Adaptive(start={"kind": 1.0})}, "start names the traits"),
        (PreventativeSteering, {"coefficient": Adaptive(target={"kind": 1.0})}, "target names the traits"),
        (PreventativeSteering, {"chats": []}, "chats is empty"),
        (Ablation, {"positions": "prompt"}, "positions must be"),
        (ProjectionRegularisation, {"weight": -1.0}, "weight must be 0 or more"),
        (PersonaMonitor, {"every_n_steps": 0}, "every_n_steps must be at least 1"),
        (PersonaMonitor, {"position": "response_mean"}, "position: expected"),
        (TraitEvaluation, {"questions": 0}, "questions must be at least 1"),
    ):
        with pytest.raises(InputError, match=named):
            callback.check(**good, **wrong)
        if callback is not TraitEvaluation:
            with pytest.raises(InputError, match=named):
                callback([make_vector()], **wrong)


def test_schedule_moves_the_coefficient_by_optimizer_steps(tokenizer, tmp_path):
    seen = []

    class Watching(ForeignModule):
        def training_step(self, batch, batch_idx):
            seen.append(steering.coefficients["evil"])
            return super().training_step(batch, batch_idx)

    steering = PreventativeSteering([make_vector()], Schedule(0.6, warmup=2, decay="linear"))
    fit(Watching(tiny_model(peft=True), tokenizer), [steering], tmp_path)
    assert seen == pytest.approx([0, 0.3, 0.6, 0.45, 0.3, 0.15])


def test_adaptive_needs_a_monitor_and_data_to_screen(tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    hooks = all_hooks(module)
    with pytest.raises(MisconfigurationException, match=r"add PersonaMonitor\(vectors\)"):
        fit(module, [PreventativeSteering([make_vector()])], tmp_path)
    with pytest.raises(InputError, match="target names the traits"):
        PreventativeSteering([make_vector()], Adaptive(target={"other": 1.0}))
    with pytest.raises(InputError, match="positions must be"):
        PreventativeSteering([make_vector()], 1.0, positions="prompt")

    class UsedUp(torch.utils.data.IterableDataset):
        def __init__(self):
            self.left = iter(batches().dataset)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.left)

    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False,
                         callbacks=[*adaptive([make_vector()])])  # fmt: skip
    with pytest.raises(MisconfigurationException, match="without using it up"):
        trainer.fit(module, torch.utils.data.DataLoader(UsedUp(), batch_size=3))
    assert all_hooks(module) == hooks


def test_target_out_of_reach_is_told_once(tokenizer, tmp_path):
    monitor, steering = adaptive([small_vector()], target=-1e3, reach=0.0)
    logger = CSVLogger(tmp_path, "log")
    with pytest.warns(UserWarning, match="cannot be held at its target") as told:
        trainer = fit(ForeignModule(tiny_model(peft=True), tokenizer), [monitor, steering], tmp_path, logger=logger)
    assert Counter("cannot be held" in str(one.message) for one in told)[True] == 1
    assert trainer.callback_metrics["steering/evil/saturated"] == 1


def test_ablation_leaves_nothing_along_the_vectors_in_training_only(tokenizer, tmp_path):
    vectors = [make_vector(), make_vector("other", seed=2)]
    seen = []

    class Watching(ForeignModule):
        def _look(self, stage, run):
            handles = [
                block.register_forward_hook(lambda _, __, out, layer=layer: seen.append((stage, layer, out.detach())))
                for layer, block in enumerate(self.lm.model.layers, start=1)
            ]
            result = run()
            for handle in handles:
                handle.remove()
            return result

        def training_step(self, batch, batch_idx):
            return self._look("train", lambda: super(Watching, self).training_step(batch, batch_idx))

        def validation_step(self, batch, batch_idx):
            return self._look("validate", lambda: super(Watching, self).validation_step(batch, batch_idx))

    module = Watching(tiny_model(), tokenizer)
    hooks = all_hooks(module)
    fit(module, [Ablation(vectors)], tmp_path, max_steps=2, limit_train_batches=2)
    assert all_hooks(module) == hooks
    assert {stage for stage, *_ in seen} == {"train", "validate"}
    for stage, layer, hidden in seen:
        parts = torch.stack([(hidden @ vector.unit_direction(layer)).abs().max() for vector in vectors])
        assert (parts < 1e-4).all() if stage == "train" else (parts > 1e-2).all()


def test_regularisation_adds_exactly_its_penalty(tokenizer, tmp_path):
    vector = make_vector()
    torch.manual_seed(0)
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    reference, base = tiny_model(peft=True), tiny_model()
    batch = next(iter(batches()))
    marked = (batch["labels"] != -100).double()

    def means(model):
        hidden = model(**batch, output_hidden_states=True).hidden_states[2].double()
        return (hidden * marked[..., None]).sum(dim=1) / marked.sum(dim=1, keepdim=True)

    moved = (means(reference) - means(base)) @ vector.unit_direction(2).double() / vector.direction(2).norm()
    expected = reference(**batch).loss + 3.0 * moved.square().mean()
    expected.backward()
    seen = Gradients()
    callback = ProjectionRegularisation([vector], 3.0, layers=[2])
    fit(module, [callback, seen], tmp_path, max_steps=1, limit_val_batches=0)
    wanted = {f"lm.{name}": p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert wanted.keys() == seen.seen[0].keys()
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, seen.seen[0][name], rtol=1e-3, atol=1e-5), name
    assert "training_step" not in module.__dict__, "the module keeps the penalty"


def test_regularisation_is_gone_after_an_exception(tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    hooks = all_hooks(module)
    module.fail_at = 1
    with pytest.raises(RuntimeError, match="asked to fail"):
        fit(module, [ProjectionRegularisation([make_vector()])], tmp_path)
    assert "training_step" not in module.__dict__
    assert all_hooks(module) == hooks
    own = module.training_step
    module.training_step = lambda batch, batch_idx: own(batch, batch_idx)
    mine = module.training_step
    with pytest.raises(RuntimeError, match="asked to fail"):
        fit(module, [ProjectionRegularisation([make_vector()])], tmp_path)
    assert module.training_step is mine


@pytest.mark.parametrize("action", ["warn", "stop", "roll_back"])
def test_guard_acts_when_a_shift_passes_its_limit(action, tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    kept = []

    class Keep(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            kept.append(weights(pl_module))

        def on_train_batch_end(self, trainer, pl_module, *_):
            kept.append(weights(pl_module))

    vector = arithmetic.negate(make_vector(), "evil")  # which way training goes
    free, monitor = (PersonaMonitor([vector], every_n_steps=1) for _ in range(2))
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [free], tmp_path)
    shifts = [reading.shift["evil"] for reading in free.readings]
    limit, over = shifts[1], 2
    assert max(shifts[:over]) == limit < shifts[over]
    guard = DriftGuard(shift={"evil": limit}, action=action)
    with pytest.warns(UserWarning, match=f"after {over} optimizer steps: shift of evil is"):
        trainer = fit(module, [Keep(), monitor, guard], tmp_path)
    assert trainer.global_step == (len(shifts) - 1 if action == "warn" else over)
    assert guard.rolled_back_to == (over - 1 if action == "roll_back" else None)
    wanted = kept[over - 1] if action == "roll_back" else kept[-1]
    found = weights(module)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert trainer.callback_metrics["steering/guard_tripped"] == 1


def test_guard_says_what_it_lacks(tokenizer, tmp_path):
    monitor = PersonaMonitor([make_vector()])
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    with pytest.raises(InputError, match="found none"):
        DriftGuard()
    with pytest.raises(InputError, match="unknown action"):
        DriftGuard(shift=1.0, action="explode")
    with pytest.raises(MisconfigurationException, match="needs a PersonaMonitor before it"):
        fit(module, [DriftGuard(shift=1.0), monitor], tmp_path)
    with pytest.raises(MisconfigurationException, match="needs a TraitEvaluation before it"):
        fit(module, [monitor, DriftGuard(expression=50.0)], tmp_path)
    with pytest.raises(MisconfigurationException, match="limits the trait 'kind'"):
        fit(module, [monitor, DriftGuard(shift={"kind": 1.0})], tmp_path)


def test_incremental_layers_reach_the_raw_direction_at_each_listed_layer():
    increments = incremental_directions(make_vector(), [2, 4])
    assert torch.equal(increments[2], make_vector().directions[2])
    assert torch.allclose(increments[2] + increments[4], make_vector().directions[4])
