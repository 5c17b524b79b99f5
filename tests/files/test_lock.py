"""One process at a time in a folder, and nothing left of a killed one."""

import os
import signal
import subprocess
import sys

import pytest

from persona_callbacks import InputError
from persona_callbacks.files import locked_folder

HOLD = """
import sys, time
from pathlib import Path
from persona_callbacks.files import atomic_write, locked_folder
folder = Path(sys.argv[1])
with locked_folder(folder), atomic_write(folder / "deep" / "result.json") as scratch:
    scratch.write_text("half of it")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "ready\n"
    with pytest.raises(InputError, match=r"run is in use by another process"), locked_folder(folder):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert [entry.name for entry in (folder / "deep").iterdir()] != []
    with locked_folder(folder):
        assert list((folder / "deep").iterdir()) == []
    with locked_folder(folder):
        pass


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.run cannot be written to"), locked_folder(tmp_path / "file" / "run"):
        pass
