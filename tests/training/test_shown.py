"""How far a fine-tuning is shows on a terminal and in a log file."""

import io

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from persona_callbacks.progress import open_console
from persona_callbacks.training import shown


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(console, **limits):
    progress = shown.training_progress(console, "steered")
    trainer = Trainer(
        callbacks=[progress],
        enable_progress_bar=console.is_terminal,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        accelerator="cpu",
        **limits,
    )
    trainer.fit(Line(), DataLoader(torch.ones(6, 1), batch_size=2))


def test_a_log_file_tells_of_training_at_its_start_now_and_then_and_at_its_end(monkeypatch):
    now = iter(range(0, 1000, 12))
    monkeypatch.setattr(shown.time, "monotonic", lambda: next(now))
    console = open_console(highlight=False)
    console.file = io.StringIO()
    fit(console, max_epochs=2)
    first, *between, last = console.file.getvalue().splitlines()
    assert first == "steered: step 0 of 6"
    assert all(line.startswith("steered: step ") and ", train/loss " in line for line in [*between, last])
    assert 1 <= len(between) < 6
    assert last.startswith("steered: step 6 of 6, train/loss ")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_epochs": 2}, ["Epoch 1 of 2", "Epoch 2 of 2"]),
        ({"max_steps": 4, "max_epochs": -1}, ["Epoch 1", "Epoch 2"]),
    ],
)
def test_a_bar_counts_epochs_from_one(monkeypatch, capsys, limits, expected):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    fit(open_console(), **limits)
    written = capsys.readouterr().out
    assert all(f"{epoch} " in written for epoch in expected)
    assert "Epoch 0" not in written
    assert "/-2" not in written
