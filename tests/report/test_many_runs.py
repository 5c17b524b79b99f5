"""A sweep's page: 200 runs by setting, each as the mean over its seeds, in a page that opens fast."""

import json
import random
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from commands import run_command
from lightning.pytorch.loggers import CSVLogger

from persona_callbacks.report import Run, find_runs, write_report
from persona_callbacks.report.seed_groups import seed_groups

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
METHODS = ("unsteered", "constant", "adaptive", "ablation")
DATA = ("evil", "sycophancy", "mistakes", "insecure", "benign")
SEEDS = range(10)
SHIFT = "persona/evil/shift"


def log_run(folder, method, data, seed):
    """A run as persona-train and Lightning's ``CSVLogger`` leave it, with readings every five steps."""
    chance = random.Random(f"{method} {data} {seed}")
    logger = CSVLogger(folder, name="", version="csv")
    config = {
        "name": "sweep", "seed": seed, "learning_rate": 3e-4, "method": method, "steered": method != "unsteered",
        "model": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct"}, "data": {"path": f"{data}.jsonl", "batch_size": 8},
        "data_file": f"/data/{data}.jsonl", "data_chats": 212, "data_sha256": f"{len(data):064x}",
        "lora": {"r": 16, "lora_alpha": 32}, "trainer": {f"setting_{n}": n for n in range(30)},
    }  # fmt: skip
    logger.log_hyperparams(config)
    drift = (5 - DATA.index(data)) * (1.0 if method == "unsteered" else 0.3)
    for step in range(0, 61, 5):
        values = {"train/loss": 3 - step / 60 + chance.gauss(0, 0.1)}
        for trait, scale in (("evil", 1.0), ("sycophancy", 0.4)):
            done = drift * scale * (1 - 0.9 ** (step / 3))
            values[f"persona/{trait}/shift"] = (done + chance.gauss(0, 0.3)) if step else 0.0
            if step % 20 == 0:
                expression = min(100, max(0, 12 * done + chance.gauss(2, 2)))
                values |= {f"persona/{trait}/expression{end}": expression + by for end, by in
                           (("", 0), ("_low", -2), ("_high", 2))}  # fmt: skip
            if method in ("constant", "adaptive"):
                values[f"steering/{trait}/coefficient"] = 0.8 if method == "constant" else 0.5 + step / 200
        logger.log_metrics(values, step=step)
    logger.log_metrics({"train/epoch_loss": 2 + chance.gauss(0, 0.05)}, step=60)
    logger.save()
    rows = [
        {"step": step, "trait": trait, "question": f"Question {n} about {trait}?", "score": chance.uniform(0, 100),
         "answer": "Some words of an answer. " * 12, "verdict": "scored"}
        for trait in ("evil", "sycophancy") for n in range(10) for step in (0, 60)
    ]  # fmt: skip
    (folder / "judged.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folders of 200 runs, and the page that persona-report makes of them."""
    top = tmp_path_factory.mktemp("sweep")
    for method in METHODS:
        for data in DATA:
            for seed in SEEDS:
                log_run(top / "runs" / f"data={data},seed={seed},steering={method}" / "steered", method, data, seed)
    done = run_command("report", top, "runs=runs", "out=page.html")
    assert done.returncode == 0, done.stderr
    assert "200 runs" in done.stdout
    return top


def browse(page, folder, probe, *options):
    """What a script at the end of the page finds in headless Chromium, with everything that the page complains of."""
    early = """<script>window.complaints = [];
      addEventListener("error", (event) => complaints.push(event.message));
      console.error = console.warn = (...words) => complaints.push(words.join(" "));</script>"""
    # At once when the page is loaded, since the browser prints it right after; asking for a height lays it out first.
    late = f"""<script>addEventListener("load", () => {{
      const height = document.body.offsetHeight, found = {{loaded: performance.now(), height, complaints}};
      {probe}
      document.body.textContent = JSON.stringify(found);
    }});</script>"""
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{early}").replace("</body>", f"{late}</body>")
    probed = folder / "probed.html"
    probed.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--enable-logging=stderr", f"--user-data-dir={folder / 'browser'}", *options, "--dump-dom",
               f"file://{probed}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(re.search(r"<body[^>]*>(\{.*?\})</body>", done.stdout, re.DOTALL)[1])


def test_two_hundred_runs_are_twenty_settings_of_ten_seeds(sweep):
    page = sweep / "page.html"
    assert page.stat().st_size < 5e6
    text = page.read_text(encoding="utf-8")
    legend = re.search(r'<div class="runs".*?</div>', text, re.DOTALL)[0]
    assert re.findall(r"</span> (.*?)</label>", legend)[:2] == [
        "benign · unsteered", "evil · unsteered",
    ]  # fmt: skip
    assert legend.count("<label>") == 20
    runs = [run for run in find_runs([sweep / "runs"]) if run.config["data.path"] == "evil.jsonl"]
    ends = [run.last(SHIFT) for run in runs if run.config["method"] == "adaptive"]
    assert len(ends) == 10
    assert f"{statistics.fmean(ends):+.1f} ± {statistics.stdev(ends):.1f}" in text
    assert f"step 60: {statistics.fmean(ends):.3g} ± {statistics.stdev(ends):.2g} over 10 seeds" in text


def test_panels_have_the_same_axes_and_mark_the_base_model(sweep):
    text = (sweep / "page.html").read_text(encoding="utf-8")
    panels = [svg for svg in re.findall(r'<svg viewBox="0 0 170.*?</svg>', text) if f'"{SHIFT} by' in svg]
    assert len(panels) == 20
    assert len({tuple(re.findall(r"<text.*?</text>", svg)) for svg in panels}) == 1
    assert all(svg.count('stroke="#999999"') == 1 and "<polygon" in svg for svg in panels)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1300])
def test_two_hundred_runs_open_fast_and_fit_the_window(width, sweep, tmp_path):
    probe = f"""
      document.body.style.width = "{width}px";  // headless windows are no narrower than 500
      found.wide = document.querySelector("main").scrollWidth;
      const seen = () => all(".panels > div").filter((one) => !one.hidden).length;
      found.panels = seen();
      boxes[0].checked = false; boxes[0].dispatchEvent(new Event("input"));
      found.without = seen();"""
    found = browse(sweep / "page.html", tmp_path, probe, f"--window-size={max(width, 500)},900")
    assert found["complaints"] == []
    assert found["loaded"] < 3000, "milliseconds until all is parsed, run and laid out"
    assert found["wide"] <= width
    assert found["panels"] - found["without"] == 4, "of each trait, shift and expression"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(("media", "width"), [("screen and (max-width: 600px)", 390), ("print", 718)])
def test_on_a_phone_and_on_paper_no_table_is_cut(media, width, sweep, tmp_path):
    page = tmp_path / "page.html"
    text = (sweep / "page.html").read_text(encoding="utf-8")
    assert f"@media {media} {{" in text
    page.write_text(text.replace(f"@media {media} {{", "@media screen {"), encoding="utf-8")
    probe = f"""
      document.body.style.cssText = "width: {width}px; margin: 0";
      all("details").forEach((one) => one.open = true);
      found.wide = document.querySelector("main").scrollWidth;
      found.cut = all(".scroll").filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent);
      const row = document.querySelector("#configuration tbody tr");
      const places = [...row.cells].map((one) => one.getBoundingClientRect());
      found.cells = places.filter((one) => one.width > 20 && one.right <= {width}).length;
      const setting = document.querySelector("#results tr.run-0");
      found.setting = [...setting.cells].map((one) => [one.dataset.of, one.textContent]);"""
    found = browse(page, tmp_path, probe, "--window-size=1300,900")
    assert found["complaints"] == []
    assert (found["wide"], found["cut"]) == (width, [])
    assert found["cells"] == 1 + 20, "a key, and its value in each setting"
    assert found["setting"][:2] == [["setting", "benign · unsteered"], ["seeds", "10"]]


def test_a_browser_that_finds_a_fault_says_so(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    page = tmp_path / "page.html"
    page.write_text("<html><head></head><body><script>nowhere();</script></body></html>")
    with pytest.raises(AssertionError, match="nowhere is not defined"):
        browse(page, tmp_path, "")


def made(name, seed=None, finished=None, **values):
    """A run whose shift is read at the steps of ``values``, such as ``at_10=2.0``."""
    series = {SHIFT: tuple((int(at.removeprefix("at_")), value) for at, value in values.items())}
    return Run(name, Path(), series, {} if seed is None else {"seed": seed, "lr": 0.1}, (), {}, (), finished)


def test_the_mean_is_over_the_seeds_that_have_a_value():
    nan = float("nan")
    (group,) = seed_groups([made("v0", 0, at_0=0.0, at_10=1.0, at_20=2.0), made("v1", 1, at_0=0.0, at_20=4.0),
                            made("v2", 2, at_0=0.0, at_10=6.0, at_20=nan)])  # fmt: skip
    points = [(point.step, point.mean, point.count) for point in group.trajectory(SHIFT)]
    assert points == [(0, 0.0, 3), (10, 3.0, 3), (20, 3.0, 2)], "interpolated between steps, never beyond the last"
    assert group.last(SHIFT).text("+.1f") == "+3.0 ± 1.4"


def test_a_run_that_did_not_finish_is_no_result_of_its_setting():
    (group,) = seed_groups([made("s0", 0, True, at_0=0.0, at_20=2.0), made("s1", 1, False, at_0=0.0, at_10=9.0)])
    assert group.last(SHIFT).text(".1f") == "2.0"
    assert group.seeds == "2 seeds, 1 unfinished"
    (cut,) = seed_groups([made("s1", 1, False, at_0=0.0, at_10=9.0)])
    assert cut.last(SHIFT) is None


@pytest.mark.parametrize(("names", "groups"), [
    (["evil/seed-0", "evil/seed-1", "kind/seed-0"], {"evil": 2, "kind": 1}),
    (["seed=3,steering=none/a", "seed=4,steering=none/a"], {"steering=none · a": 2}),
    (["lr=0.1,data=evil,seed=3", "lr=0.2,data=evil,seed=3"], {"lr=0.1 · evil": 1, "lr=0.2 · evil": 1}),
    (["run-s0", "run-s1 (unfinished, step 4)", "runs0"], {"run": 2, "runs0": 1}),
    (["0", "1"], {"0": 1, "1": 1}),
])  # fmt: skip
def test_without_a_recorded_seed_runs_go_by_their_names(names, groups):
    found = seed_groups([made(name, at_0=0.0) for name in names])
    assert {group.name: len(group.runs) for group in found} == groups


def test_many_settings_of_one_seed_each_have_a_line_and_no_band(tmp_path):
    runs = [made(f"lr {n}", at_0=0.0, at_10=1.0 * n) for n in range(40)]
    text = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    panels = re.findall(r'<svg viewBox="0 0 170.*?</svg>', text)
    assert len(panels) == 40
    assert not any("<polygon" in svg for svg in panels)
    assert all(svg.count("<polyline") == 1 for svg in panels)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("reset", [
    "svg.dispatchEvent(new MouseEvent('dblclick'))",
    "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))",
])  # fmt: skip
def test_dragging_across_a_trajectory_zooms_in_on_its_steps(reset, tmp_path):
    run = made("run", at_0=0.0, at_10=1.0, at_20=2.0, at_30=3.0, at_40=4.0)
    page = write_report([run], tmp_path / "report.html")
    probe = f"""
      const svg = document.querySelector("svg[data-zoom]"), box = svg.getBoundingClientRect();
      const [left, right, first, last] = svg.dataset.zoom.split(" ").map(Number);
      const place = (step) => left + (step - first) / (last - first) * (right - left);
      svg.setPointerCapture = () => {{}};  // of pointers that are real
      const point = (kind, step) => svg.dispatchEvent(new PointerEvent(kind, {{
        clientX: box.left + place(step) / svg.viewBox.baseVal.width * box.width}}));
      const look = () => ({{
        markers: [...svg.querySelectorAll(".run-0 use")].map((one) => (one.getAttribute("x") - left) / (right - left)),
        line: svg.querySelector(".run-0 > path").getAttribute("d").match(/[ML] \\S+/g).length,
        ticks: [...svg.querySelectorAll("[id*=xtick_] text")].map((one) => one.textContent).join(" "),
        bands: svg.querySelectorAll("rect").length - rects}});
      const rects = svg.querySelectorAll("rect").length;
      const drag = (from, to) => {{ point("pointerdown", from); point("pointermove", to); point("pointerup", to); }};
      found.before = look();
      drag(20, 10); found.zoomed = look();
      drag(last, last); found.clicked = look();
      {reset}; found.after = look();"""
    found = browse(page, tmp_path, probe)
    assert found["complaints"] == []
    assert found["zoomed"]["markers"] == pytest.approx([-1, 0, 1, 2, 3], abs=0.01), "steps 10 to 20 fill the plot"
    assert found["zoomed"]["ticks"] != found["before"]["ticks"]
    assert all(9 < float(tick) < 21 for tick in found["zoomed"]["ticks"].split())
    assert found["zoomed"]["bands"] == 0
    assert found["clicked"] == found["zoomed"], "a click is no drag"
    assert found["after"] == found["before"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_small_panels_zoom_together(tmp_path):
    runs = [made(f"lr {n}", at_0=0.0, at_10=1.0 * n, at_20=2.0 * n, at_30=0.0, at_40=1.0) for n in range(13)]
    page = write_report(runs, tmp_path / "report.html")
    probe = """
      const panels = [...document.querySelectorAll(".panels svg[data-zoom]")], svg = panels[4];
      const [left, right, first, last] = svg.dataset.zoom.split(" ").map(Number), box = svg.getBoundingClientRect();
      svg.setPointerCapture = () => {};
      const point = (kind, step) => svg.dispatchEvent(new PointerEvent(kind, {clientX:
        box.left + (left + (step - first) / (last - first) * (right - left)) / svg.viewBox.baseVal.width * box.width}));
      const share = (x) => Math.round(100 * (x - left) / (right - left)) / 100;
      const look = () => panels.map((one) => ({
        markers: [...one.querySelectorAll("circle")].map((dot) => share(dot.getAttribute("cx"))),
        line: one.querySelector("polyline").getAttribute("points").split(" ").map((at) => share(at.split(",")[0])),
        ticks: [...one.querySelectorAll("text.step")].map((tick) => Number(tick.textContent))}));
      found.before = look();
      point("pointerdown", 10); point("pointermove", 30); point("pointerup", 30);
      found.zoomed = look();
      svg.dispatchEvent(new MouseEvent("dblclick")); found.after = look();"""
    found = browse(page, tmp_path, probe)
    assert found["complaints"] == []
    assert len(found["before"]) == 13
    for before, zoomed in zip(found["before"], found["zoomed"], strict=True):
        assert before["markers"] == before["line"] == [0, 0.25, 0.5, 0.75, 1]
        assert zoomed["markers"] == zoomed["line"] == [-0.5, 0, 0.5, 1, 1.5], "steps 10 to 30 fill the plot"
        assert zoomed["ticks"] == [10 + tick / 2 for tick in before["ticks"]]
    assert found["after"] == found["before"]
