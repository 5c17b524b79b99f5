"""Files that W&B keeps as artifacts: what a run made, and what it used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_callbacks.tracking.faults import faults_as_warnings

if TYPE_CHECKING:  # persona-report needs names alone
    import wandb
    from lightning.pytorch.loggers import Logger, WandbLogger


def vector_artifact(model_id: str, trait: str) -> str:
    """Name the artifact of a persona vector."""
    return f"vector-{model_id.rpartition('/')[2]}-{trait}"


def screening_artifact(data: Path) -> str:
    """Name the artifact of a screening of a file."""
    return f"screening-{data.stem}"


def write_files(
    loggers: Sequence[Logger], name: str, kind: str, files: Sequence[Path], about: Mapping[str, Any]
) -> None:
    """Keep files that the run made as one version of an artifact, in those loggers that are W&B's.

    Args:
        loggers: where to.
        name: the name of the artifact; characters that W&B does not allow are replaced.
        kind: the type of the artifact.
        files: the files of this version.
        about: the metadata of this version.
    """
    for logger in _of_wandb(loggers):
        with faults_as_warnings(f"keeping {name} by {type(logger).__name__}"):
            logger.experiment.log_artifact(_artifact(name, kind, files, about))


def write_page(loggers: Sequence[Logger], name: str, page: Path) -> None:
    """Show an HTML file that needs no other as a panel, in those loggers that are W&B's."""
    import wandb

    for logger in _of_wandb(loggers):
        with faults_as_warnings(f"showing {page.name} by {type(logger).__name__}"):
            logger.experiment.log({name: wandb.Html(str(page), inject=False)})


def use_files(
    loggers: Sequence[Logger],
    name: str,
    kind: str,
    files: Sequence[Path],
    about: Mapping[str, Any],
    *,
    by_reference: bool = False,
) -> None:
    """Record files as an artifact that the run used, in those loggers that are W&B's.

    Files of the same content under the same name are one version, whichever run wrote or used them: so the runs are
    joined. Offline, W&B's client refuses ``use_artifact``. The artifact is then written to the run's file as one that
    the run uses once it is there, which is what ``use_artifact`` does with an artifact that is new.

    Args:
        loggers: where to.
        name: see :func:`write_files`.
        kind: see there.
        files: see there.
        about: see there.
        by_reference: keep checksums and paths only, so that the content stays here.
    """
    for logger in _of_wandb(loggers):
        with faults_as_warnings(f"recording {name} by {type(logger).__name__}"):
            artifact = _artifact(name, kind, files, about, by_reference=by_reference)
            # Not use_artifact, which also waits without end for a server that has gone.
            logger.experiment._log_artifact(artifact, use_after_commit=True)


def use_data(loggers: Sequence[Logger], file: Path, about: Mapping[str, Any]) -> None:
    """Record a file of chats as what the run used, by reference: data do not leave the machine because a run is
    tracked. See :func:`use_files`.
    """
    use_files(loggers, f"data-{file.stem}", "dataset", [file], about, by_reference=True)


def use_vector(loggers: Sequence[Logger], model_id: str, trait: str, file: Path, about: Mapping[str, Any]) -> None:
    """Record the file of a persona vector as what the run used. See :func:`use_files`."""
    use_files(loggers, vector_artifact(model_id, trait), "persona-vector", [file], about)


def use_screening(loggers: Sequence[Logger], data: Path, folder: Path, files: Sequence[Path]) -> None:
    """Record files of the screening of ``data``, which lies in a folder, as used by the run. See :func:`use_files`."""
    use_files(loggers, screening_artifact(data), "screening", files, {"folder": str(folder)})


def _of_wandb(loggers: Sequence[Logger]) -> list[WandbLogger]:
    from lightning.pytorch.loggers import WandbLogger

    return [logger for logger in loggers if isinstance(logger, WandbLogger)]


def _artifact(
    name: str, kind: str, files: Sequence[Path], about: Mapping[str, Any], *, by_reference: bool = False
) -> wandb.Artifact:
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind, metadata=dict(about))
    for file in files:
        if by_reference:
            artifact.add_reference(file.absolute().as_uri(), name=file.name)
        else:
            artifact.add_file(str(file))
    return artifact
