"""The commands under SIGKILL, without disk, and twice in one folder: a bounded part of what `kills.py` does for hours.

Each is run again until it ends, and the end is that of an undisturbed run, bit for bit.
"""

import os
import signal
import time

import pytest
from faults.harness import (
    CHECKPOINT,
    COMMANDS,
    Aim,
    end_of,
    finish,
    left_over,
    make_folder,
    output,
    start,
    write_inputs,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """The end of each command, run once when it is first asked for."""
    ends = {}

    def end(command):
        if command not in ends:
            folder = make_folder(inputs, tmp_path_factory.mktemp("undisturbed") / command)
            assert finish(start(command, folder)) == 0, output(folder)[-3000:]
            ends[command] = end_of(folder)
            assert len(ends[command]) > 5
        return ends[command]

    return end


@pytest.mark.parametrize(
    ("command", "aims"),
    [
        ("extract", [Aim(1, "likelihoods", delay=0.001), Aim(3, "os.rename")]),
        ("train", [Aim(8, CHECKPOINT, delay=0.001), Aim(5, f"os.rename /outputs/train/seed-0/steered/{CHECKPOINT}"),
                   Aim(1, "os.rename /outputs/train/seed-0/steered/.result.json")]),
        ("screen", [Aim(1, "data-000003"), Aim(1, "os.rename /outputs/screening/chats/.summary.json")]),
        ("evaluate", [Aim(1, "parts"), Aim(1, "os.rename /outputs/evaluation/.results.csv")]),
    ],
    ids=COMMANDS,
)  # fmt: skip
def test_killed_and_run_again_it_ends_as_the_undisturbed(command, aims, inputs, undisturbed, tmp_path):
    folder = make_folder(inputs, tmp_path / "run")
    for aim in aims:
        assert finish(start(command, folder, aim=aim)) == -signal.SIGKILL, output(folder)[-3000:]
    assert finish(start(command, folder)) == 0, output(folder)[-3000:]
    assert end_of(folder) == undisturbed(command)


def test_files_that_do_not_fit_on_the_disk_end_training_and_space_lets_it_go_on(inputs, undisturbed, tmp_path):
    folder = make_folder(inputs, tmp_path / "run")
    assert finish(start("train", folder, most_bytes=20_000)) == 1  # a checkpoint is larger
    assert "File too large" in output(folder).splitlines()[-1]
    assert "; with more space: the same command goes on" in output(folder).splitlines()[-1]
    assert "Traceback" not in output(folder)
    assert not (folder / "outputs/train/seed-0/unsteered" / CHECKPOINT).exists()
    assert not left_over(folder)
    assert finish(start("train", folder)) == 0, output(folder)[-3000:]
    assert end_of(folder) == undisturbed("train")


def test_a_second_process_in_the_folder_is_told_so_and_disturbs_nothing(inputs, undisturbed, tmp_path):
    folder = make_folder(inputs, tmp_path / "run")
    first = start(
        "train", folder, aim=Aim(2, f"os.rename /outputs/train/seed-0/unsteered/.{CHECKPOINT}", strike=signal.SIGSTOP)
    )
    deadline = time.monotonic() + 60
    while not list(folder.rglob(f".{CHECKPOINT}.*.partial")) and first.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert first.is_alive(), output(folder)[-3000:]
    assert finish(start("train", folder)) == 1
    assert f"error: {folder}/outputs/train/seed-0 is in use by another process" in output(folder)
    assert "Traceback" not in output(folder)
    os.kill(first.pid, signal.SIGCONT)
    assert finish(first) == 0, output(folder)[-3000:]
    assert end_of(folder) == undisturbed("train")
