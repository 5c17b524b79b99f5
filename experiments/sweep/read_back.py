"""Read the W&B files of the sweep back, without W&B's client and without the library, and hold them against what the
sweep was asked for.

    python experiments/sweep/read_back.py FOLDER

It writes ``expectations.csv`` beside this script and prints it, gathered over runs. FOLDER is that of ``run.sh``.
"""

import csv
import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

SECTIONS = ("persona", "steering", "screening", "train")
OTHERS = ("epoch", "trainer/global_step")
EVERY_FOURTH_STEP = [0, 4, 8, 12, 16]
TOGETHER = ["train/loss", "train/learning_rate", "train/gradient_norm", "persona/evil/shift"]


@dataclass
class Run:
    """A run, gathered over the files that it has."""

    files: list[Path] = field(default_factory=list)
    about: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    defined: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    exits: list[int | None] = field(default_factory=list)

    @property
    def metrics(self) -> set[str]:
        """Names of what was logged, W&B's own aside."""
        return {name for row in self.rows for name in row if not name.startswith("_")}


def records(path: Path) -> Iterator[Record]:
    """Each record: after 7 bytes of header, blocks of 32 KiB of (checksum, length, kind, payload)."""
    data = path.read_bytes()[7:]
    position, payload = 0, b""
    while position + 7 <= len(data):
        left = (32768 - 7 - position) % 32768 or 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(payload)
            payload = b""


def read(runs: dict[str, Run], path: Path) -> None:
    """Add what a file says to its run."""
    read_here = list(records(path))
    (about, *_) = [record.run for record in read_here if record.HasField("run")]
    run = runs.setdefault(about.run_id, Run())
    run.files.append(path)
    run.about = run.about or about
    run.exits.append(None)
    for record in read_here:
        if record.HasField("config"):
            for entry in record.config.update:
                run.config[entry.key or "/".join(entry.nested_key)] = json.loads(entry.value_json)
        elif record.HasField("history"):
            run.rows.append(_row(record.history.item))
        elif record.HasField("summary"):
            run.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif record.HasField("metric"):
            run.defined[record.metric.name] = record.metric
        elif record.HasField("artifact"):
            (run.used if record.artifact.use_after_commit else run.made).add(record.artifact.type)
        elif record.HasField("exit"):
            run.exits[-1] = record.exit.exit_code


def _row(items: Any) -> dict[str, Any]:
    """A row of the history; what a table says of itself has keys of two parts."""
    row: dict[str, Any] = {}
    for item in items:
        name, *part = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if part:
            row.setdefault(name, {})["/".join(part)] = value
        else:
            row[name] = value
    return row


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def table(run: Run, name: str) -> dict[str, Any]:
    """The last table of a name, from the file that its row in the history points to."""
    place = [row[name]["path"] for row in run.rows if isinstance(row.get(name), dict)][-1]
    (file,) = [path for path in (folder.parent / "files" / place for folder in run.files) if path.is_file()]
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def last(run: Run, name: str) -> float:
    """The last logged value."""
    return float([row[name] for row in run.rows if name in row][-1])


def unresolved(config: Any) -> bool:
    """Whether a configuration still refers to other values, or holds a trait's texts."""
    text = json.dumps(config)
    return "${" in text or "rubric" in text


def expectations(
    run: Run, group: set[str], asked: tuple[str, str, int], folder: Path
) -> Iterator[tuple[str, Any, Any]]:
    """What is expected of a run of these settings, and what is found: by name, expected, found."""
    steering, data, seed = asked
    method = "adaptive" if steering == "adaptive" else "unsteered"
    own = folder / "kind.jsonl"
    shipped = Path(run.config["data_file"])
    digest = hashlib.sha256((own if data == "kind" else shipped).read_bytes()).hexdigest()
    result = json.loads(next(run.files[0].parents[2].glob("result.json")).read_text(encoding="utf-8"))
    shift = result["readings"][-1]["shift"]["evil"]
    chosen = run.config["chosen"]
    inside = {name for name in run.metrics if name.partition("/")[0] in SECTIONS}
    drawn = [name for name in inside if all(not isinstance(row.get(name), dict) for row in run.rows)]
    rows = {row["trainer/global_step"]: row for row in run.rows if TOGETHER[-1] in row}
    judged, answers = table(run, "persona/judged_answers"), table(run, "persona/sample_answers")
    yield "name", f"{method} · {data}-64 · s{seed}", run.about.display_name
    yield "group: shared by the three seeds", (1, f"{method} · {data}-64"), (
        len(group), run.about.run_group.rpartition(" · ")[0],
    )  # fmt: skip
    yield "job type", "train", run.about.job_type
    wanted = ["sweep", method, f"{data}-64", "SmolLM2-135M-Instruct", "evil"]
    yield "tags", wanted, [tag for tag in wanted if tag in run.about.tags]
    yield (
        "config: chosen options",
        (steering, data, "smollm2"),
        tuple(chosen.get(key) for key in ("steering", "data", "model"))
        if method == "adaptive"
        else (chosen.get("steering", "none"), chosen.get("data"), chosen.get("model")),
    )
    yield "config: seed", seed, run.config["seed"]
    yield "config: SHA-256 of the data file", digest, run.config["data_sha256"]
    yield "config: steering listed", method == "adaptive", "steering" in run.config
    yield "config: references or trait texts", False, unresolved({k: v for k, v in run.config.items() if k != "logger"})
    yield "metrics outside of the sections", [], sorted(run.metrics - inside - set(OTHERS))
    yield "coefficient logged", method == "adaptive", "steering/evil/coefficient" in run.metrics
    yield (
        "metrics over optimizer steps, with min, max, last",
        len(drawn),
        sum(
            name in run.defined
            and run.defined[name].step_metric == "trainer/global_step"
            and all(getattr(run.defined[name].summary, kind) for kind in ("min", "max", "last"))
            for name in drawn
        ),
    )
    found = sorted(step for step in rows if step % 4 == 0)
    yield "readings at every fourth step", EVERY_FOURTH_STEP, found
    together = [step for step in found if step and all(name in rows[step] for name in TOGETHER)]
    yield "loss, learning rate, gradient norm and shift in one row", EVERY_FOURTH_STEP[1:], together
    yield "last shift is that of result.json", shift, last(run, "persona/evil/shift")
    yield "judged answers: before and after, 10 each, base beside", (20, True), (
        len(judged["data"]), {"step", "base_answer", "base_score"} <= set(judged["columns"]),
    )  # fmt: skip
    yield "sample answers with the base model's", (5, True), (
        len(answers["data"]), {"step", "base_answer"} <= set(answers["columns"]),
    )  # fmt: skip
    yield "artifacts used", ["dataset", "persona-vector"], sorted(run.used)
    yield "artifact made: the adapter", True, "model" in run.made
    yield "ended with", 0, run.exits[-1]


def main() -> None:
    """Read, compare, write and print."""
    folder = Path(sys.argv[1])
    runs: dict[str, Run] = {}
    for path in sorted(folder.glob("outputs/sweep/sweep/*/*/wandb/offline-run-*/run-*.wandb")):
        read(runs, path)
    by_name = {run.about.display_name: run for run in runs.values()}
    lines = []
    for steering, data, seed in product(("adaptive", "none"), ("evil", "kind"), range(3)):
        method = "adaptive" if steering == "adaptive" else "unsteered"
        name = f"{method} · {data}-64 · s{seed}"
        if name not in by_name:
            lines.append([name, "there is a run", True, False, "no"])
            continue
        groups = {by_name[other].about.run_group for other in by_name if other.startswith(f"{method} · {data}-")}
        for what, expected, found in expectations(by_name[name], groups, (steering, data, seed), folder):
            lines.append([name, what, expected, found, "yes" if expected == found else "no"])
    with (Path(__file__).parent / "expectations.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["run", "expectation", "expected", "found", "met"], *lines])
    print(f"{len(runs)} runs in {sum(len(run.files) for run in runs.values())} files")
    print("files without an end:", [run.about.display_name for run in runs.values() if None in run.exits])
    for title in dict.fromkeys(str(line[1]) for line in lines):
        of_it = [line for line in lines if line[1] == title]
        met = [line for line in of_it if line[4] == "yes"]
        print(f"| {title} | {of_it[0][2]} | {len(met)} of {len(of_it)} |")
        for line in of_it:
            if line[4] == "no":
                print("   ", line)


if __name__ == "__main__":
    main()
