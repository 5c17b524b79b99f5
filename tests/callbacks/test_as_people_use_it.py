"""Lightning's odds and ends: each way to run a Trainer, with the callbacks in it."""

import importlib.metadata
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from builders import ForeignModule, all_hooks, batches, fit, make_vector, tiny_model, weights
from hydra.utils import instantiate
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from omegaconf import OmegaConf

from persona_callbacks import Adaptive, Constant, InputError, PersonaMonitor, PreventativeSteering
from persona_callbacks.callbacks import monitors_of_environment
from persona_callbacks.chats import encode_prompt
from persona_callbacks.model import LoadedModel, ResidualWriter, base_model, projections
from persona_callbacks.steering import LikeliestStart
from persona_callbacks.vectors import steering_additions

ROOT = Path(__file__).parents[2]


def adaptive(monitor=None, **law):
    return [monitor or PersonaMonitor([make_vector()], every_n_steps=2, pairs=0),
            PreventativeSteering([make_vector()], Adaptive(LikeliestStart(samples=4), **law))]  # fmt: skip


def plain_trainer(folder, callbacks, kind=pl.Trainer, **kwargs):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "max_epochs": 1,
                "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}  # fmt: skip
    return kind(**(settings | kwargs), callbacks=callbacks)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"barebones": True, "logger": None, "enable_progress_bar": None, "enable_model_summary": None,
          "enable_checkpointing": None, "log_every_n_steps": None}, [0, 2, 4, 6]),
        ({"log_every_n_steps": 0}, [0, 2, 4, 6]),
        ({"fast_dev_run": 2}, [0, 2]),
        ({"overfit_batches": 2, "max_epochs": 2}, [0, 2, 4]),
        ({"limit_train_batches": 0}, []),
        ({"limit_train_batches": 0, "callbacks": "averaging"}, []),
    ],
    ids=["barebones", "never logged", "fast_dev_run", "overfit_batches", "no batches", "no batches, averaged"],
)  # fmt: skip
@pytest.mark.parametrize("order", [1, -1], ids=["monitor first", "steering first"])
def test_ways_to_run_a_trainer(settings, steps, order, tokenizer, tmp_path):
    settings = dict(settings)
    averaging = [StochasticWeightAveraging(1e-2)] if settings.pop("callbacks", None) else []
    callbacks = adaptive()
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    hooks = all_hooks(module)
    fit(module, callbacks[::order] + averaging, tmp_path, **settings)
    read = [reading.step for reading in callbacks[0].readings]
    assert read[-1:] == steps[-1:]
    assert set(steps) <= set(read), "steering asks for readings between those that the monitor takes"
    assert all_hooks(module) == hooks


def test_two_monitors_and_two_steerings_of_different_traits(tokenizer, tmp_path):
    """Each keeps a state of its own in one checkpoint, and is resumed with it."""

    def callbacks():
        made = []
        for vector, alpha in ((make_vector("evil"), 0.5), (make_vector("sycophancy", layer=2, seed=4), 0.2)):
            made += [PersonaMonitor([vector], every_n_steps=3, pairs=0), PreventativeSteering([vector], alpha)]
        return made

    whole = callbacks()
    trainer = fit(ForeignModule(tiny_model(peft=True), tokenizer), whole, tmp_path)
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    resumed = callbacks()
    plain_trainer(tmp_path, resumed, max_epochs=2).fit(
        ForeignModule(tiny_model(peft=True), tokenizer), batches(), ckpt_path=tmp_path / "at.ckpt", weights_only=True
    )
    for before, after in zip(whole[::2], resumed[::2], strict=True):
        assert after.readings[: len(before.readings)] == before.readings
        assert [reading.step for reading in after.readings] == [0, 3, 6, 9, 12]
    assert whole[0].readings[-1].shift.keys() == {"evil"}
    assert {"persona/evil/shift", "persona/sycophancy/shift"} <= trainer.callback_metrics.keys()


def test_a_checkpoint_of_an_only_monitor_from_an_older_version_is_found(tokenizer, tmp_path):
    monitor = PersonaMonitor([make_vector()], every_n_steps=3, pairs=0)
    fit(ForeignModule(tiny_model(peft=True), tokenizer), [monitor], tmp_path).save_checkpoint(tmp_path / "at.ckpt")
    checkpoint = torch.load(tmp_path / "at.ckpt", weights_only=True)
    checkpoint["callbacks"] = {"PersonaMonitor": checkpoint["callbacks"][monitor.state_key]}
    torch.save(checkpoint, tmp_path / "older.ckpt")
    resumed = PersonaMonitor([make_vector()], every_n_steps=3, pairs=0)
    plain_trainer(tmp_path, [resumed], max_epochs=2).fit(
        ForeignModule(tiny_model(peft=True), tokenizer), batches(), ckpt_path=tmp_path / "older.ckpt", weights_only=True
    )
    assert resumed.readings[:3] == monitor.readings


class Manual(ForeignModule):
    """Two optimizers, stepped by hand, on every other batch."""

    def __init__(self, lm, tokenizer):
        super().__init__(lm, tokenizer)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return [torch.optim.SGD(trained[::2], lr=1e-2), torch.optim.SGD(trained[1::2], lr=1e-2)]


def test_manual_optimization_with_several_optimizers(tokenizer, tmp_path):
    """Lightning counts a step for each optimizer, so readings and logs have the numbers that it has."""
    callbacks = adaptive()
    trainer = fit(Manual(tiny_model(peft=True), tokenizer), callbacks, tmp_path)
    assert trainer.global_step == 6
    assert [reading.step for reading in callbacks[0].readings] == [0, 2, 4, 6]
    assert callbacks[0].readings[-1].shift["evil"] != 0


def test_the_second_fit_of_a_trainer_is_like_one_of_a_new_trainer(tokenizer, tmp_path):
    def last_of(*seeds):
        callbacks = adaptive()
        trainer = plain_trainer(tmp_path, callbacks, max_steps=3, max_epochs=-1)
        for fits, seed in enumerate(seeds, start=1):
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step + 3
            trainer.fit(ForeignModule(tiny_model(peft=True, seed=seed), tokenizer), batches())
            assert trainer.global_step == 3 * fits
        return [list(reading.shift.values()) for reading in callbacks[0].readings], callbacks[1].coefficients

    assert last_of(0, 1)[1] == last_of(1)[1]
    assert last_of(0, 1)[0][0] == last_of(1)[0][0]


@pytest.mark.parametrize("tune", ["lr_find", "scale_batch_size"])
def test_the_tuner_leaves_the_fit_that_follows_as_it_is_without_it(tune, tokenizer, tmp_path):
    class Data(pl.LightningDataModule):
        batch_size = 3

        def train_dataloader(self):
            return torch.utils.data.DataLoader(batches(12).dataset, batch_size=self.batch_size)

        def val_dataloader(self):  # the tuner asks for it
            return batches(1)

    def run(tuned):
        torch.manual_seed(0)
        callbacks, module = adaptive(), ForeignModule(tiny_model(peft=True), tokenizer)
        module.lr = 1e-2
        trainer = plain_trainer(tmp_path, callbacks, max_steps=3, max_epochs=-1)
        hooks = all_hooks(module)
        if tuned == "lr_find":
            Tuner(trainer).lr_find(module, datamodule=Data(), num_training=3, update_attr=False)
        elif tuned:
            Tuner(trainer).scale_batch_size(module, datamodule=Data(), max_trials=1, steps_per_trial=1)
        assert all_hooks(module) == hooks
        trainer.fit(module, datamodule=Data())
        return callbacks[0].readings, callbacks[1].coefficients, weights(module)

    plain, tuned = run(None), run(tune)
    assert plain[:2] == tuned[:2]
    assert all(torch.equal(plain[2][name], tuned[2][name]) for name in plain[2])


@pytest.mark.parametrize("order", [1, -1])
def test_an_exponential_average_beside_ours_is_what_the_last_reading_is_of(order, tokenizer, tmp_path):
    callbacks = [EMAWeightAveraging(decay=0.9), *adaptive()][::order]
    module = ForeignModule(tiny_model(peft=True), tokenizer)
    fit(module, callbacks, tmp_path)
    monitor = next(one for one in callbacks if isinstance(one, PersonaMonitor))
    chats = [encode_prompt([{"role": "user", "content": q}], tokenizer) for q in make_vector().probes]
    now = projections(LoadedModel(module.lm, tokenizer), chats, [make_vector()], "prompt_last").mean().item()
    assert monitor.readings[-1].projection["evil"] == pytest.approx(now, rel=1e-4)


def test_the_package_pytorch_lightning_has_the_same_callbacks(tokenizer, tmp_path):
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.lm, self.tokenizer = tiny_model(peft=True), tokenizer

        def training_step(self, batch, batch_idx):
            return self.lm(**batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    callbacks = [*adaptive(), other.callbacks.EMAWeightAveraging(decay=0.9)]
    module = Module()
    hooks = all_hooks(module)
    trainer = plain_trainer(tmp_path, callbacks, kind=other.Trainer)
    trainer.fit(module, batches())
    assert callbacks[0].readings[-1].step == trainer.global_step == 6
    assert trainer.callback_metrics["persona/evil/shift"].item() == pytest.approx(
        callbacks[0].readings[-1].shift["evil"]
    )
    assert all_hooks(module) == hooks
    sharded = plain_trainer(tmp_path, adaptive(), kind=other.Trainer)
    sharded.strategy.__class__ = type("FSDPStrategy", (other.strategies.FSDPStrategy, type(sharded.strategy)), {})
    with pytest.raises(Exception, match="splits the weights over processes"):
        adaptive()[0].setup(sharded, module, "fit")


def test_a_fabric_loop_reads_and_steers(tokenizer):
    """The loop of docs/development.md: the minimum for those who write their own."""
    fabric = Fabric(accelerator="cpu", devices=1)
    model, vector = tiny_model(peft=True), make_vector()
    probes = [encode_prompt([{"role": "user", "content": q}], tokenizer) for q in vector.probes]

    def projection():
        return projections(LoadedModel(model, tokenizer), probes, [vector], "prompt_last").mean().item()

    with base_model(model):
        base = projection()
    additions = steering_additions([vector], {"evil": 0.8}, "all")
    hooks, writer = all_hooks(model), ResidualWriter(model, sorted(additions), loss_only=True)
    writer.write(additions)
    wrapped, optimizer = fabric.setup(
        model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    )
    start = projection()
    for batch in batches(2):
        writer.active = True
        fabric.backward(wrapped(**batch).loss)
        writer.active = False
        optimizer.step()
        optimizer.zero_grad()
    assert not writer.silent_layers()
    writer.remove()
    assert all_hooks(model) == hooks
    assert projection() != start != base


def saved(folder, **kwargs):
    return str(make_vector(**kwargs).save(folder / "evil.safetensors"))


def test_vectors_may_be_paths(tmp_path):
    path = saved(tmp_path)
    for given in (path, Path(path)):
        assert PersonaMonitor([given]).vectors[0].fingerprint == make_vector().fingerprint
        assert PreventativeSteering([given], 0.5).vectors[0].trait == "evil"
    with pytest.raises(InputError, match=r"nothing\.safetensors: no such persona vector file"):
        PersonaMonitor([tmp_path / "nothing.safetensors"])
    with pytest.raises(InputError, match="paths of their files"):
        PersonaMonitor(path)


def test_hydra_makes_callbacks_of_paths_whatever_its_convert_is(tokenizer, tmp_path):
    content = f"""
    - _target_: persona_callbacks.PersonaMonitor
      vectors: [{saved(tmp_path)}]
      pairs: 0
    - _target_: persona_callbacks.PreventativeSteering
      vectors: [{saved(tmp_path)}]
      coefficient: {{evil: 0.5}}
      layers: [2, 3]
    """
    for convert in ("none", "partial", "all"):
        config = OmegaConf.create([{**one, "_convert_": convert} for one in yaml.safe_load(content)])
        callbacks = list(instantiate(config))
        trainer = fit(ForeignModule(tiny_model(), tokenizer), callbacks, tmp_path, max_steps=1)
        trainer.save_checkpoint(tmp_path / "at.ckpt")
        states = torch.load(tmp_path / "at.ckpt", weights_only=True)["callbacks"]
        assert states[callbacks[1].state_key]["coefficients"] == {"evil": 0.5}
        assert states[callbacks[1].state_key]["made_with"]["layers"] == [2, 3]


def test_lightning_cli_makes_callbacks_of_paths(tmp_path):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callbacks", type=list[pl.Callback])
    given = {
        "PersonaMonitor": {"pairs": 0},
        "PreventativeSteering": {"coefficient": 0.5},
        "Ablation": {"layers": [1, 2]},
    }
    path = saved(tmp_path)
    made = [
        {"class_path": f"persona_callbacks.{name}", "init_args": {"vectors": [path], **settings}}
        for name, settings in given.items()
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"callbacks": made}))
    parser.add_argument("--config", action="config")
    monitor, steering, ablation = parser.instantiate_classes(
        parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])
    ).callbacks
    assert monitor.vectors[0].fingerprint == ablation.vectors[0].fingerprint == make_vector().fingerprint
    assert steering.law == Constant(0.5)


@pytest.mark.parametrize("given", [{}, {"target": 1.5}, {"start": 0.5, "feedback": False}], ids=str)
def test_lightning_cli_makes_adaptive_steering(given, tmp_path):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callbacks", type=list[pl.Callback])
    law = {"coefficient": {"class_path": "persona_callbacks.Adaptive", "init_args": given}} if given else {}
    made = {"class_path": "persona_callbacks.PreventativeSteering", "init_args": {"vectors": [saved(tmp_path)], **law}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"callbacks": [made]}))
    parser.add_argument("--config", action="config")
    (steering,) = parser.instantiate_classes(parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])).callbacks
    assert steering.law == Adaptive(**given)


def test_two_monitors_are_both_described_to_loggers(tokenizer, tmp_path):
    logger = CSVLogger(tmp_path)
    monitors = [
        PersonaMonitor([make_vector(trait)], every_n_steps=every, pairs=0)
        for trait, every in (("evil", 1), ("sycophancy", 2))
    ]
    fit(ForeignModule(tiny_model(), tokenizer), monitors, tmp_path, logger=logger, max_steps=1)
    described = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert [described[name]["every_n_steps"] for name in ("PersonaMonitor", "PersonaMonitor_2")] == [1, 2]
    assert set(described["persona_vectors"]) == {"evil", "sycophancy"}


def test_an_environment_variable_adds_a_monitor_to_every_trainer(tokenizer, tmp_path, monkeypatch):
    """As installed: Lightning finds the function by its entry point."""
    for group in ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory"):
        assert "persona-callbacks" in importlib.metadata.entry_points(group=group).names

    def monitors():
        trainer = fit(ForeignModule(tiny_model(), tokenizer), [], tmp_path, max_steps=1)
        return [callback for callback in trainer.callbacks if isinstance(callback, PersonaMonitor)]

    monkeypatch.delenv("PERSONA_CALLBACKS_VECTORS", raising=False)
    assert monitors() == []
    monkeypatch.setenv("PERSONA_CALLBACKS_VECTORS", saved(tmp_path))
    (monitor,) = monitors()[:1]
    assert [reading.step for reading in monitor.readings] == [0, 1]
    monkeypatch.setenv("PERSONA_CALLBACKS_VECTORS", f"{saved(tmp_path)}:{tmp_path / 'nothing'}")
    with pytest.raises(InputError, match="nothing: no such persona vector file"):
        monitors_of_environment()


def test_a_logger_is_told_what_the_callbacks_are(tokenizer, tmp_path):
    logger = CSVLogger(tmp_path)
    fit(ForeignModule(tiny_model(), tokenizer), adaptive(), tmp_path, logger=logger, max_steps=1)
    written = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert written["persona_vectors"]["evil"]["sha256"] == make_vector().fingerprint
    assert written["persona_vectors"]["evil"]["layer"] == 3
    assert written["PreventativeSteering"]["layers"] == "all"
    assert written["PreventativeSteering"]["law"]["class"].endswith("Adaptive")
    assert written["PreventativeSteering"]["law"]["start"]["samples"] == 4
