"""Reading what W&B's offline mode writes.

W&B's own reader is private: earlier versions have it as a Python module, ``wandb.sdk.internal.datastore``, and version
0.31 has it inside the compiled ``wandb-core`` alone. This one depends on the file format instead, which is stable. A
``run-*.wandb`` file is a header of 7 bytes and then LevelDB's log format: blocks of 32 KiB with parts of records, each
after its checksum (4 bytes), its length (2) and its kind (1: a complete record, 2: its first part, 3: a middle part,
4: its last part).
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_callbacks.errors import InputError
from persona_callbacks.files import parse_json, read_json

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7
_COMPLETE, _FIRST, _LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """What a run logged.

    Attributes:
        id: the run's id; a resumed run has several files with the same id.
        name: the name that W&B displays.
        config: the hyperparameters.
        history: for each logged step the metrics by name, oldest first.
        tables: by name, the rows of the table that was logged last, each as a mapping from column to cell.
        exit_code: 0 if the run ended well; ``None`` if it did not end, as when it is killed.

    Example:
        >>> OfflineRun(id="abc", history=[{"train/loss": 2.0}]).history[-1]["train/loss"]
        2.0
    """

    id: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline_run(path: Path) -> OfflineRun:
    """Read a ``run-*.wandb`` file and the tables beside it.

    The file of a run that was killed may be cut short; it is read as far as it goes.

    Raises:
        InputError: the file is no offline run of W&B.
    """
    run = OfflineRun()
    for record in _records(path):
        if record.HasField("run"):
            run.id, run.name = record.run.run_id, record.run.display_name
            run.config.update(_public(_values(record.run.config.update)))
        elif record.HasField("config"):
            run.config.update(_public(_values(record.config.update)))
        elif record.HasField("exit"):
            run.exit_code = record.exit.exit_code
        elif record.HasField("history"):
            row = _values(record.history.item)
            run.history.append(row)
            for name in [key.removesuffix("/_type") for key, value in row.items() if value == "table-file"]:
                run.tables[name] = _table(path.parent / "files" / str(row.get(f"{name}/path")))
    return run


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """The values of items of a record, by key; nested keys are joined by slashes."""
    return {item.key or "/".join(item.nested_key): parse_json(item.value_json) for item in items}


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without W&B's own keys, which begin with an underscore."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _records(path: Path) -> Iterator["Record"]:
    """Yield the records of a file, up to the first one that is cut short or broken."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # W&B takes seconds

    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise InputError(f"{path}: not an offline run of W&B: expected it to begin with ':W&B', found {data[:4]!r}")
    position, parts = _FILE_HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        payload = data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if len(payload) < length or not _COMPLETE <= kind <= _LAST:
            return
        parts = payload if kind in (_COMPLETE, _FIRST) else parts + payload
        if kind in (_COMPLETE, _LAST):
            try:
                yield Record.FromString(parts)
            except DecodeError:
                return


def _table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that W&B wrote as JSON; none if the file is missing."""
    if not path.is_file():
        return []

    def read(content: Any) -> list[dict[str, Any]]:
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    return read_json(path, read, "a table of W&B")
