"""The callbacks in a trainer, with a module that is not this library's."""

import copy

import pytest
import torch
from builders import FAMILIES, ForeignModule, all_hooks, batches, fit, make_vector, slow_reference, tiny_model, weights
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from persona_callbacks import InputError, PersonaMonitor, PreventativeSteering
from persona_callbacks.chats import encode_prompt
from persona_callbacks.model import base_model, residual
from persona_callbacks.vectors import incremental_directions


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("peft", [False, True], ids=["bare", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_callbacks_on_any_model(family, peft, tokenizer, tmp_path):
    module = ForeignModule(tiny_model(family, peft=peft), tokenizer)
    hooks = all_hooks(module)
    monitor = PersonaMonitor([make_vector()], every_n_steps=2)
    fit(module, [monitor, PreventativeSteering([make_vector()], 0.5)], tmp_path)
    assert [reading.step for reading in monitor.readings] == [0, 2, 4, 6]
    assert monitor.readings[-1].shift["evil"] != 0
    assert all_hooks(module) == hooks


@pytest.mark.parametrize("every_layer", [False, True], ids=["chosen layers", "every layer"])
@pytest.mark.parametrize("peft", [False, True], ids=["bare", "peft"])
def test_shift_equals_slow_reference(peft, every_layer, tokenizer, tmp_path):
    model = tiny_model(peft=peft)
    before = copy.deepcopy(model).eval()
    vectors = [make_vector("evil", layer=3), make_vector("sycophancy", layer=2, seed=4)]
    monitor = PersonaMonitor(vectors, every_n_steps=4, batch_size=2, every_layer=every_layer)
    module = ForeignModule(model, tokenizer)
    fit(module, [monitor, PreventativeSteering(vectors, 0.3)], tmp_path)
    for vector in vectors:

        def mean_projection(lm, layer=None, vector=vector):
            layer = layer or vector.layer
            direction = vector.directions[layer].double()
            chats = [encode_prompt([{"role": "user", "content": q}], tokenizer) for q in vector.probes]
            read = [slow_reference(lm.eval(), chat, layer, "prompt_last") for chat in chats]
            return (sum(read) / len(read) @ direction / direction.norm()).item()

        with base_model(before):
            base = mean_projection(before)
        start, end = mean_projection(before), mean_projection(model)
        scale = abs(end) + abs(base)
        assert monitor.readings[0].shift[vector.trait] == pytest.approx(start - base, abs=1e-4 * scale)
        assert monitor.readings[-1].shift[vector.trait] == pytest.approx(end - base, abs=1e-4 * scale)
        assert monitor.readings[-1].projection[vector.trait] == pytest.approx(end, rel=1e-4)
        assert abs(end - base) > 1e-2 * scale, "the test needs a shift"
        layers = range(1, vector.num_layers) if every_layer else []  # the reference's last row is normed
        with base_model(before):
            bases = [mean_projection(before, layer) for layer in layers]
        shifts = [mean_projection(model, layer) - at for layer, at in zip(layers, bases, strict=True)]
        read = monitor.readings[-1].shift_by_layer.get(vector.trait, [])
        assert len(read) == (vector.num_layers if every_layer else 0)
        assert read[:-1] == pytest.approx(shifts, abs=1e-4 * scale)


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
def test_monitored_run_is_bitwise_the_unmonitored(dropout, tokenizer, tmp_path):
    def run(callbacks):
        model = tiny_model("gpt2", peft=True)
        for child in model.modules():
            if isinstance(child, torch.nn.Dropout):
                child.p = dropout
        module = ForeignModule(model, tokenizer)
        fit(module, callbacks, tmp_path, max_epochs=2)
        return weights(module)

    plain = run([])
    assert same(plain, run([PersonaMonitor([make_vector()], every_n_steps=1)]))
    assert not same(plain, run([PreventativeSteering([make_vector()], 0.5)]))


def test_coefficient_zero_is_bitwise_no_steering(tokenizer, tmp_path):
    def run(callbacks):
        module = ForeignModule(tiny_model(), tokenizer)
        fit(module, callbacks, tmp_path)
        return weights(module)

    assert same(run([]), run([PreventativeSteering([make_vector()], 0.0)]))


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_steering_adds_exactly_the_vector_in_training_only(family, layer, tokenizer, tmp_path):
    """At the steered layer the stream differs by α·v; what comes before is untouched; validation sees nothing."""
    module = ForeignModule(tiny_model(family), tokenizer)
    vector = make_vector()
    probe = next(iter(batches(1)))
    unsteered = _stream(module.lm, probe, layer)
    found = {}

    def look(stage):
        if module.trainer.global_step == 0 and stage not in found:
            found[stage] = _stream(module.lm, probe, layer)

    module.during = look
    steering = PreventativeSteering([vector], 1.7, layers=[layer], when="all")  # the look takes no gradients
    fit(module, [steering], tmp_path, num_sanity_val_steps=1, max_steps=1)
    assert torch.equal(found["validate"], unsteered)
    assert torch.equal(found["train"], unsteered + 1.7 * vector.directions[layer])


def _stream(lm, batch, layer):
    """The stream at a layer during a forward pass, by a plain hook of the test's own, added last."""
    blocks = next(m for m in lm.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    kept = []
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        handle = blocks[layer - 1].register_forward_hook(
            lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    handle.remove()
    return kept[0]


def test_validation_inside_the_epoch_and_probes_are_not_steered(tokenizer, tmp_path):
    module = ForeignModule(tiny_model(), tokenizer)
    probe = next(iter(batches(1)))
    vector = make_vector()
    seen = []

    def look(stage):
        if stage == "validate" or len(seen) < 1:
            steered = _stream(module.lm, probe, 4)
            writers_off = copy.deepcopy(module.lm)
            for child in writers_off.modules():
                child._forward_hooks.clear()
            seen.append((stage, torch.equal(steered, _stream(writers_off, probe, 4))))

    module.during = look
    # The steering callback comes first, so the monitor's probes run while a careless bracket would still be open.
    monitor = PersonaMonitor([vector], every_n_steps=1)
    steering = PreventativeSteering([vector], 1.0, when="all")  # the look takes no gradients
    fit(module, [steering, monitor], tmp_path, num_sanity_val_steps=0, val_check_interval=2)
    assert seen[0] == ("train", False)
    assert {stage for stage, _ in seen[1:]} == {"validate"}
    assert all(unsteered for _, unsteered in seen[1:])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("monitor_first", [True, False])
def test_no_hook_is_left_after_an_exception(error, monitor_first, tokenizer, tmp_path):
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    before, hooks = _stream(module.lm, next(iter(batches(1))), 4), all_hooks(module)
    module.fail_at, module.error = 0, error  # before the first optimizer step: the weights are as they were
    callbacks = [PersonaMonitor([make_vector()]), PreventativeSteering([make_vector()], 1.0)]
    with pytest.raises((RuntimeError, SystemExit)):
        fit(module, callbacks if monitor_first else callbacks[::-1], tmp_path)
    assert all_hooks(module) == hooks
    assert torch.equal(before, _stream(module.lm.eval(), next(iter(batches(1))), 4))


def test_training_step_that_bypasses_the_blocks_is_an_error(tokenizer, tmp_path):
    class Bypass(ForeignModule):
        def training_step(self, batch, batch_idx):
            return self.lm.get_input_embeddings()(batch["input_ids"]).square().mean()

    with pytest.raises(MisconfigurationException, match=r"not steered at layers \[1, 2, 3, 4\]"):
        fit(Bypass(tiny_model(), tokenizer), [PreventativeSteering([make_vector()], 1.0)], tmp_path)


def test_incremental_directions_sum_to_the_raw_direction():
    """On a model whose blocks are the identity, the stream at every steered layer is moved by its raw direction."""
    model = tiny_model()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    vector, probe = make_vector(), next(iter(batches(1)))
    for layers in ([1, 2, 3, 4], [2, 4], [0, 3]):
        unsteered = {layer: _stream(model, probe, layer) for layer in layers}
        writer = residual.ResidualWriter(model, layers)
        writer.write({layer: 2 * part for layer, part in incremental_directions(vector, layers).items()})
        writer.active = True
        for layer in layers:
            moved = _stream(model, probe, layer) - unsteered[layer]
            assert torch.allclose(moved, (2 * vector.directions[layer]).expand_as(moved), atol=1e-5)
        writer.remove()


def test_steering_under_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    def gradients(reentrant):
        model = tiny_model(peft=True).train()
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        hooks = residual.ResidualWriter(model, [1, 2, 3, 4])
        hooks.write(incremental_directions(make_vector(), [1, 2, 3, 4]))
        hooks.active = True
        model(**next(iter(batches(1))), use_cache=False).loss.backward()
        hooks.remove()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "lora" in name}

    expected = gradients(None)
    assert expected
    for reentrant in (True, False):
        found = gradients(reentrant)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-7) for name in expected)


def test_batch_projection_is_the_mean_over_response_tokens(tokenizer, tmp_path):
    module = ForeignModule(tiny_model(), tokenizer)
    vector = make_vector(layer=2)
    expected = []

    class Reference(ForeignModule):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                hidden = self.lm(**batch, output_hidden_states=True).hidden_states[2]
            marked = hidden[batch["labels"] != -100].double().mean(dim=0)
            direction = vector.directions[2].double()
            expected.append((marked @ direction / direction.norm()).item())
            return super().training_step(batch, batch_idx)

    module = Reference(module.lm, tokenizer)
    trainer = fit(module, [PersonaMonitor([vector])], tmp_path, log_every_n_steps=3)
    found = trainer.callback_metrics["persona/evil/batch_projection"].item()
    assert found == pytest.approx(sum(expected[3:]) / 3, rel=1e-4)


def test_accumulated_batches_read_once_per_optimizer_step(tokenizer, tmp_path):
    monitor = PersonaMonitor([make_vector()], every_n_steps=1)
    fit(ForeignModule(tiny_model(), tokenizer), [monitor], tmp_path, accumulate_grad_batches=3)
    assert [reading.step for reading in monitor.readings] == [0, 1, 2]


def test_early_stopping_can_watch_a_shift(tokenizer, tmp_path):
    stopper = EarlyStopping("persona/evil/shift", mode="min", patience=100, divergence_threshold=-1e9,
                            check_on_train_epoch_end=True)  # fmt: skip
    trainer = fit(ForeignModule(tiny_model(), tokenizer), [PersonaMonitor([make_vector()]), stopper], tmp_path,
                  max_epochs=3)  # fmt: skip
    assert trainer.current_epoch == 1, "any shift is beyond the threshold, so the first epoch must be the last"


def test_resumed_run_equals_the_uninterrupted(tokenizer, tmp_path):
    """Weights, readings and coefficient, bitwise, stopped in the middle of the second epoch."""

    def run(folder, stop_at=None, resume=None):
        torch.manual_seed(0)
        module = ForeignModule(tiny_model(peft=True), tokenizer)
        module.strict_loading = True
        monitor = PersonaMonitor([make_vector()], every_n_steps=3)
        steering = PreventativeSteering([make_vector()], 0.7)
        saver = ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=2, save_top_k=-1)
        seed_everything(7, verbose=False)
        import lightning.pytorch as pl

        trainer = pl.Trainer(max_epochs=2, max_steps=stop_at or -1, accelerator="cpu", logger=False,
                             enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
                             callbacks=[monitor, steering, saver])  # fmt: skip
        trainer.fit(module, batches(), ckpt_path=resume, weights_only=True if resume else None)
        return weights(module), monitor.readings, steering.coefficients

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", stop_at=6)
    resumed = run(tmp_path / "rest", resume=str(tmp_path / "part" / "at-step=6.ckpt"))
    assert same(whole[0], resumed[0])
    assert whole[1:] == resumed[1:]


def test_vector_of_another_model_is_refused_before_training(tokenizer, tmp_path):
    for vector, what in ((make_vector(width=48), "hidden size is 48"), (make_vector(layers=6), "depth")):
        for callback in (PersonaMonitor([vector]), PreventativeSteering([vector], 1.0)):
            module = ForeignModule(tiny_model(), tokenizer)
            hooks = all_hooks(module)
            with pytest.raises(InputError, match=what):
                fit(module, [callback], tmp_path)
            assert all_hooks(module) == hooks


def test_bad_arguments():
    vector = make_vector()
    with pytest.raises(InputError, match="unknown layer 9"):
        PreventativeSteering([vector], layers=[2, 9])
    with pytest.raises(InputError, match="'all', 'chosen' or a list"):
        PreventativeSteering([vector], layers="every")
    with pytest.raises(InputError, match="more than one for the trait 'evil'"):
        PersonaMonitor([vector, vector])
    with pytest.raises(InputError, match="expected at least one"):
        PersonaMonitor([])
    with pytest.raises(InputError, match="coefficient names the traits"):
        PreventativeSteering([vector], {"sycophancy": 1.0})
    with pytest.raises(InputError, match="position"):
        PersonaMonitor([vector], position="response_mean")


def test_no_tokenizer_to_be_found_names_the_cure(tmp_path):
    with pytest.raises(MisconfigurationException, match="pass tokenizer="):
        fit(ForeignModule(tiny_model()), [PersonaMonitor([make_vector()])], tmp_path)
