"""Reading what W&B's offline mode writes, for which W&B itself ships no reader.

A ``run-*.wandb`` file is a header of 7 bytes and then LevelDB's log format: blocks of 32 KiB with parts of records,
each after its checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

from persona_callbacks.errors import InputError

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """What a run logged.

    Attributes:
        id: of the run; a resumed run has several files with the same one.
        name: as displayed.
        config: hyperparameters.
        history: one mapping of metrics a logged step, oldest first.
        tables: by name, the last one logged: its rows as mappings.
    """

    id: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_offline_run(path: Path) -> OfflineRun:
    """Read a ``run-*.wandb`` file and the tables beside it. A file cut short, of a run that was killed, is read as far
    as it goes.

    Raises:
        InputError: not such a file.
    """
    run = OfflineRun()
    for record in _records(path):
        if record.HasField("run"):
            run.id, run.name = record.run.run_id, record.run.display_name
            updates = record.run.config.update
        elif record.HasField("config"):
            updates = record.config.update
        elif record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            run.history.append(row)
            for name in [key.removesuffix("/_type") for key, value in row.items() if value == "table-file"]:
                run.tables[name] = _table(path.parent / "files" / row[f"{name}/path"])
            continue
        else:
            continue
        run.config.update(
            (item.key or "/".join(item.nested_key), json.loads(item.value_json))
            for item in updates
            if not (item.key or item.nested_key[0]).startswith("_")
        )
    return run


def _records(path: Path) -> Iterator[Record]:
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
        if len(payload) < length or not _WHOLE <= kind <= _LAST:
            return
        parts = payload if kind in (_WHOLE, _FIRST) else parts + payload
        if kind in (_WHOLE, _LAST):
            try:
                yield Record.FromString(parts)
            except DecodeError:
                return


def _table(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
