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
