"""The package behind the endpoint is optional; what is asked over HTTP is tested with the judge and with traits."""

import subprocess
import sys

import pytest

from persona_callbacks import InputError
from persona_callbacks.model import Endpoint

SCRIPT = """
import sys
sys.modules["openai"] = None  # every import of it fails
import persona_callbacks
from persona_callbacks.apps import define, evaluate, train
from persona_callbacks.judging import LlmJudge
print("imported")
"""


def test_an_endpoint_without_the_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r'pip install "persona-callbacks\[openai\]"'):
        Endpoint("http://localhost:8000/v1", "m")
    with pytest.raises(InputError, match=r"endpoint\.model: expected the name"):
        Endpoint("http://localhost:8000/v1", "")


def test_everything_else_works_without_the_package():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/v1", "https://hunter2@host/v1", "https://host/v1?key=hunter2", "http://host/#hunter2",
        "ftp://user:hunter2@host", "https://user:hunter2@[host", "https://host:hunter2/v1", "hunter2",
    ],
)  # fmt: skip
def test_an_address_that_may_hold_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match=r"endpoint\.base_url: expected") as error:
        Endpoint(url, "m")
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None
    if "@host/" in url:
        assert "the environment variable that endpoint.api_key_variable names" in str(error.value)
