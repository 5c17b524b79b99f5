"""Vectors that come with the package: they are those of the default settings, and fit to be used."""

import io

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.start import chosen_traits
from persona_callbacks.extraction import SHIPPED, extract
from persona_callbacks.model import load_model, weights_fingerprint

FOLDERS = sorted(SHIPPED.glob("*/*"))


@pytest.fixture(scope="module")
def loaded():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load_model(instantiate(compose("extract", []).model))


@pytest.mark.parametrize("trait", sorted({folder.name.rpartition("-")[0] for folder in FOLDERS}))
def test_default_settings_find_a_vector_that_is_not_weak(trait, loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("extract", [f"trait=[{trait}]"])
    said = io.StringIO()
    extraction = extract(loaded, *chosen_traits(cfg), instantiate(cfg.extraction), Console(file=said, width=200))
    assert f"Persona vector of {trait}: shipped with the package" in said.getvalue()
    assert extraction.responses.is_relative_to(SHIPPED)
    assert not list(tmp_path.iterdir())
    vector = extraction.vector
    assert vector.weaknesses() == []
    assert vector.model_revision == weights_fingerprint(loaded.model)
    assert len(vector.pairs) == 24


def test_there_are_vectors_and_each_has_one_folder():
    traits = [folder.name.rpartition("-")[0] for folder in FOLDERS]
    assert "evil" in traits
    assert len(traits) == len(set(traits))
