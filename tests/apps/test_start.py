"""What the apps share before they start."""

from hydra import compose, initialize_config_dir

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import whole_configuration

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
