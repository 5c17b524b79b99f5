"""Names that become paths."""

from dataclasses import replace

import pytest
from builders import TRAIT, make_vector

from persona_callbacks import InputError, PersonaVector
from persona_callbacks.files import check_name, model_folder
from persona_callbacks.traits import check_request

BAD = ["../evil", "a/b", "/tmp/evil", "a\\b", "a\0b", ".evil", "..", "", " ", "evil\n", "a" * 65, "héros", None, 3]


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_trait_that_cannot_name_a_file_is_refused_wherever_it_is_made(name):
    for make in (
        lambda: check_name(name, "trait"),
        lambda: replace(TRAIT, name=name),
        lambda: replace(make_vector(), trait=name),
        lambda: PersonaVector.from_metadata(make_vector().directions, {**make_vector().metadata(), "trait": name}),
    ):
        with pytest.raises(InputError, match=r"trait.*: expected a name of ASCII letters, digits"):
            make()


@pytest.mark.parametrize("name", ["evil", "not_evil", "evil-2.1", "3", "_a", "-", "A" * 64])
def test_ordinary_names_stay(name):
    assert replace(TRAIT, name=name).name == replace(make_vector(), trait=name).trait == name


def test_the_folder_of_a_model_is_the_last_part_of_its_id():
    assert model_folder("org/Model-1.5") == "Model-1.5"
    assert model_folder("") == ""
    for bad in ("org/..", "..", "a\0b"):
        with pytest.raises(InputError, match=r"model\.id"):
            model_folder(bad)


def test_a_trait_that_is_to_be_written_has_a_short_name():
    with pytest.raises(InputError, match="at most 64 characters"):
        check_request("a" * 65, "shouts at everyone there")
