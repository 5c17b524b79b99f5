"""The commands as a user runs them, each in a process of its own, which is a fork of one that has imported everything.

A new interpreter takes ten seconds to import torch, Lightning and transformers; a fork starts in milliseconds. It runs
the command's ``main`` with the arguments, the folder, the environment and the standard streams of its own.
"""

import contextlib
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from persona_callbacks.apps import commands
from persona_callbacks.files import cache_dir

TESTS = Path(__file__).parent


def own_cache(folder: Path) -> Path:
    """Make a cache folder that shares nothing with others but the models: converting one takes ten seconds."""
    models = cache_dir() / "models"
    for made in (models, folder):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
    return folder


def run_command(
    command: str | Path,
    folder: Path,
    *overrides: object,
    environment: Mapping[str, str] | None = None,
    talk: str = "",
    timeout: float = 900,
) -> CompletedProcess[str]:
    """Run ``persona-COMMAND``, or a script, in a folder to its end.

    Args:
        command: such as ``train``, or the path of a script.
        folder: the working folder.
        overrides: the arguments.
        environment: its variables, in place of this process's.
        talk: its standard input.
        timeout: seconds.
    """
    return _run_all([environment], command, folder, *overrides, talk=talk, timeout=timeout)[0]


def run_processes(
    count: int, command: str | Path, folder: Path, *overrides: object, timeout: float = 300
) -> list[CompletedProcess[str]]:
    """Run a command or script in several processes that find each other as Lightning's do, to their ends.

    Args:
        count: how many.
        command: and all others, as for :func:`run_command`.
        folder: see there.
        overrides: see there.
        timeout: see there.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    environments = [{**os.environ, **meeting, "LOCAL_RANK": str(rank)} for rank in range(count)]
    return _run_all(environments, command, folder, *overrides, timeout=timeout)


def _run_all(
    environments: Sequence[Mapping[str, str] | None],
    command: str | Path,
    folder: Path,
    *overrides: object,
    talk: str = "",
    timeout: float,
) -> list[CompletedProcess[str]]:
    with tempfile.TemporaryDirectory() as scratch:
        started = []
        for number, environment in enumerate(environments):
            streams = [Path(scratch, f"{name}-{number}") for name in ("stdin", "stdout", "stderr")]
            streams[0].write_text(talk, encoding="utf-8")
            process = start_command(command, folder, *overrides, environment=environment, streams=streams)
            started.append((process, streams))
        arguments, end = [str(command), *map(str, overrides)], time.monotonic() + timeout
        for process, _ in started:
            process.join(end - time.monotonic())
        late = [process for process, _ in started if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        if late:
            raise TimeoutExpired(arguments, timeout)
        return [
            CompletedProcess(
                arguments,
                process.exitcode,
                *(stream.read_text(encoding="utf-8", errors="replace") for stream in streams[1:]),
            )
            for process, streams in started
        ]


def start_command(
    command: str | Path,
    folder: Path,
    *overrides: object,
    streams: Sequence[Path],
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start ``persona-COMMAND``, or a script, in a folder.

    Args:
        command: such as ``train``, or the path of a script.
        folder: the working folder.
        overrides: the arguments.
        streams: files of its standard input, output and error; what it prints is appended.
        environment: its variables, in place of this process's.
        before: called in the new process before the command.
    """
    # The first process of all imports by PYTHONPATH; what it cannot import, every run would import again.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(TESTS), *filter(None, _python_path())]))
    multiprocessing.set_forkserver_preload(["imported_by_commands"])
    variables = dict(os.environ if environment is None else environment)
    arguments = (command, folder, [*map(str, overrides)], variables, [*streams], before)
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=arguments)
    process.start()
    return process


def _python_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def _run(
    command: str | Path,
    folder: Path,
    overrides: list[str],
    environment: Mapping[str, str],
    streams: Sequence[Path],
    before: Callable[[], None] | None,
) -> None:
    for number, stream in enumerate(streams):
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(stream, how), number)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    if before is not None:
        before()
    with _ending_as_python_does():
        if isinstance(command, Path):
            sys.argv = [str(command), *overrides]
            sys.path.insert(0, str(command.parent))
            runpy.run_path(str(command), run_name="__main__")
        else:
            sys.argv = [f"persona-{command}", *overrides]
            getattr(commands, command)()


@contextlib.contextmanager
def _ending_as_python_does():
    """A process of multiprocessing would print an error in words of its own."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)
