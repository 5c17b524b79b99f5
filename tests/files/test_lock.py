"""One process at a time in a folder, and nothing left of a killed one."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from persona_callbacks import InputError
from persona_callbacks.files import atomic_write, check_writable, locked_entry, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from persona_callbacks.files import atomic_write, locked_entry, locked_folder
folder = Path(sys.argv[2])
lock = locked_folder(folder) if sys.argv[1] == "folder" else locked_entry(folder / "deep" / "result.json", print)
with lock, atomic_write(folder / "deep" / "result.json") as scratch:
    scratch.write_text("half of it")
    print("ready", flush=True)
    time.sleep(60)
"""


def hold(kind, folder):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, kind, folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "ready\n"
    return holder


def kill(holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()


def test_a_second_process_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    holder = hold("folder", folder)
    told = rf"run is in use by another process \(-c, process {holder.pid} on .+, since \d{{4}}-.+\); wait until"
    with pytest.raises(InputError, match=told), locked_folder(folder):
        pass
    kill(holder)
    assert [entry.name for entry in (folder / "deep").iterdir()] != []
    with locked_folder(folder):
        assert list((folder / "deep").iterdir()) == []
    with locked_folder(folder):
        pass
    assert [entry.name for entry in folder.iterdir() if entry.is_file()] == [".lock"]


def test_a_second_process_waits_for_the_maker_of_an_entry_and_removes_its_remains_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_CALLBACKS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache"
    holder = hold("entry", folder)
    with locked_entry(folder / "deep" / "other.json", print), atomic_write(folder / "deep" / "other.json") as scratch:
        scratch.write_text("another entry needs not wait")
    of_another = folder / "deep" / ".other.json.123.partial"
    of_another.mkdir()
    told = []
    killer = threading.Timer(0.5, lambda: kill(holder))
    killer.start()
    with locked_entry(folder / "deep" / "result.json", told.append):
        left = sorted(entry.name for entry in (folder / "deep").iterdir() if entry.suffix == ".partial")
        assert left == [of_another.name]
    killer.join()
    assert len(told) == 1
    assert f"Waiting for another process (-c, process {holder.pid} on" in told[0]
    assert told[0].endswith("which is making deep-result.json")


def test_blocks_of_one_process_may_be_nested(tmp_path):
    with locked_folder(tmp_path), atomic_write(tmp_path / "result") as scratch, locked_folder(tmp_path):
        scratch.write_text("not taken away by the inner block")
    assert (tmp_path / "result").is_file()


def test_an_error_inside_the_block_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path):
        (tmp_path / "missing").read_text()


def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.run cannot be written to"), locked_folder(tmp_path / "file" / "run"):
        pass
    with pytest.raises(InputError, match=r"run cannot be written to: .*file is not a folder"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)  # what a user who is not root is told
    with pytest.raises(InputError, match="no permission to write in"):
        check_writable(tmp_path / "new")
