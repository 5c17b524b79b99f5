"""How an app ends early, and how it warns: in one line. Nothing that takes long to import is imported here."""

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback as HydraCallback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from persona_callbacks.apps.sweeping import JobError, is_job_of_sweep
from persona_callbacks.errors import InputError
from persona_callbacks.files import check_writable


class _Terminated(SystemExit):
    """What SIGTERM raises, so that hooks are removed and files are closed as after Ctrl-C."""


@contextmanager
def ending_in_one_line(go_on: str) -> Iterator[None]:
    """Exit with one line instead of a traceback where the user is to act: with 1 after an error that is theirs to mend,
    with 130 after Ctrl-C and with 143 after SIGTERM. In a sweep, an error ends its own job alone.

    Args:
        go_on: what to do after an interruption.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        yield
    except BaseException as error:
        # First, since what an interruption leaves half done may fail in ways of its own.
        if (code := _interruption(error)) is not None:
            print(f"{'interrupted' if code == 130 else 'terminated'}: {go_on}", file=sys.stderr)
            sys.exit(code)
        if isinstance(error, InputError) or _is_told_by_libraries(error):
            _end(f"error: {error}")
        if isinstance(error, InstantiationException):
            _end(f"error: {error.__cause__ or error}")
        if isinstance(error, OmegaConfBaseException):
            _end(f"error: {'; '.join(part.strip() for part in str(error).splitlines() if part.strip())}")
        if said := _no_space(error):
            _end(f"error: {said}; with more space: {go_on}")
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _is_told_by_libraries(error: BaseException) -> bool:
    """Whether it is an error that says what to do, of a class whose import takes seconds."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from persona_callbacks.training import NonFiniteLossError

    return isinstance(error, (MisconfigurationException, NonFiniteLossError))


def _end(message: str) -> NoReturn:
    if is_job_of_sweep():
        print(message, file=sys.stderr, flush=True)
        raise JobError(f"a job of the sweep failed, {HydraConfig.get().job.override_dirname}: {message}") from None
    sys.exit(message)


def _terminate(signum: int, _frame: object) -> None:
    raise _Terminated(128 + signum)


def _interruption(error: BaseException) -> int | None:
    """The exit code of the signal that an error comes from; ``None`` if it comes from none.

    Lightning makes an ordinary exit of Ctrl-C.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _Terminated):
            return 128 + signal.SIGTERM
        if isinstance(seen, KeyboardInterrupt):
            return 128 + signal.SIGINT
        seen = seen.__cause__ or seen.__context__
    return None


def _no_space(error: BaseException) -> str:
    """What a full disk said, if an error comes from one; libraries pass its words on in errors of their own."""
    words = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    seen: BaseException | None = error
    while seen is not None:
        if any(word in str(seen) for word in words):
            return str(seen).strip().splitlines()[0]
        seen = seen.__cause__ or seen.__context__
    return ""


_told: set[str] = set()
"""Warnings of this process, which may be at work on many jobs of a sweep."""


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show a warning inside the block by its words alone, and each once: the file and the line of code that Python adds
    are of no use to somebody at a terminal, and often are those of Hydra.
    """
    shown_before = warnings.showwarning
    warnings.showwarning = _tell
    try:
        yield
    finally:
        warnings.showwarning = shown_before


def _tell(message: Warning | str, *_: object, file: TextIO | None = None, **__: object) -> None:
    if str(message) not in _told:
        _told.add(str(message))
        print(f"warning: {message}", file=file or sys.stderr, flush=True)


class WritableFolder(HydraCallback):
    """Ends an app with one line, before anything else, if Hydra cannot write to the folder of the run."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single run."""
        _check_folder(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a sweep."""
        _check_folder(config.hydra.sweep.dir)


def _check_folder(folder: str) -> None:
    try:
        check_writable(Path(folder).absolute())
    except InputError as error:
        sys.exit(f"error: {error}")
