"""Loggers that fail: told early where that is possible, and never at the cost of a run that is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from persona_callbacks.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_ANSWER_SECONDS = 10


def check_wandb(way_out: str) -> None:
    """Make sure, within seconds, that the server of Weights & Biases answers and accepts the API key.

    ``wandb.init`` tries for minutes, and only when the first value is logged. The address is asked before W&B's own
    client is, which takes its time to give up, and on a busy machine does not.

    Args:
        way_out: the setting that logs offline, for the error.

    Raises:
        InputError: the server does not answer, or there is no key that it accepts.
    """
    import wandb

    try:
        _expect_answer(wandb.setup().settings.base_url)
        wandb.Api(timeout=_ANSWER_SECONDS).viewer  # noqa: B018, asks the server
    except Exception as error:  # wandb raises errors of its own, of requests, and plain ones
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"Weights & Biases cannot be used: {reason}. Log offline, with {way_out} or the environment variable"
            " WANDB_MODE=offline (wandb sync uploads the run later); or leave it out, with WANDB_MODE=disabled"
        ) from error


def _expect_answer(address: str) -> None:
    try:
        urlopen(address, timeout=_ANSWER_SECONDS).close()
    except HTTPError:  # an answer, if not a page
        pass
    except OSError as error:
        parts = urlsplit(address)
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # a password stays out of messages
        raise ConnectionError(f"no answer from {shown} ({getattr(error, 'reason', error)})") from error


@contextmanager
def faults_as_warnings(doing: str) -> Iterator[None]:
    """Warn of what goes wrong in the block, such as a full disk or a server that is gone, instead of ending the run."""
    try:
        yield
    except Exception as error:
        _warn(f"{doing} failed, the run goes on: {type(error).__name__}: {error}")


def finish_wandb(exit_code: int = 0) -> None:
    """Close the run of W&B that is open, if there is one.

    Where W&B's own process is gone, this warns, and has the next run start another one instead of failing too.
    """
    import wandb

    with faults_as_warnings("closing the W&B run"):
        try:
            wandb.finish(exit_code=exit_code)
        except Exception:
            with suppress(Exception):
                wandb.teardown()
            wandb.run = None  # else the next logger would go on with this run
            raise


def never_failing(logger: Logger) -> Logger:
    """Return the logger itself, changed so that what Lightning has it do during a fit causes no errors, but warnings,
    one for each kind.
    """
    for name in ("log_metrics", "save", "after_save_checkpoint"):
        doing = f"{type(logger).__name__}.{name}"
        setattr(logger, name, partial(_warning_once, getattr(logger, name), doing, set()))
    return logger


def _warning_once(call: Callable[..., Any], doing: str, told: set[str], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:
        if doing not in told:
            told.add(doing)
            _warn(f"{doing} failed, the run goes on: {type(error).__name__}: {error}")


def _warn(message: str) -> None:
    from lightning.pytorch.utilities import rank_zero_warn

    rank_zero_warn(message)
