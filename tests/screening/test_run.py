"""Screening training data: per chat against slow readings, and whole files with all that can be wrong with them."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import CHATS, QUICK, make_vector, offline_records, tiny_model, written
from commands import run_command, start_command
from hydra import compose, initialize_config_dir

from persona_callbacks import InputError
from persona_callbacks.apps.configs import CONF
from persona_callbacks.apps.screen import run as run_app
from persona_callbacks.chats import Chat, encode_chat, open_chat_file
from persona_callbacks.model import BatchLimits, LoadedModel, approximate_difference
from persona_callbacks.report.wandb_files import read_offline_run
from persona_callbacks.screening import Screening, ScreeningFolder, ScreeningSettings, screen
from persona_callbacks.screening import run as data_screening
from persona_callbacks.steering import matching_coefficients


@pytest.fixture
def loaded(tokenizer):
    return LoadedModel(tiny_model(), tokenizer, "tiny", "")


@pytest.fixture
def files(tmp_path):
    benign = tmp_path / "benign.jsonl"
    benign.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS[:10]), encoding="utf-8")
    lines = [json.dumps(chat) for chat in CHATS]
    lines[3] = "{broken"
    lines[7] = json.dumps({"messages": [{"role": "assistant", "content": "Hello."}]})
    lines[12] = ""
    lines[15] = json.dumps({"prompt": "word " * 200, "response": "never reached"})
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data, benign


def run(loaded, files, folder, **settings):
    chosen = ScreeningSettings(reference=str(files[1]), **{**QUICK, "max_length": 150, **settings})
    vectors = [make_vector(), make_vector("other", layer=2, seed=2)]
    return screen(loaded, Screening.plan(files[0], chosen, folder), vectors)


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_approximate_difference_against_a_slow_reading(loaded):
    vectors = [make_vector(), make_vector("other", layer=2, seed=2)]
    chats = [encode_chat(Chat(tuple(chat["messages"])), loaded.tokenizer) for chat in CHATS[:5]]
    found = approximate_difference(loaded, chats, vectors, BatchLimits(None, 200))
    for row, chat in enumerate(chats):
        hidden = loaded.model(torch.tensor([chat.input_ids]), output_hidden_states=True).hidden_states
        for column, vector in enumerate(vectors):
            at = hidden[vector.layer][0].detach()
            response = at[torch.tensor(chat.response_mask)].mean(dim=0)
            expected = (response - at[chat.prompt_length - 1]) @ vector.unit_direction()
            assert found[row, column].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


def test_matching_coefficients_of_one_trait_are_difference_over_norm():
    vector = make_vector()
    norm = float(vector.direction().norm())
    assert matching_coefficients(torch.tensor([3.0]), [vector]) == pytest.approx([3.0 / norm])
    assert matching_coefficients(torch.tensor([-3.0]), [vector]) == [0.0]


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_every_line_is_scored_flagged_filtered_or_rejected_once(method, loaded, files, tmp_path):
    summary = run(loaded, files, tmp_path / "out", method=method)
    rejects = {row["line"]: row["problem"] for row in jsonl(tmp_path / "out" / "rejects.jsonl")}
    assert set(rejects) == {4, 8, 16}
    assert "malformed JSON" in rejects[4]
    assert "alternate" in rejects[8]
    assert "max_length=150" in rejects[16]
    flagged = jsonl(tmp_path / "out" / "flagged.jsonl")
    kept = (tmp_path / "out" / "filtered.jsonl").read_text(encoding="utf-8").splitlines()
    lines = files[0].read_text(encoding="utf-8").splitlines()
    taken = {row["line"] for row in flagged}
    assert kept == [
        text for number, text in enumerate(lines, 1) if text and number not in taken and number not in rejects
    ]
    assert [row["rank"] for row in flagged] == list(range(1, len(flagged) + 1))
    assert len(flagged) == summary.flagged > 0
    for row in flagged:
        assert row["chat"] == json.loads(lines[row["line"] - 1])
        assert any(row["scores"][one.trait] > one.threshold for one in summary.traits)
        assert row["reason"]
    assert summary.chats == 16
    assert summary.rejects == 3
    rows = ScreeningFolder(tmp_path / "out").rows("data")
    scores = [row.scores["evil"] for row in rows if row.scores is not None]
    evil = summary.traits[0]
    assert evil.mean == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert evil.low < evil.mean < evil.high
    assert (evil.correlation is None) == (method == "exact")


def test_interrupted_anywhere_and_run_again_gives_the_same_files(loaded, files, tmp_path, monkeypatch):
    run(loaded, files, tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").rglob("*.json*")}
    score = data_screening.score_shard
    for stop_at in range(6):  # two shards of the reference, then four
        calls = []

        def interrupted(*args, stop_at=stop_at, calls=calls):
            if len(calls) == stop_at:
                raise OSError("no space left on device")
            calls.append(1)
            return score(*args)

        folder = tmp_path / f"part-{stop_at}"
        monkeypatch.setattr(data_screening, "score_shard", interrupted)
        with pytest.raises(OSError, match="no space"):
            run(loaded, files, folder)
        monkeypatch.setattr(data_screening, "score_shard", score)
        done = {path: path.stat().st_mtime_ns for path in (folder / "shards").glob("*")}
        assert len(done) == stop_at
        run(loaded, files, folder)
        assert {path.name: path.read_bytes() for path in folder.rglob("*.json*")} == whole
        assert all(path.stat().st_mtime_ns == before for path, before in done.items()), "a finished shard was redone"


class CountedFile:
    """A chat file that counts its readings."""

    def __init__(self, path):
        self._file = open_chat_file(path)
        self.path, self.suffix = self._file.path, self._file.suffix
        self.readings = 0

    def __len__(self):
        return len(self._file)

    def rows(self, *wanted):
        self.readings += 1
        return self._file.rows(*wanted)

    def content(self, position):
        return self._file.content(position)

    def copy(self, positions, path):
        self._file.copy(positions, path)


OPENED = Counter()
"""Files opened by this process, by path; an audit hook cannot be removed, so that one serves all tests."""
sys.addaudithook(lambda event, args: OPENED.update([str(args[0])]) if event == "open" else None)


@pytest.mark.parametrize(("method", "scored_parts"), [("exact", 1), ("approximate", 2)])
def test_rows_and_shards_are_read_no_oftener_than_needed(method, scored_parts, loaded, files, tmp_path):
    folder = tmp_path / "out"
    settings = ScreeningSettings(method, reference=str(files[1]), **{**QUICK, "max_length": 150})
    data = CountedFile(files[0])
    OPENED.clear()
    screening = Screening.plan(data, settings, folder)
    assert data.readings == 1
    assert OPENED[str(files[0])] == 2  # for the rows, and for the hash
    summary = screen(loaded, screening, [make_vector(), make_vector("other", layer=2, seed=2)])
    assert data.readings == 1 + scored_parts
    # For the rows of each part, the text of each flagged chat, and the filtered copy; never again for a hash.
    assert OPENED[str(files[0])] == 2 + scored_parts + summary.flagged + 1
    shards = {path.name: OPENED[str(path)] for path in (folder / "shards").iterdir()}
    assert len(shards) > 5
    for name, readings in shards.items():
        assert readings == (2 if name.startswith("data") else 1), name


def test_thresholds_leave_the_stated_share_of_the_reference(loaded, files, tmp_path):
    for rate in (0.0, 0.2, 0.5):
        summary = run(loaded, (files[1], files[1]), tmp_path / str(rate), false_positive_rate=rate)
        assert all(one.flagged <= rate * 10 for one in summary.traits)
        assert all(one.flagged >= rate * 10 - 1 for one in summary.traits)


def test_mistakes_are_told_by_name(loaded, files, tmp_path):
    with pytest.raises(InputError, match=r"2 of 19 rows cannot be used, more than most_rejected \(10%\)"):
        run(loaded, files, tmp_path / "strict", most_rejected=0.1)
    assert [row["line"] for row in jsonl(tmp_path / "strict" / "rejects.jsonl")] == [4, 8]
    with pytest.raises(InputError, match=r"3 of 19 rows cannot be used, more than most_rejected \(13%\)"):
        run(loaded, files, tmp_path / "strict-2", most_rejected=0.13)
    assert [row["line"] for row in jsonl(tmp_path / "strict-2" / "rejects.jsonl")] == [4, 8, 16]
    run(loaded, files, tmp_path / "out")
    with pytest.raises(InputError, match="holds a screening of other settings"):
        run(loaded, files, tmp_path / "out", max_new_tokens=5)
    finished = (tmp_path / "out" / "rejects.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a screening of other data, data_sha256, settings; choose another"):
        Screening.plan(files[1], ScreeningSettings(), tmp_path / "out")
    assert (tmp_path / "out" / "rejects.jsonl").read_bytes() == finished
    empty = tmp_path / "empty.jsonl"
    empty.write_text("{}\n{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="none of 2 rows can be used"):
        run(loaded, (empty, files[1]), tmp_path / "empty")
    for wrong, named in (({"method": "guess"}, "method is 'guess'"), ({"batch_size": 0}, "batch_size is 0"),
                         ({"most_rejected": 2}, "most_rejected is 2"), ({"checked": -1}, "checked is -1")):  # fmt: skip
        with pytest.raises(InputError, match=named):
            ScreeningSettings(**wrong)


def test_a_subset_is_drawn_at_random_and_its_interval_holds_the_whole(loaded, files, tmp_path):
    whole = run(loaded, files, tmp_path / "whole")
    inside = 0
    for seed in range(10):
        part = run(loaded, files, tmp_path / str(seed), subset=12, seed=seed)
        assert (part.rows, part.drawn) == (whole.rows, 12)
        assert not (tmp_path / str(seed) / "filtered.jsonl").exists()
        inside += part.traits[0].low <= whole.traits[0].mean <= part.traits[0].high
    assert inside >= 7  # of 10, 9.5 are expected; fewer than 7 have a chance of 1 in 1,000
    assert len({(tmp_path / str(seed) / "summary.json").read_bytes() for seed in range(10)}) > 5


def test_long_rows_are_cut_or_rejected_and_counted(loaded, files, tmp_path):
    lengths = [len(encode_chat(Chat(tuple(chat["messages"])), loaded.tokenizer).input_ids) for chat in CHATS]
    limit = sorted(lengths)[10]
    over = sum(length > limit for index, length in enumerate(lengths) if index not in (3, 7, 12, 15))
    cut = run(loaded, files, tmp_path / "cut", max_length=limit, max_new_tokens=2)
    assert cut.truncated == over > 0
    rejected = run(loaded, files, tmp_path / "rejected", max_length=limit, long_rows="reject", most_rejected=1)
    assert (rejected.truncated, rejected.rejects) == (0, cut.rejects + over)
    reasons = [row["problem"] for row in jsonl(tmp_path / "rejected" / "rejects.jsonl")]
    assert sum(f"more than max_length={limit} tokens" in reason for reason in reasons) == over
    with pytest.raises(InputError, match="do not fit into the 256 of tiny"):
        run(loaded, files, tmp_path / "context", max_length=300)


@pytest.fixture
def app(tokenizer, files, tmp_path):
    """A command line of the app on a tiny model."""
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    make_vector().save(tmp_path / "evil.safetensors")
    return [
        "model=folder", f"model.path={tmp_path / 'model'}", "trait=[]", f"vectors=[{tmp_path / 'evil.safetensors'}]",
        f"data.path={files[0]}", "data.max_length=150", f"out={tmp_path / 'out'}", "screening.most_rejected=0.5",
        f"screening.reference={files[1]}", "screening.max_new_tokens=4", "screening.shard_rows=2",
        "trainer.accelerator=cpu",
    ]  # fmt: skip


def results(folder):
    """All that a screening wrote, but for its loggers."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json*")}
    return {path: content for path, content in found.items() if path.parts[0] not in ("wandb", "csv")}


def start(folder, app, *more):
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_SERVICE")}
    return start_command(
        "screen", folder, *app, "logger=csv", *more, environment={**variables, "WANDB_MODE": "offline"},
        streams=(Path(os.devnull), folder / "printed.txt", folder / "printed.txt"),
    )  # fmt: skip


def test_killed_at_any_moment_and_run_again(app, tmp_path):
    folder = tmp_path / "out"
    process = start(tmp_path, app)
    seen = set()
    while process.is_alive():  # killed with another number of shards done each time
        done = len(list((folder / "shards").glob("*.jsonl")))
        if done not in seen and done >= 2 + 4 * len(seen):
            seen.add(done)
            process.kill()
            process.join()
            process = start(tmp_path, app)
        time.sleep(0.002)
    assert process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    assert len(seen) >= 2
    killed = results(folder)
    whole = start(tmp_path, [*app, f"out={tmp_path / 'whole'}"])
    whole.join()
    assert whole.exitcode == 0
    assert killed == results(tmp_path / "whole")
    lines = [row.line for row in ScreeningFolder(folder).rows("data")]
    assert len(lines) == len(set(lines)) == 19


def test_two_processes_screen_what_one_screens(app, tmp_path):
    one = run_command("screen", tmp_path, *app, f"out={tmp_path / 'one'}", "logger=csv")
    # From a file: Lightning starts the second process by the command that started the first.
    script = tmp_path / "persona-screen"
    script.write_text("from persona_callbacks.apps.screen import main\nmain()\n")
    command = [sys.executable, script, *app, f"out={tmp_path / 'two'}", "logger=csv", "trainer.devices=2"]
    two = subprocess.run([*command, "trainer.strategy=ddp"], capture_output=True, text=True, timeout=300, check=False)
    for found in (one, two):
        assert found.returncode == 0, found.stderr
        assert found.stdout.count("16 chats screened") == 1
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_wandb_has_values_table_and_artifact(app, files, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        summary = run_app(compose("screen", [*app, "logger.wandb.offline=true"]))
    (file,) = map(written, (tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb"))
    logged = read_offline_run(file)
    (values,) = (row for row in logged.history if "screening/evil/threshold" in row)
    assert values["screening/evil/threshold"] == pytest.approx(summary.traits[0].threshold)
    assert values["screening/evil/flagged"] == pytest.approx(summary.traits[0].flagged / summary.chats)
    table = logged.tables["screening/flagged"]
    assert [row["rank"] for row in table] == list(range(1, summary.flagged + 1))
    assert [row["line"] for row in table] == [row["line"] for row in jsonl(tmp_path / "out" / "flagged.jsonl")]
    records = list(offline_records(file))
    (run, *_) = (record.run for record in records if record.HasField("run"))
    assert (run.display_name, run.job_type, run.run_group) == ("screening · data", "screen", "screening")
    artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
    assert artifacts["data-data"].use_after_commit
    summary_files = {entry.path for entry in artifacts["screening-data"].manifest.contents}
    assert summary_files == {"summary.json", "settings.json"}, "what a training refers to holds no chats"
    assert {entry.path for entry in artifacts["screening-data-chats"].manifest.contents} >= {"flagged.jsonl"}


def test_the_app_screens_a_file_with_vectors_from_files(app, tmp_path, capsys):
    overrides = [*app, "logger=csv", "screening.method=approximate", "screening.checked=4"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        summary = run_app(compose("screen", overrides))
    assert summary.chats == 16
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rejects"] == 3
    said = capsys.readouterr().out
    assert "16 chats screened (approximate), 0 of them cut, 3 rows rejected" in " ".join(said.split())
    with (
        pytest.raises(InputError, match="no trait to screen for"),
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        run_app(compose("screen", ["trait=[]"]))
    with (
        pytest.raises(InputError, match=r"trainer: .*devices"),
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        run_app(compose("screen", [*app, f"out={tmp_path / 'other'}", "trainer.devices=0"]))
    with pytest.raises(InputError, match="no such chat file"), initialize_config_dir(str(CONF), version_base="1.3"):
        run_app(compose("screen", ["data.path=nowhere.jsonl"]))


def test_a_folder_named_like_markup_is_printed_as_it_is(app, tmp_path, capsys):
    folder = tmp_path / "a[" / "b]"  # rich would take [/b] for the end of a style
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run_app(compose("screen", [*app, f"out='{folder}'", "logger=csv", "screening.method=approximate"]))
    assert f"Flagged chats, the rest, and the rejects: {folder}" in capsys.readouterr().out
