"""What the apps share before they start."""

import warnings

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import quiet_libraries, whole_configuration

PAIRS = ["{question:Why,trait:I hate it,opposite:I love it,register:flat}",
         "{question:How,trait:I hate you,opposite:I love you,register:flat}"]  # fmt: skip


def configured(*pairs, more=()):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"++traits.evil.pairs=[{','.join(pairs)}]", *more])


def test_the_configuration_that_is_logged_names_the_pairs_by_number_and_hash_only():
    first, second = configured(*PAIRS), configured(*reversed(PAIRS))
    logged = whole_configuration(first)
    said = logged["traits"]["evil"]["pairs"]
    assert said.startswith("2 minimal pairs, SHA-256 ")
    assert "I hate" not in str(logged)
    assert said != whole_configuration(second)["traits"]["evil"]["pairs"]
    assert said == whole_configuration(configured(*PAIRS))["traits"]["evil"]["pairs"]
    assert first.traits.evil.pairs[0].trait == "I hate it", "the configuration itself stays"


def test_the_configuration_that_is_logged_names_environment_variables_and_does_not_hold_them(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "hunter2")
    cfg = configured(*PAIRS, more=["+mine.password=${oc.env:MY_PASSWORD}", "+mine.again='as ${mine.password}'"])
    assert whole_configuration(cfg)["mine"] == {
        "password": "${oc.env:MY_PASSWORD}",
        "again": "as ${oc.env:MY_PASSWORD}",
    }
    assert cfg.mine.again == "as hunter2", "for the run itself, the variable has its value"


class NothingToLearn(LightningModule):
    def training_step(self, batch, _):
        return None

    def configure_optimizers(self):
        return None


def test_what_lightning_advises_about_the_data_loader_and_log_of_the_app_is_left_out(monkeypatch, tmp_path):
    many_cores = "lightning.pytorch.trainer.connectors.data_connector.suggested_max_num_workers"
    monkeypatch.setattr(many_cores, lambda devices: 8)
    heard = []
    for quiet in (False, True):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if quiet:
                quiet_libraries()
            trainer = Trainer(
                max_epochs=1,
                accelerator="cpu",
                logger=CSVLogger(tmp_path),
                log_every_n_steps=5,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(NothingToLearn(), DataLoader(torch.ones(2, 1)))
        text = " ".join(str(one.message) for one in said)
        heard.append({word for word in ("many workers", "logging interval") if word in text})
    assert heard == [{"many workers", "logging interval"}, set()]
