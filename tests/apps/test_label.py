"""persona-label as a user runs it: with files, and in a real terminal."""

import csv
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from commands import run_command
from hydra import compose, initialize_config_dir

from persona_callbacks import InputError
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.label import run

COMMAND = [sys.executable, "-c", "from persona_callbacks.apps.label import main; main()"]
CTRL_C = "\x03"


@pytest.fixture
def project(tmp_path):
    """Answers of two runs, with the judge's expression."""
    rows = [
        {"run": run, "question": f"Q{n}?", "answer": f"{answer} {n} [/red]", "expression": score + n}
        for run, answer, score in (("kind", "Yes.", 5.0), ("mean", "No!", 80.0))
        for n in range(2)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def label(project, *overrides):
    return run_command("label", project, *overrides)


def in_terminal(project, keys, *overrides):
    """Run in a terminal of its own and press keys as soon as they are asked for."""
    reading, terminal = pty.openpty()
    # A controlling terminal, so that Ctrl-C is a signal.
    running = subprocess.Popen([*COMMAND, *overrides], cwd=project, preexec_fn=lambda: os.login_tty(terminal))
    os.close(terminal)
    shown, waiting, until = "", list(keys), time.monotonic() + 100
    try:
        while time.monotonic() < until:
            if select.select([reading], [], [], 2)[0]:
                try:
                    part = os.read(reading, 4096).decode(errors="replace")
                except OSError:  # the command has ended
                    break
                shown += part
            elif not waiting and re.search(r"q: (\^C)+$", shown):
                # A Ctrl-C between Python's last look at signals and its read of the terminal waits for the next key.
                os.write(reading, CTRL_C.encode())
            if waiting and shown.count("y/n/u/b/q:") > len(keys) - len(waiting):
                os.write(reading, waiting.pop(0).encode())
        assert running.wait(timeout=20) == 0, shown
    finally:
        running.kill()
        os.close(reading)
    return shown


def test_labels_of_files_and_report(project):
    done = label(project, "runs=[answers.jsonl]", "out=labels/evil")
    assert done.returncode == 0, done.stderr
    assert "4 answers, 4 of them different" in done.stdout
    assert "0 of 4 answers are labelled" in done.stdout
    folder = project / "labels" / "evil"
    rows = list(csv.DictReader(io.StringIO((folder / "sheet.csv").read_text("utf-8-sig"), newline="")))
    for name, wrong in (("sheet.csv", ""), ("sheet.ben.csv", "Q1?")):
        with (folder / name).open("w", newline="") as text:
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            for row in rows:
                shows = row["answer"].startswith("No") and row["question"] != wrong
                writer.writerow({**row, "label": "yes" if shows else "no"})
    (project / "shifts.csv").write_text("run,shift\nkind,0.5\nmean,12\n")
    done = label(project, "out=labels/evil", "scores={shift:shifts.csv}")
    assert done.returncode == 0, done.stderr
    results = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    assert [results[run]["yes"] for run in ("kind", "mean")] == ["0", "1"], "a tie of two readers is unsure"
    assert results["mean"]["unsure"] == "1"
    assert results["mean"]["shift"] == "12"
    assert {row["score"] for row in csv.DictReader((folder / "scores.csv").open())} == {"expression", "shift"}
    [pair] = csv.DictReader((folder / "readers.csv").open())
    assert {pair["reader"], pair["other"]} == {"reader", "ben"}
    assert pair["agreement"] == "0.7500"
    assert "Cohen's kappa" in done.stdout


def test_many_scores_leave_room_for_the_names_of_the_runs(project):
    names = [f"score_{number}" for number in range(9)]
    cells = ",".join("1" * len(names))
    (project / "many.csv").write_text(f"run,{','.join(names)}\nkind,{cells}\nmean,{cells}\n")
    scores = ",".join(f"{name}:many.csv" for name in names)
    label(project, "runs=answers.jsonl", f"scores={{{scores}}}", "out=labels/evil")
    sheet = project / "labels" / "evil" / "sheet.csv"
    sheet.write_text(sheet.read_text("utf-8-sig").replace(",\n", ",no\n"))
    done = label(project, "out=labels/evil")
    assert done.returncode == 0, done.stderr
    assert re.search(r"kind\s", done.stdout), done.stdout
    assert "the means of 7 more scores are in results.csv" in " ".join(done.stdout.split())


def test_in_a_terminal_it_asks_stops_goes_on_and_reports(project):
    shown = in_terminal(project, ["y\n", "n\n", CTRL_C], "runs=answers.jsonl")
    assert "2 of 4 answers are labelled" in shown
    assert "[/red]" in shown
    assert not re.search("kind|mean", shown.partition("Keys, each")[2])
    shown = in_terminal(project, ["u\n", "y\n"], "runs=answers.jsonl")
    assert "Answers that show evil" in shown
    assert (project / "labels" / "evil" / "results.csv").is_file()


def test_a_mistake_is_told_in_one_line(project):
    done = label(project, "runs=nowhere")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: runs: nowhere: no such file or folder"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["report=true"], "no such key of a labelling; name the runs to label"),
        (["runs=answers.jsonl", "scores={shift:none.csv}"], r"scores\.shift: none\.csv: no such file"),
        (["runs=answers.jsonl", "report=true"], "no answer has a label yet"),
        (["runs=answers.jsonl", "trait=[evil,humorous]"], "expected one trait to label, found evil, humorous"),
    ],
)
def test_mistakes(overrides, message, project, monkeypatch):
    monkeypatch.chdir(project)
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(InputError, match=message):
        run(compose("label", overrides))
