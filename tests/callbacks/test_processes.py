"""Two processes share the probes and the questions, and agree with one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command

SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import lightning.pytorch as pl, torch
from dataclasses import replace
from builders import PAIRS, ForeignModule, batches, make_tokenizer, make_vector, tiny_model
from builders import LOUD, SHORT, LengthJudge
from persona_callbacks import PersonaMonitor, PreventativeSteering, TraitEvaluation

if __name__ == "__main__":
    devices, out = int(sys.argv[1]), sys.argv[2]
    module = ForeignModule(tiny_model(peft=True), make_tokenizer())
    # The learning rate is zero, so that both runs have the same weights whatever each process is given to train on.
    module.configure_optimizers = lambda: torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)
    vectors = [replace(make_vector(), pairs=PAIRS), make_vector("sycophancy", layer=2, seed=3)]
    monitor = PersonaMonitor(vectors, every_n_steps=2)
    evaluation = TraitEvaluation([LOUD], judges={{"loud": LengthJudge()}}, sampling=SHORT)
    trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
                         logger=False, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=3,
                         enable_model_summary=False,
                         callbacks=[monitor, evaluation, PreventativeSteering([make_vector()], 0.1)])
    trainer.fit(module, batches(6))
    if trainer.is_global_zero:
        values = {{name: float(value) for name, value in trainer.callback_metrics.items() if "batch" in name}}
        readings = [[r.step, dict(r.projection), dict(r.shift), dict(r.preference),
                     dict(r.preference_share)] for r in monitor.readings]
        json.dump([*readings, values, [[*vars(row).values()] for row in evaluation.rows]], open(out, "w"))
"""


def readings(tmp_path, devices):
    script, out = tmp_path / "script.py", tmp_path / f"{devices}.json"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))
    if devices == 1:
        ended = run_command(script, tmp_path, devices, out, timeout=300)
    else:  # Lightning starts the second process by the command that started the first
        command = [sys.executable, script, str(devices), out]
        ended = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text())


def test_two_processes_measure_what_one_measures(tmp_path):
    *one, one_batches, one_answers = readings(tmp_path, 1)
    *two, two_batches, two_answers = readings(tmp_path, 2)
    assert [reading[0] for reading in two] == [0, 2, 3]
    assert (
        set(two_batches) == set(one_batches) == {"persona/evil/batch_projection", "persona/sycophancy/batch_projection"}
    )
    assert [row[1:] for row in two_answers] == [row[1:] for row in one_answers]  # three questions, unevenly shared
    assert len(two_answers) == 2 * 3
    for _, projection, shift, preference, share in two:
        assert preference["evil"] == pytest.approx(one[0][3]["evil"], rel=1e-4)
        assert share == one[0][4]
        for trait, value in one[0][1].items():
            assert projection[trait] == pytest.approx(value, rel=1e-5)
            assert shift[trait] == pytest.approx(one[0][2][trait], rel=1e-4)
