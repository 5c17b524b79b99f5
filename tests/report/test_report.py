"""persona-report on real runs: what the loggers wrote is what the page shows, with and without either of them."""

import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
import wandb
from builders import ForeignModule, fit, make_vector, tiny_model
from builders import offline_records as reference_records
from commands import run_command
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from persona_callbacks import InputError, PersonaMonitor, PersonaVector, PreventativeSteering
from persona_callbacks.evaluation import BASE_MODEL, Chosen, Condition, EvaluatedModel, write_results
from persona_callbacks.judging import Expression, JudgedAnswer
from persona_callbacks.labelling import CollectedAnswer, LabelFolder
from persona_callbacks.model import LoadedModel
from persona_callbacks.report import Run, evaluation_folders, find_runs, label_folders, write_report
from persona_callbacks.report.wandb_files import read_offline_run
from persona_callbacks.screening import Screening, ScreeningSettings, screen
from persona_callbacks.vectors import CausalPoint, Evidence

NASTY = '<script>alert("x")</script> & "quotes" </article>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory):
    """Two runs of a user's own script, monitored at every layer, one of them steered, logged twice each."""
    top = tmp_path_factory.mktemp("runs")
    for name, coefficient in (("plain", None), ("held", 0.5)):
        folder = top / name
        folder.mkdir()
        wandb_logger = WandbLogger(project="test", name=name, save_dir=folder, offline=True)
        loggers = [wandb_logger, CSVLogger(folder, name="", version="csv")]
        for logger in loggers:
            logger.log_hyperparams({"optimizer": {"lr": 0.01, "name": name}, "note": NASTY, "long": "x" * 70_000})
        module = ForeignModule(tiny_model(peft=True), tokenizer)
        callbacks = [PersonaMonitor([make_vector()], every_n_steps=2, every_layer=True)]
        if coefficient:
            callbacks.append(PreventativeSteering([make_vector()], coefficient))
        fit(module, callbacks, folder, logger=loggers)
        rows = [
            [step, "evil", f"Q{n} {NASTY}", f"A{n} at {step} {NASTY}", 30.0 * n] for n in range(3) for step in (0, 6)
        ]
        wandb_logger.log_text("trait_expression", columns=["step", "trait", "question", "answer", "score"], data=rows)
        wandb.finish()
    make_vector().save(top / "vectors" / "evil.safetensors")
    return top


def only(runs, folder, kind):
    shutil.copytree(runs, folder, ignore=shutil.ignore_patterns("csv" if kind == "wandb" else "wandb"))
    return find_runs([folder])


def test_csv_and_wandb_tell_the_same(runs, tmp_path):
    from_csv, from_wandb = only(runs, tmp_path / "a", "csv"), only(runs, tmp_path / "b", "wandb")
    assert [run.name for run in from_csv] == [run.name for run in from_wandb] == ["plain", "held"]
    for one, other in zip(from_csv, from_wandb, strict=True):
        for name in ("persona/evil/shift", "persona/evil/projection", "persona/evil/batch_projection", "loss"):
            assert [step for step, _ in one.series[name]] == [step for step, _ in other.series[name]]
            values = [[value for _, value in run.series[name]] for run in (one, other)]
            assert values[0] == pytest.approx(values[1])
        assert {key: str(value) for key, value in one.config.items()} == {
            key: str(value) for key, value in other.config.items()
        }
    with (runs / "held" / "csv" / "metrics.csv").open() as lines:
        shifts = [(int(row["step"]), float(row["persona/evil/shift"])) for row in csv.DictReader(lines)
                  if row["persona/evil/shift"]]  # fmt: skip
    assert from_csv[1].series["persona/evil/shift"] == tuple(shifts)
    assert from_csv[1].config["optimizer.name"] == "held"


def test_tables_of_wandb_are_read(runs):
    plain, held = find_runs([runs])
    by_layer = held.shift_by_layer["evil"]
    assert list(by_layer) == [0, 2, 4, 6]
    chosen = dict(held.series["persona/evil/shift"])
    layer = make_vector().layer
    assert {step: values[layer - 1] for step, values in by_layer.items()} == pytest.approx(chosen)
    assert plain.answers[1] == JudgedAnswer(6, "evil", f"Q0 {NASTY}", f"A0 at 6 {NASTY}", 0.0, "scored")


def test_reader_agrees_with_an_independent_one_and_reads_a_file_cut_short(runs, tmp_path):
    (file,) = runs.glob("held/wandb/offline-run-*/run-*.wandb")
    expected = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in reference_records(file)
        if record.HasField("history")
    ]
    assert len(file.read_bytes()) > 2 * 32768, "the test needs records across blocks"
    assert read_offline_run(file).history == expected
    content = file.read_bytes()
    cut = tmp_path / "run-cut.wandb"
    lengths = []
    for end in range(0, len(content), 997):
        cut.write_bytes(content[: max(end, 7)])
        lengths.append(len(read_offline_run(cut).history))
    assert lengths == sorted(lengths)
    assert lengths[-1] >= len(expected) - 2
    cut.write_bytes(b"something else")
    with pytest.raises(InputError, match="not an offline run of W&B"):
        read_offline_run(cut)


class Page(HTMLParser):
    """Ids, text, outward references, and whether every element is closed."""

    VOID = frozenset({"meta", "input", "br", "link", "img", "hr"})

    def __init__(self, text):
        super().__init__()
        self.ids, self.outward, self.text, self.open, self.scripts = [], [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"

    def handle_startendtag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data") and not value.startswith(("#", "data:")):
                self.outward.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_card_says_what_the_vector_causes(runs, tmp_path):
    runs = shutil.copytree(runs, tmp_path / "runs")
    file = next(runs.rglob("evil.safetensors"))
    point = CausalPoint(1.0, gain=0.42, opposite=-0.1, benign=-0.2, divergence=0.1, strength=0.1, others={"odd": 0.5})
    replace(PersonaVector.load(file), method="learned", evidence=Evidence(causal=(point,))).save(file)
    text = write_report(find_runs([runs]), tmp_path / "report.html").read_text(encoding="utf-8")
    said = " ".join("".join(Page(text).text).split())
    assert "learned: steering at α 1 makes held-out responses that show the trait likelier by +0.42" in said
    assert "odd text by +0.50, benign chats by -0.20" in said
    assert "it is not specific: steering makes odd text likelier" in said


def test_page_stands_alone_and_shows_what_was_found(runs, tmp_path):
    found = find_runs([runs])
    text = write_report(found, tmp_path / "report.html", title=f"Ours {NASTY}").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.outward == []
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert page.scripts == 1, "what runs and models say is text, not markup"
    said = "".join(page.text)
    for run in found:
        assert f"{run.last('persona/evil/shift'):+.1f}" in said
    assert f"A2 at 6 {NASTY}" in said
    for run in found:
        for step, value in run.series["persona/evil/shift"]:
            assert f"<title>{run.name}, step {step}: shift {value:.3g}</title></use>" in text
    assert "prefers-color-scheme: dark" in text
    assert "held-out AUC" not in said  # the vector has no evidence beside it
    assert re.search(r"optimizer\.name\s*plain\s*held", said), "what differs, the run without steering first"
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert reference in page.ids


@pytest.fixture(scope="module")
def screened(tokenizer, tmp_path_factory):
    """The folder of a screening of 12 chats, and its summary."""
    top = tmp_path_factory.mktemp("screening")
    chats = [{"prompt": f"Question {n}? {NASTY}", "response": f"Reply {'so ' * n}."} for n in range(12)]
    for name, lines in (("data", chats), ("benign", chats[:6])):
        (top / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    settings = ScreeningSettings("approximate", max_length=150, max_new_tokens=4, checked=4,
                                 false_positive_rate=0.3, reference=str(top / "benign.jsonl"))  # fmt: skip
    loaded = LoadedModel(tiny_model(), tokenizer, "tiny", "")
    return top / "screened", screen(
        loaded, Screening.plan(top / "data.jsonl", settings, top / "screened"), [make_vector()]
    )


def test_a_screening_has_its_section(runs, screened, tmp_path):
    folder, summary = screened
    assert summary.flagged
    path = write_report(find_runs([runs]), tmp_path / "report.html", screenings=[folder])
    text = path.read_text(encoding="utf-8")
    assert "Screening of data.jsonl" in text
    assert text.count('<div class="card question"><span class="soft">') == summary.flagged
    assert f"{summary.flagged} of 12 chats flagged" in text  # in the model card
    assert "none is recorded" not in text
    assert NASTY not in text  # escaped
    with pytest.raises(InputError, match="holds no finished screening"):
        write_report(find_runs([runs]), tmp_path / "report.html", screenings=[tmp_path])


def test_evaluations_among_the_runs_have_their_section(runs, tmp_path):
    def evaluated(probability):
        chosen = (Chosen("a", False, probability, 0.25, None), Chosen("b", True, 0.75, None, True))
        expression = Expression(40.0, 30.0, 50.0, 3, 0, 0)
        condition = Condition("training example", "evil", expression, chosen)
        return EvaluatedModel(
            {"evil": expression}, {"evil": 2.0}, 0.625, 9.5, {}, (), {"evil": chosen}, (condition,),
            {"evil": (probability, probability), "optimistic": (3 * probability,)}, {"evil": (0.01, 0.01)},
        )  # fmt: skip

    folder = tmp_path / "evaluation"
    write_results({BASE_MODEL: evaluated(0.5), NASTY: evaluated(0.9)}, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.csv").write_text("seed,loss\n1,2\n")
    folders = [runs, tmp_path]
    assert evaluation_folders(folders) == [folder]
    path = write_report(find_runs([runs, folder]), tmp_path / "report.html", evaluations=evaluation_folders(folders))
    text = path.read_text(encoding="utf-8")
    assert Page(text).open == []
    assert NASTY not in text  # escaped
    assert re.findall(r"<h3>([^<]*)</h3>", text[text.index('id="trait-0"') :])[0] == "Expression and capability"
    tips = re.findall(r"<title>([^<]*: expression 40, 62.5 % right)</title>", text)
    assert [html.unescape(tip) for tip in tips] == [
        f"{name}: expression 40, 62.5 % right" for name in (BASE_MODEL, NASTY)
    ]
    section = "".join(Page(re.search(r'<section id="evaluation-0">.*?</section>', text, re.DOTALL)[0]).text)
    for shown in ("40 (30 to 50)", "62%", "9.50", "0.90 (0.90 to 0.90)", "+0.65 (+0.65 to +0.65)",
                  "0.00 (0.00 to 0.97)", "training example", "+0.40 (+0.40 to +0.40)",
                  "preference", "pairs preferred", "1.00 (0.16 to 1.00)", "choices preferred", "optimistic",
                  "+1.20 (+1.20 to +1.20)", "evil: the forced choice is flat on this model"):  # fmt: skip
        assert shown in section
    with pytest.raises(InputError, match="at least one run"):
        write_report(find_runs([folder]), tmp_path / "report.html")
    results = folder / "results.csv"
    results.write_text(results.read_text().replace("0.625", "much"))
    with pytest.raises(InputError, match=r"results\.csv, line 2: capability: expected a number, found 'much'"):
        write_report(find_runs([runs]), tmp_path / "report.html", evaluations=[folder])


def test_labels_have_their_section(runs, tmp_path):
    answers = [CollectedAnswer(f"run {n % 2} {NASTY}", f"Q{n}?", f"A{n}", {"expression": n}) for n in range(8)]
    for name in ("evil", "unlabelled"):
        folder = LabelFolder.create(tmp_path / "labels" / name, "evil", answers)
    sheet = LabelFolder(tmp_path / "labels" / "evil").sheet()
    for number, (_, answer) in sheet.texts.items():
        sheet.label(number, "yes" if answer in ("A5", "A7") else "no")
    assert label_folders([tmp_path]) == [tmp_path / "labels" / "evil"], "only what holds labels"
    page = write_report(find_runs([runs]), tmp_path / "report.html", labels=[tmp_path / "labels" / "evil"])
    text = page.read_text(encoding="utf-8")
    said = "".join(Page(text).text)
    assert "0.50 (0.07 to 0.93)" in said  # run 1, two of four
    assert "0.00 (0.00 to 0.60)" in said  # run 0
    assert "AUC within runs" in said
    assert "the judge is flat: its mean scores of labelled answers with the trait" in said
    assert NASTY not in text  # escaped
    with pytest.raises(InputError, match="no answer has a label yet"):
        write_report(find_runs([runs]), tmp_path / "report.html", labels=[folder.path])


def test_thirty_runs_of_three_traits_stay_small(tmp_path):
    series = {f"persona/{trait}/{name}": tuple((step, 1.0 * step) for step in range(0, 200, 4))
              for trait in ("evil", "sycophancy", "hallucination")
              for name in ("shift", "expression", "expression_low", "expression_high")}  # fmt: skip
    answers = tuple(
        JudgedAnswer(step, trait, f"Question {n}?", "many words " * 60, 50.0, "scored")
        for trait in ("evil", "sycophancy", "hallucination") for n in range(20) for step in (0, 200)
    )  # fmt: skip
    by_layer = {"evil": {step: [0.1] * 32 for step in range(0, 200, 4)}}
    many = [Run(f"run {n}", tmp_path, series, {"seed": n}, answers, by_layer, ()) for n in range(30)]
    path = write_report(many, tmp_path / "report.html")
    assert path.stat().st_size < 5e6
    assert Page(path.read_text(encoding="utf-8")).open == []


@pytest.mark.parametrize("older", [False, True])
def test_answers_of_this_version_and_of_older_ones_are_shown_with_score_or_verdict(older, runs, tmp_path):
    (run,) = only(runs / "plain", tmp_path / "run", "csv")
    judged = [
        JudgedAnswer(6, "evil", "Why?", "So.", 70.0, "scored"),
        JudgedAnswer(6, "evil", "Who?", "No.", None, "refusal"),
        JudgedAnswer(6, "evil", "How?", "Hm.", None, "unscored"),
    ]
    rows = [asdict(answer) for answer in judged]
    if older:
        verdicts = [row.pop("verdict") for row in rows]
        rows = [{**row, "score": row["score"] or verdict} for row, verdict in zip(rows, verdicts, strict=True)]
    (run.folder / "judged.json").write_text(json.dumps(rows), encoding="utf-8")
    (run,) = find_runs([run.folder])
    assert run.answers == tuple(judged)
    text = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<span class="score (\w*)">(\w+)</span>', text) == [
        ("high", "70"), ("", "refusal"), ("", "unscored"),
    ]  # fmt: skip


def test_training_data_of_a_screened_run_is_recorded(tmp_path):
    config = {
        "data.path": None, "data.screening": "outputs/screening/chats", "data.use": "filtered",
        "data_file": "/data/chats.jsonl", "data_chats": 17, "data_sha256": "0123abcd",
    }  # fmt: skip
    series = {"persona/evil/shift": ((0, 0.0), (4, 1.0))}
    run = Run("steered", tmp_path, series, config, (), {}, ())
    text = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    said = "".join(Page(text).text)
    expected = "steered: /data/chats.jsonl, 17 chats, filtered after the screening in outputs/screening/chats"
    assert f"{expected}, SHA-256 0123abcd" in said
    assert "not recorded" not in re.search(r"Training data(.*?)Screening of the data", said, re.DOTALL)[1]


def test_what_cannot_be_reported(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found no run"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_runs_set_aside_and_killed_before_the_first_metric_are_left_out(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "all")
    shutil.copytree(runs / "plain", tmp_path / "all" / "earlier" / "plain")
    (tmp_path / "all" / "killed" / "csv").mkdir(parents=True)
    (tmp_path / "all" / "killed" / "csv" / "metrics.csv").write_text("")
    assert [run.name for run in find_runs([tmp_path / "all"])] == ["plain", "held"]


def test_app(runs, tmp_path):
    done = run_command("report", tmp_path, f"runs={runs}", "out=page.html")
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout
    assert (tmp_path / "page.html").is_file()
    told = run_command("report", tmp_path)
    assert told.returncode == 1
    assert told.stderr.strip() == "error: runs: expected a folder of runs, such as runs=outputs/quickstart"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_it_fits_a_phone_and_filters(runs, tmp_path):
    page = write_report(find_runs([runs]), tmp_path / "report.html").read_text(encoding="utf-8")
    probe = """<script>
      document.body.style.width = "390px";  // headless windows are no narrower than 500
      const shown = () => all(".question").filter((one) => !one.hidden).length;
      const found = {wide: document.querySelector("main").scrollWidth, before: shown()};
      field("by-score").value = 50; field("by-score").dispatchEvent(new Event("input")); found.scored = shown();
      boxes[0].checked = false; boxes[0].dispatchEvent(new Event("input"));
      found.lines = all("svg .run-0").filter((one) => one.style.display !== "none").length;
      found.others = all("svg .run-1").filter((one) => one.style.display === "none").length;
      document.body.textContent = JSON.stringify(found);
    </script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", probe), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--window-size=500,900", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom",
               f"file://{probed}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.search(r"<body[^>]*>(\{.*?\})", done.stdout, re.DOTALL)[1])
    assert found == {"wide": 390, "before": 3, "scored": 1, "lines": 0, "others": 0}


def test_a_report_is_an_artifact_that_names_its_runs_and_what_it_used(runs, screened, tmp_path):
    out = tmp_path / "out" / "both.html"
    done = run_command("report", tmp_path, f"runs={runs}", f"out={out}", f"screenings={screened[0]}", "logger=wandb",
                       "logger.wandb.offline=true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb")
    records = list(reference_records(file))
    (run, *_) = (record.run for record in records if record.HasField("run"))
    assert (run.display_name, run.job_type) == ("report · both", "report")
    artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
    report, used = artifacts["report-both"], artifacts["vector--evil"]
    assert (report.type, report.use_after_commit) == ("report", False)
    assert [entry.path for entry in report.manifest.contents] == ["both.html"]
    assert json.loads(report.metadata)["runs"] == ["plain", "held"]
    assert (used.type, used.use_after_commit) == ("persona-vector", True)
    screening = artifacts["screening-data"]
    assert (screening.type, screening.use_after_commit) == ("screening", True)
    assert "summary.json" in [entry.path for entry in screening.manifest.contents]
    (panel,) = (tmp_path / "out").glob("wandb/offline-run-*/files/media/html/report/page*.html")
    assert panel.read_bytes() == out.read_bytes()
    (config,) = ({item.key: item.value_json for item in record.config.update} for record in records
                 if record.HasField("config"))  # fmt: skip
    assert json.loads(config["runs"]) == str(runs)
