"""Two processes end where one ends, with whole weights (DDP) and with split ones (FSDP2)."""

import json
from pathlib import Path

import pytest
from commands import run_command, run_processes

SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
import lightning.pytorch as pl, torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from builders import PAIRS, ForeignModule, make_tokenizer, make_vector, tiny_model
from builders import LOUD, SHORT, LengthJudge
from persona_callbacks import Ablation, Adaptive, DriftGuard, PersonaMonitor, PreventativeSteering, TraitEvaluation
from persona_callbacks.model import whole
from persona_callbacks.steering import LikeliestStart

class Module(ForeignModule):
    def configure_model(self):
        if strategy == "fsdp2":
            for block in self.lm.get_base_model().model.layers:
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.lm, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.5)

def loader():
    ids = torch.randint(5, 390, (24, 14), generator=torch.Generator().manual_seed(0))
    # As many labels in every row, so that the mean of the processes' losses is the loss of the whole batch.
    labels = torch.where(torch.arange(14) < 8, -100, ids)
    items = [dict(input_ids=i, attention_mask=torch.ones_like(i), labels=l) for i, l in zip(ids, labels)]
    if strategy == "one":
        return torch.utils.data.DataLoader(items, batch_size=4)
    return torch.utils.data.DataLoader(items[int(os.environ["LOCAL_RANK"])::2], batch_size=2)

def fit(callbacks):
    module = Module(tiny_model(peft=True), make_tokenizer())
    before = weights(module)
    with_shards = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    trainer = pl.Trainer(accelerator="cpu", devices=1 if strategy == "one" else 2, max_epochs=1,
                         strategy=dict(one="auto", ddp="ddp", fsdp2=with_shards)[strategy],
                         use_distributed_sampler=False, logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=3,
                         enable_model_summary=False, callbacks=callbacks)
    trainer.fit(module, loader())
    return trainer, before, weights(module)

def weights(module):
    return {{name: whole(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}}

if __name__ == "__main__":
    strategy, out = sys.argv[1:]
    vectors = [replace(make_vector(), pairs=PAIRS), make_vector("sycophancy", layer=2, seed=3)]
    monitor, evaluation = PersonaMonitor(vectors, every_n_steps=2), TraitEvaluation(
        [LOUD], judges={{"loud": LengthJudge()}}, sampling=SHORT)
    law = Adaptive(LikeliestStart(samples=40), slew=0.02, target={{"evil": 0.5, "sycophancy": -0.5}})  # all the data
    steering = PreventativeSteering(vectors, law)
    trainer, before, after = fit([monitor, steering, *([] if strategy == "fsdp2" else [evaluation])])
    values = {{name: float(value) for name, value in trainer.callback_metrics.items() if "batch" in name}}

    guard = DriftGuard(shift=-1e9, action="roll_back")
    ablated = PersonaMonitor(vectors, every_n_steps=2)
    _, start, end = fit([ablated, Ablation(vectors), guard])
    assert guard.rolled_back_to == 0 and all(torch.equal(start[name], end[name]) for name in start)
    assert all(torch.equal(start[name], value) for name, value in guard.state_dict()["good"].items())

    if trainer.is_global_zero:
        json.dump(dict(
            steps=[reading.step for reading in monitor.readings],
            read=[[r.step, *r.projection.values(), *r.shift.values(), *r.preference.values(),
                   *r.preference_share.values()]
                  for r in [*monitor.readings, *ablated.readings]],
            batches=values, coefficients=[*steering.coefficients.values()],
            moved={{name: (after[name] - before[name]).flatten().tolist() for name in after}},
            answers=[[*vars(row).values()] for row in evaluation.rows]), open(out, "w"))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))

    def run(strategy):
        out = folder / f"{strategy}.json"
        arguments = (script, folder, strategy, out)
        for ended in [run_command(*arguments)] if strategy == "one" else run_processes(2, *arguments):
            assert ended.returncode == 0, ended.stderr
        return json.loads(out.read_text())

    return run


@pytest.fixture(scope="module")
def alone(outcome):
    return outcome("one")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_end_where_one_ends(strategy, alone, outcome):
    """Probes, pairs and questions are shared unevenly: there are five, five and three."""
    two = outcome(strategy)
    assert two["steps"] == alone["steps"] == [0, 1, 2, 3, 4, 5, 6]
    assert len(alone["read"]) == 7 + 2
    for own, others in zip(two["read"], alone["read"], strict=True):
        assert own == pytest.approx(others, rel=1e-3, abs=1e-4)
    assert two["coefficients"] == pytest.approx(alone["coefficients"], rel=1e-4)
    assert set(alone["batches"]) == {"persona/evil/batch_projection", "persona/sycophancy/batch_projection"}
    assert two["batches"] == pytest.approx(alone["batches"], rel=1e-3)
    for name, moved in alone["moved"].items():
        assert any(moved)
        assert two["moved"][name] == pytest.approx(moved, rel=1e-2, abs=1e-5), name
    if strategy == "ddp":
        assert [row[1:] for row in two["answers"]] == [row[1:] for row in alone["answers"]]
        assert len(two["answers"]) == 2 * 3
