"""Installs the oldest and the newest releases that pyproject.toml allows, and tests the library with them.

    pip install uv
    python experiments/compatibility/versions.py WORK --pythons 3.11 3.12 3.13

For each Python and each end of the ranges, WORK gets an environment of its own with what uv resolves to: the lowest or
the highest release of every direct dependency for which there is a wheel. In it, a short suite of the tests runs on
tiny models. What was installed, and how the tests ended, becomes a row of versions.csv; rows that are there stay. Then
the table in README.md is written anew.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = HERE / "versions.csv"
ENDS = {"oldest": "lowest-direct", "newest": "highest"}
EXTRAS = ("datasets", "gguf", "openai")
SUITE = (
    "tests/vectors", "tests/chats", "tests/traits/test_trait.py", "tests/model/test_activations.py",
    "tests/callbacks/test_callbacks.py", "tests/callbacks/test_trait_evaluation.py", "tests/tracking",
    "tests/training/test_lora.py", "tests/faults/test_faults.py",
)  # fmt: skip
"""Files, readings, steering, resuming, W&B's files, and three commands from their start to their end."""

LEFT_OUT = ("compiled", "two_processes", "cannot_be_reached", "any_step", "extract")
"""Tests that take long, or that another part of the machine decides."""

RESULT = ("python", "end", "passed", "failed", "skipped", "seconds")


def main() -> None:
    """Try what the table does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the environments; each is a few gigabytes")
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.12", "3.13"], help="versions, or their programs")
    parser.add_argument("--ends", nargs="+", default=[*ENDS], choices=[*ENDS])
    parser.add_argument("--uv", default="uv", help="the program")
    chosen = parser.parse_args()
    for end in chosen.ends:
        for python in chosen.pythons:
            rows = read_table()
            name = _version_of(python)
            if any((row["python"], row["end"]) == (name, end) for row in rows):
                continue
            environment = install(chosen.uv, python, end, chosen.work.absolute() / f"{end}-{name}")
            write_table([*rows, {"python": name, "end": end, **versions(environment), **suite(environment)}])
    write_readme(read_table())


def dependencies() -> list[str]:
    """The names of the library's direct dependencies, those of the tried extras among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return [re.split(r"[<>=!~;\[ ]", line)[0] for line in lines]


def install(uv: str, python: str, end: str, environment: Path) -> Path:
    """Make an environment with the library and its dependencies."""
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, environment], check=True)
    command: list[str | Path] = [
        uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python", "--resolution", ENDS[end],
        "--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime",  # of hydra-core, which has no wheel
        "--editable", f"{ROOT}[{','.join(EXTRAS)}]", "pytest>=8", "hypothesis>=6.100",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return environment


def versions(environment: Path) -> dict[str, str]:
    """What is installed of each direct dependency."""
    program = (
        "import importlib.metadata, json, sys\n"
        "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [environment / "bin" / "python", "-c", program, *dependencies()], check=True, capture_output=True, text=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def suite(environment: Path) -> dict[str, str]:
    """How the short suite ends."""
    command: list[str | Path] = [
        environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", "-k",
        " and ".join(f"not {name}" for name in LEFT_OUT), *SUITE,
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    log = environment.with_name(f"{environment.name}.log")
    with log.open("w", encoding="utf-8") as text:
        subprocess.run(command, cwd=ROOT, env=variables, stdout=text, stderr=subprocess.STDOUT, check=False)
    last = log.read_text(encoding="utf-8").splitlines()[-1]
    counts = {word: number for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    print(f"{environment.name}: {last}", flush=True)
    failed = int(counts.get("failed", 0)) + int(counts.get("error", 0))
    return {
        "passed": counts.get("passed", "0"), "failed": str(failed), "skipped": counts.get("skipped", "0"),
        "seconds": f"{time.monotonic() - started:.0f}",
    }  # fmt: skip


def read_table() -> list[dict[str, str]]:
    """The rows so far."""
    if not TABLE.is_file():
        return []
    with TABLE.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def write_table(rows: Sequence[dict[str, str]]) -> None:
    """Write all rows."""
    with TABLE.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, [*RESULT, *dependencies()])
        writer.writeheader()
        writer.writerows(rows)


def write_readme(rows: Sequence[dict[str, str]]) -> None:
    """Put the table where README.md has it: a column for each environment."""
    rows = sorted(rows, key=lambda row: ([*ENDS].index(row["end"]), row["python"]))
    lines = [
        ["", *(f"{row['end']}, Python {row['python']}" for row in rows)],
        ["---"] * (len(rows) + 1),
        *([name, *(row[name] for row in rows)] for name in dependencies()),
        ["tests passed, failed", *(f"{row['passed']}, {row['failed']}" for row in rows)],
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    page = HERE / "README.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of the table -->")
    page.write_text(f"{before}{begin}{table}\n{end}{after}", encoding="utf-8")


def _version_of(python: str) -> str:
    """Of a version, itself; of a program, what it says."""
    if re.fullmatch(r"[\d.]+", python):
        return python
    program = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
