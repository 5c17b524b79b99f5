"""The plan of the house: which room may import which, how long things are, and that nothing is written twice."""

import ast
import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import persona_callbacks

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "persona_callbacks"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_COPY = 400, 60, 10


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_imports_point_down():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_root_of_the_package_holds_only_rooms_and_the_errors():
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__init__.pyi", "py.typed", "errors.py"}


def test_a_room_imports_its_own_modules_directly_and_others_by_their_facade():
    offenders = []
    for path in SOURCES:
        inside = path.relative_to(PACKAGE).parts
        own = inside[0] if len(inside) > 1 else None
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("persona_callbacks."):
                continue
            _, room, *rest = node.module.split(".")
            if own is not None and own != room and rest and room in ROOMS:
                offenders.append(f"{relative(path)}:{node.lineno} imports {node.module}")
            elif (
                own == room and not rest and not all((path.parent / f"{name.name}.py").exists() for name in node.names)
            ):
                offenders.append(f"{relative(path)}:{node.lineno} imports its own facade")
    assert not offenders, "\n".join(offenders)


def test_no_file_is_too_long():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}


def test_no_function_is_too_long():
    offenders = [
        f"{relative(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES
        for node in functions(ast.parse(path.read_text()))
        if node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert not offenders, "\n".join(offenders)


def significant_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered, stripped lines that say something: no imports, blank lines, comments or lone brackets."""
    text = path.read_text()
    imported: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported.update(range(node.lineno, node.end_lineno + 1))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if number not in imported]
    return [(number, line) for number, line in lines if re.search(r"\w", line) and not line.startswith("#")]


def copies(files: dict[str, list[tuple[int, str]]], longest: int) -> list[str]:
    """Runs of more than ``longest`` lines that occur at two places, each run once."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    size = longest + 1
    for name, lines in files.items():
        for start in range(len(lines) - size + 1):
            places[tuple(line for _, line in lines[start : start + size])].append((name, start))
    repeated = {place: run for run, where in places.items() if len(where) > 1 for place in where}
    first = [(name, start) for name, start in repeated if (name, start - 1) not in repeated]
    return sorted(
        " = ".join(f"{other}:{files[other][at][0]}" for other, at in places[repeated[place]]) for place in first
    )


def test_the_duplicate_finder_sees_a_copy_in_another_file_and_in_the_same_one():
    text = [(number, f"line {number}") for number in range(1, 13)]
    moved = [(number + 40, line) for number, line in text]
    assert copies({"a": text, "b": [(1, "other"), *moved]}, 10) == ["a:1 = b:41", "a:1 = b:41"]
    assert copies({"a": [*text, (30, "between"), *moved]}, 10)
    assert not copies({"a": text[:10], "b": moved[:10]}, 10)


def test_no_two_places_share_more_than_a_few_lines():
    found = copies({relative(path): significant_lines(path) for path in SOURCES}, LONGEST_COPY)
    assert not found, "\n".join(dict.fromkeys(found))


def test_no_test_imports_another_test():
    offenders = [
        f"{relative(path)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if any(part.startswith("test_") for part in name.split(".")) or name == "conftest"
    ]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("room", ROOMS)
def test_a_facade_says_what_lives_in_the_room_and_what_it_may_import(room):
    facade = importlib.import_module(f"persona_callbacks.{room}")
    assert facade.__doc__
    assert re.search(r"\b(import|Import)s?\b", facade.__doc__)
    assert all(hasattr(facade, name) for name in getattr(facade, "__all__", ()))


def test_every_public_class_has_an_example():
    offenders = set()
    for facade in [persona_callbacks, *(importlib.import_module(f"persona_callbacks.{room}") for room in ROOMS)]:
        for name in getattr(facade, "__all__", ()):
            value = getattr(facade, name)
            is_ours = isinstance(value, type) and value.__module__.startswith("persona_callbacks")
            if is_ours and ("Example:" not in (value.__doc__ or "") or ">>> " not in value.__doc__):
                offenders.add(f"{value.__module__}.{name}")
    assert not offenders, "\n".join(sorted(offenders))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages([PACKAGE], "persona_callbacks.")])
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not result.failed


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    missing = [link for link in targets if not link.startswith("http") and not (ROOT / link).exists()]
    assert targets
    assert not missing
