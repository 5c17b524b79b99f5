"""What callbacks refuse before training, because it would go wrong in silence."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from builders import LOUD, SHORT, ForeignModule, LengthJudge, all_hooks, fit, make_vector, tiny_model, weights
from commands import run_command
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from persona_callbacks import (
    Ablation,
    DriftGuard,
    PersonaMonitor,
    PreventativeSteering,
    ProjectionRegularisation,
    TraitEvaluation,
)

MAKERS = {
    "PersonaMonitor": lambda: PersonaMonitor([make_vector()]),
    "PreventativeSteering": lambda: PreventativeSteering([make_vector()], 1.0),
    "Ablation": lambda: Ablation([make_vector()]),
    "ProjectionRegularisation": lambda: ProjectionRegularisation([make_vector()]),
    "TraitEvaluation": lambda: TraitEvaluation([LOUD], judges={"loud": LengthJudge()}, sampling=SHORT),
}
every_callback = pytest.mark.parametrize("name", MAKERS)


def refused(module, callback, tmp_path, match, **kwargs):
    """The fit ends with the error before the first training step, and leaves the module as it was."""
    before, hooks = weights(module), all_hooks(module)
    steps = []
    module.during = lambda stage: steps.append(stage)
    with pytest.raises(MisconfigurationException, match=match) as raised:
        fit(module, [callback], tmp_path, num_sanity_val_steps=0, **kwargs)
    assert not steps
    assert all_hooks(module) == hooks
    assert all(torch.equal(before[key], value) for key, value in weights(module).items())
    assert type(callback).__name__ in str(raised.value)


@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig])
@every_callback
def test_virtual_tokens_are_refused(name, config, tokenizer, tmp_path):
    lm = get_peft_model(tiny_model(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    kind = {"PrefixTuningConfig": "PREFIX_TUNING", "PromptTuningConfig": "PROMPT_TUNING"}.get(config.__name__)
    refused(ForeignModule(lm, tokenizer), MAKERS[name](), tmp_path, kind or "P_TUNING")


@every_callback
def test_merged_adapter_is_refused_and_stays_merged(name, tokenizer, tmp_path):
    lm = tiny_model(peft=True)
    lm.merge_adapter()
    refused(ForeignModule(lm, tokenizer), MAKERS[name](), tmp_path, r"'default' is merged .* unmerge_adapter\(\)")
    assert all(layer.merged for layer in lm.modules() if hasattr(layer, "merged"))


@pytest.mark.parametrize("lm", [lambda: tiny_model(), lambda: frozen_beside_full()], ids=["bare", "frozen adapter"])
def test_regularisation_without_a_trained_adapter_is_refused(lm, tokenizer, tmp_path):
    module = ForeignModule(lm(), tokenizer)
    refused(module, ProjectionRegularisation([make_vector()]), tmp_path, "would always be 0; train an adapter")


def frozen_beside_full():
    """The base weights are trained, the adapter is not."""
    lm = tiny_model(peft=True)
    for key, parameter in lm.named_parameters():
        parameter.requires_grad_("lora" not in key)
    return lm


SPLIT = [(name, strategy) for name in [*MAKERS, "DriftGuard"] for strategy in (FSDPStrategy, DeepSpeedStrategy)]
SPLIT += [(name, ModelParallelStrategy) for name in ("ProjectionRegularisation", "TraitEvaluation")]


@pytest.mark.parametrize(("name", "strategy"), SPLIT)
def test_sharded_strategies_are_refused(name, strategy, tokenizer, tmp_path):
    """At the seam: FSDP1 needs an accelerator, and DeepSpeed need not be installed."""
    callback = DriftGuard(shift=1.0) if name == "DriftGuard" else MAKERS[name]()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    real = strategy.__new__(strategy) if strategy is DeepSpeedStrategy else strategy()
    trainer._accelerator_connector.strategy = real
    found = "weights are split" if strategy is ModelParallelStrategy else f"the {strategy.__name__} "
    with pytest.raises(MisconfigurationException, match=f"{name}: .*{found}.*strategy='ddp'"):
        callback.setup(trainer, ForeignModule(tiny_model(peft=True), tokenizer), "fit")


TENSOR_PARALLEL = """
import sys
sys.path.insert(0, {tests!r})
import lightning.pytorch as pl
from builders import ForeignModule, batches, make_tokenizer, make_vector, tiny_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from persona_callbacks import PersonaMonitor

class Split(ForeignModule):
    def configure_model(self):
        mesh = init_device_mesh("cpu", (1,))
        parallelize_module(self.lm, mesh, {{"model.layers.*.mlp.up_proj": ColwiseParallel()}})

if __name__ == "__main__":
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
                         callbacks=[PersonaMonitor([make_vector()])])
    trainer.fit(Split(tiny_model(), make_tokenizer()), batches())
"""


def test_fit_under_tensor_parallelism_ends_with_the_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TENSOR_PARALLEL.format(tests=str(Path(__file__).parents[1])))
    ended = run_command(script, tmp_path, timeout=120)
    assert ended.returncode != 0
    assert "PersonaMonitor: the model's weights are DTensors of tensor parallelism" in ended.stderr
    assert "fully_shard (FSDP2) alone" in ended.stderr


class Trimming(ForeignModule):
    """Its training step trims every batch but the first."""

    def training_step(self, batch, batch_idx):
        if batch_idx:
            batch = {name: values[:, :-1] for name, values in batch.items()}
        return self.lm(**batch).loss


@pytest.mark.parametrize("make", [PreventativeSteering, Ablation])
def test_response_tokens_of_a_batch_that_the_step_trims_are_an_error(make, tokenizer, tmp_path):
    module = Trimming(tiny_model(), tokenizer)
    hooks = all_hooks(module)
    settings = {"coefficient": 1.0} if make is PreventativeSteering else {}
    with pytest.raises(MisconfigurationException, match=r"shape \(3, 14\), and the training step .* \(3, 13\) only"):
        fit(module, [make([make_vector()], positions="response", **settings)], tmp_path)
    assert all_hooks(module) == hooks
    fit(module, [make([make_vector()], positions="all", **settings)], tmp_path)


def test_batch_projection_of_trimmed_batches_warns_once(tokenizer, tmp_path):
    with pytest.warns(UserWarning, match=r"batch_projection cannot be read: .* on \(3, 13\)") as warned:
        fit(Trimming(tiny_model(), tokenizer), [PersonaMonitor([make_vector()])], tmp_path)
    assert sum("cannot be read" in str(one.message) for one in warned) == 1
