"""Collecting answers, sheets that anyone may fill in, and what labels say, without Hydra."""

import csv
import io
import json
import math
from dataclasses import asdict

import pytest
from rich.console import Console

from persona_callbacks import InputError
from persona_callbacks.judging import JudgedAnswer, Ranking
from persona_callbacks.labelling import (
    CollectedAnswer,
    LabelFolder,
    ask_labels,
    cohens_kappa,
    collect_answers,
    joined_scores,
    label_calibration,
    label_results,
    proportion,
)

NASTY = '[/INST] [red]<b>\x1b[2J\u202e=SUM(A1)\n"quoted", ; \ud800'


def judged(step, question, answer, score=None, trait="evil"):
    return asdict(JudgedAnswer(step, trait, question, answer, score, "unscored" if score is None else "scored"))


@pytest.fixture
def study(tmp_path):
    """What persona-train leaves: two runs of one base model, and their sampled answers."""
    top = tmp_path / "study"
    for run, last in (("unsteered", "Ha!"), ("steered", "So.")):
        (top / run).mkdir(parents=True)
        rows = [judged(0, "Why?", "So.", 1.0), judged(5, "Why?", "Hm.", 9.0), judged(10, "Why?", last, 50.0),
                judged(0, "Who?", "Me.", trait="kind"), judged(10, "Who?", "I.", trait="kind")]  # fmt: skip
        (top / run / "judged.json").write_text(json.dumps(rows))
    sampled = [{"question": "Who?", "base model": "Me.", "unsteered": "You.", "steered": "Me."}]
    (top / "answers.json").write_text(json.dumps(sampled))
    return top


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def fill(path, label_of, delimiter=","):
    """Fill in a sheet as a spreadsheet would write it."""
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows({**row, "label": label_of(row)} for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())


def test_a_study_gives_its_last_answers_and_tells_what_it_leaves_out(study):
    sources = collect_answers([study], "evil")
    found = [(answer.run, answer.answer, answer.scores) for source in sources for answer in source.answers]
    assert found == [
        ("base model", "So.", {"expression": 1.0}),
        (str(study / "steered"), "So.", {"expression": 50.0}),
        (str(study / "unsteered"), "Ha!", {"expression": 50.0}),
    ]
    left_out = {source.file.parent.name + "/" + source.file.name: source.left_out for source in sources}
    assert left_out == {
        "steered/judged.json": {"about another trait": 2, "before the last step": 1},
        "unsteered/judged.json": {
            "about another trait": 2, "before the last step": 1, "of a run that another file holds as well": 1,
        },
        "study/answers.json": {"sampled answers of runs that have evaluated ones": 3},
    }  # fmt: skip


def test_sampled_answers_where_none_were_evaluated_and_set_aside_runs(study):
    (study / "earlier").mkdir()
    (study / "unsteered" / "judged.json").rename(study / "earlier" / "judged.json")
    (study / "steered" / "judged.json").unlink()
    found = [(answer.run, answer.answer) for source in collect_answers([study], "evil") for answer in source.answers]
    assert found == [("base model", "Me."), (str(study / "unsteered"), "You."), (str(study / "steered"), "Me.")]


def test_files_of_answers(tmp_path):
    evaluated = tmp_path / "answers.jsonl"
    rows = [{"model": "base model", "trait": "evil", "question": "Why?", "answer": f"So\u2028{NASTY}",
             "expression": 3.5},
            {"model": "adapter", "trait": "evil", "question": "Why?", "answer": "", "expression": None},
            {"model": "adapter", "trait": "evil", "question": "Why?", "answer": "Ha.", "wrapper": "keywords"},
            {"model": "adapter", "trait": "kind", "question": "Why?", "answer": "So."}]  # fmt: skip
    evaluated.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = write_csv(tmp_path / "mine.csv", [{"question": "Why?", "answer": "So.", "score": "40", "note": "x"}])
    base = write_csv(tmp_path / "more.csv", [{"run": "base model", "question": "Why?", "answer": "Else.", "score": ""}])
    sources = collect_answers([evaluated, table, base, evaluated], "evil")
    found = [(answer.run, answer.scores) for source in sources for answer in source.answers]
    assert found == [
        ("base model", {"expression": 3.5}), ("adapter", {}), ("adapter, keywords", {}),
        (str(table), {"expression": 40.0}),
        (f"base model ({base})", {}),
    ]  # fmt: skip
    assert sources[0].answers[0].answer.endswith("\ufffd"), "half a surrogate pair cannot be written"
    assert sources[0].left_out == {"about another trait": 1}


def test_what_cannot_be_collected(tmp_path, study):
    def fails(text, message, name="a.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            collect_answers([tmp_path / name], "evil")

    fails('{"question": "Why?", "answer": "So."}\n{"question": "Why?"}\n', "line 2: expected a text as question and")
    fails('{"question": "Why?", \n', "line 1: malformed JSON")
    fails('{"question": "Why?", "answer": "So.", "score": "much"}\n', "line 1: score: expected a number, found 'much'")
    fails("\n", "expected answers to label about 'evil', found none")
    fails('[{"step": 1}]', r"a\.json: expected answers of persona-train \(expected judged", "a.json")
    fails("x", "ends in .json, .jsonl or .csv", "a.txt")
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        collect_answers([tmp_path / "nowhere"], "evil")
    with pytest.raises(InputError, match=r"found none .*5 about another trait"):
        collect_answers([study / "steered" / "judged.json"], "gloomy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none of it"):
        collect_answers([tmp_path / "empty"], "evil")


def answers_of(count=12):
    """Three runs; the second and the third give some answers alike."""
    return [
        CollectedAnswer(run, f"Q{n}?", f"{run if n % 3 else 'both'} {n}", {"expression": float(n + 10 * k)})
        for k, run in enumerate(("base model", "unsteered", "steered"))
        for n in range(count)
    ]


def test_a_sheet_says_nothing_of_runs_and_holds_every_different_answer_once(tmp_path):
    answers = answers_of()
    folder = LabelFolder.create(tmp_path / "labels", "evil", answers, seed=1)
    rows = list(csv.DictReader((tmp_path / "labels" / "sheet.csv").open(encoding="utf-8-sig", newline="")))
    assert list(rows[0]) == ["id", "question", "answer", "label"]
    assert {(row["question"], row["answer"]) for row in rows} == {(a.question, a.answer) for a in answers}
    assert len(rows) == len({row["id"] for row in rows}) == 28
    assert all(row["id"].isalpha() for row in rows), "a spreadsheet reads 12e34 as a number"
    assert [row["answer"] for row in rows] != [answer.answer for answer in answers][: len(rows)]
    reordered = LabelFolder.create(tmp_path / "again", "evil", answers[::-1], seed=1)
    assert list(reordered.sheet().texts) == list(folder.sheet().texts), "the order does not tell how runs were given"
    assert list(LabelFolder(folder.path, seed=2).sheet().texts) != list(folder.sheet().texts)
    key = [json.loads(line) for line in (folder.path / "key.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [(row["run"], row["answer"]) for row in key] == [(a.run, a.answer) for a in answers]


def test_hostile_text_survives_the_sheet_and_is_no_formula(tmp_path):
    nasty = NASTY.replace("\ud800", "")
    answers = [CollectedAnswer("a", "=1+1", nasty), CollectedAnswer("a", "Why?", "-3 \r\n so\u2028")]
    folder = LabelFolder.create(tmp_path, "evil", answers)
    rows = {row["question"]: row["answer"] for row in
            csv.DictReader((tmp_path / "sheet.csv").open(encoding="utf-8-sig", newline=""))}  # fmt: skip
    assert rows == {"'=1+1": nasty, "Why?": "'-3 \r\n so\u2028"}
    fill(tmp_path / "sheet.csv", lambda row: "Y" if row["question"] == "Why?" else "0", delimiter=";")
    [sheet] = folder.sheets()
    assert sorted(sheet.labels.values()) == ["no", "yes"]
    output = io.StringIO()
    empty = LabelFolder.create(tmp_path / "other", "evil", answers).sheet()
    ask_labels(empty, "Evil?", Console(file=output, width=100), io.StringIO("y\ny\n"))
    assert "[/INST] [red]<b>\\x1b[2J\\u202e" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_labels_are_kept_at_once_and_go_on_after_an_interrupt(tmp_path):
    class Interrupted(io.StringIO):
        def readline(self, *_):
            line = super().readline()
            if not line:
                raise KeyboardInterrupt
            return line

    folder = LabelFolder.create(tmp_path, "evil", answers_of())
    console = Console(file=io.StringIO())
    order = list(folder.sheet().texts)
    assert not ask_labels(folder.sheet(), "Evil?", console, Interrupted("y\nwhat\nn\nb\nb\nu\ny\n"))
    assert folder.sheet().labels == {order[0]: "unsure", order[1]: "yes"}
    assert not ask_labels(folder.sheet(), "Evil?", console, io.StringIO("n\nq\n"))
    assert ask_labels(folder.sheet(), "Evil?", console, io.StringIO("n\n" * 25))
    assert [folder.sheet().labels[number] for number in order] == ["unsure", "yes", *["no"] * 26]


def test_more_runs_keep_the_labels_and_fewer_are_refused(tmp_path):
    answers = answers_of()
    folder = LabelFolder.create(tmp_path, "evil", answers[:24])
    fill(tmp_path / "sheet.csv", lambda row: "n")
    before = folder.sheet().labels
    more = LabelFolder.create(tmp_path, "evil", answers, seed=3)
    assert more.sheet().labels == before
    assert len(more.sheet().texts) > len(before)
    with pytest.raises(InputError, match="answers that have labels there are not among those of runs="):
        LabelFolder.create(tmp_path, "evil", answers[:12])
    with pytest.raises(InputError, match="labelled for 'evil'; expected trait=evil"):
        LabelFolder.create(tmp_path, "kind", answers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label\nzz,y\n", "line 2: the id 'zz' is not one of this labelling's"),
        ("id,label\n{id},perhaps\n", "line 2: label: expected yes, no or unsure, found 'perhaps'"),
        ("id,label\n{id},y\n{id},n\n", "line 3: .* labelled twice, yes and no"),
        ("number,label\n", "expected the columns id and label, found number, label"),
    ],
)
def test_sheets_that_cannot_be_read(content, message, tmp_path):
    folder = LabelFolder.create(tmp_path, "evil", answers_of())
    number = next(iter(folder.sheet().texts))
    (tmp_path / "sheet.anna.csv").write_text(content.replace("{id}", number))
    with pytest.raises(InputError, match=f"sheet.anna.csv.*{message}"):
        folder.sheets()
    with pytest.raises(InputError, match="reader: expected letters"):
        folder.sheet("../x")


def test_results_of_several_readers(tmp_path):
    """One answer of two runs is labelled once and counts in both; where readers differ, the majority counts."""
    answers = [
        CollectedAnswer("a", "Q1?", "same"), CollectedAnswer("b", "Q1?", "same"),
        CollectedAnswer("a", "Q2?", "x"), CollectedAnswer("b", "Q2?", "y"), CollectedAnswer("b", "Q3?", "z"),
    ]  # fmt: skip
    folder = LabelFolder.create(tmp_path, "evil", answers)
    said = {"anna": "yynu", "ben": "ynny", "cy": "nyn "}
    for reader, labels in said.items():
        sheet = folder.sheet(reader)
        sheet.write()
        by_answer = dict(zip(("same", "x", "y", "z"), labels, strict=True))
        fill(sheet.path, lambda row, by_answer=by_answer: by_answer[row["answer"]].strip())
    results = label_results(folder)
    assert results.readers == {"anna": 4, "ben": 4, "cy": 3}
    assert [(rate.run, rate.yes, rate.no, rate.unsure) for rate in results.rates] == [("a", 2, 0, 0), ("b", 2, 1, 0)]
    assert [(pair.readers, pair.answers, pair.unsure) for pair in results.agreements] == [
        (("anna", "ben"), 3, 1), (("anna", "cy"), 3, 0), (("ben", "cy"), 3, 0),
    ]  # fmt: skip
    assert results.agreements[0].agreement == pytest.approx(2 / 3)
    # anna yes yes no, ben yes no no: by chance (2·1 + 1·2) / 9.
    assert results.agreements[0].kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    results.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["run"], row["yes"], row["rate"]) for row in rows] == [("a", "2", "1.0000"), ("b", "2", "0.6667")]


def test_intervals_and_kappa_against_published_numbers():
    assert math.isnan(proportion(0, 0).value)
    none = proportion(0, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    some = proportion(4, 20)  # Clopper-Pearson of 4 of 20, in many tables: 5.73 % to 43.66 %
    assert (some.low, some.high) == (pytest.approx(0.0573, abs=1e-4), pytest.approx(0.4366, abs=1e-4))
    # Cohen's kappa of the textbook table 20 5 / 10 15: .4
    table = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohens_kappa(table) == pytest.approx(0.4)
    assert math.isnan(cohens_kappa([("no", "no")] * 5))


def test_a_score_that_only_tells_runs_apart_ranks_well_pooled_and_no_better_than_chance_within():
    runs, questions = ["a"] * 20 + ["b"] * 20, [f"Q{n}" for n in range(20)] * 2
    shows = [n < 2 for n in range(20)] + [n < 18 for n in range(20)]
    scores = [10.0] * 20 + [90.0] * 20
    ranking = Ranking.of(scores, shows, runs, questions)
    assert ranking.within.value == 0.5
    assert (ranking.runs_within, ranking.pairs_within) == (2, 2 * 18 + 18 * 2)
    assert ranking.between.value == pytest.approx(18 * 18 / (18 * 18 + 2 * 2))
    assert ranking.pooled.value > 0.85
    assert math.isnan(ranking.spearman.value), "two runs have no rank correlation"


def test_scores_are_joined_by_run_and_by_answer(tmp_path):
    answers = answers_of(3)
    by_run = write_csv(tmp_path / "results.csv", [
        {"model": "base model", "trait": "evil", "shift": "0"},
        {"model": "unsteered", "trait": "evil", "shift": "12.5"},
        {"model": "unsteered", "trait": "kind", "shift": "3"}, {"model": "steered", "trait": "evil", "shift": ""},
    ])  # fmt: skip
    by_answer = write_csv(tmp_path / "own.csv", [
        {"run": answer.run, "question": answer.question, "preference": n} for n, answer in enumerate(answers)
    ])  # fmt: skip
    joined = joined_scores(answers, {"shift": by_run, "preference": by_answer}, "evil")
    assert [answer.scores.get("shift") for answer in joined] == [0.0] * 3 + [12.5] * 3 + [None] * 3
    assert [answer.scores["preference"] for answer in joined] == list(range(9))
    with pytest.raises(InputError, match=r"scores\.drift: .*expected the columns run \(or model\) and drift, found"):
        joined_scores(answers, {"drift": by_run}, "evil")
    with pytest.raises(InputError, match="no row is about an answer here; expected the runs base model, unsteered"):
        joined_scores(answers, {"shift": by_run}, "gloomy")
    twice = write_csv(tmp_path / "twice.csv", [{"run": "steered", "shift": n} for n in range(2)])
    with pytest.raises(InputError, match=r"line 3: a second value, 1 after 0, for 'steered'"):
        joined_scores(answers, {"shift": twice}, "evil")


def test_labels_calibrate_the_judge_by_its_raw_scores_and_tell_a_flat_one(tmp_path):
    answers = [
        CollectedAnswer(f"run {n % 2}", f"Q{n // 2}?", f"A{n}", {"expression": 50.0 + n % 3}, raw=float(n % 3))
        for n in range(24)
    ]
    folder = LabelFolder.create(tmp_path, "evil", answers)
    assert LabelFolder(tmp_path).answers == tuple(answers), "the key holds the raw scores"
    fill(tmp_path / "sheet.csv", lambda row: "yes" if int(row["answer"][1:]) % 3 == 2 else "no")
    fitted = label_calibration(folder)
    assert (fitted.trait, fitted.answers, fitted.shows, fitted.calibration.auc) == ("evil", 24, 8, 1.0)
    [weakness] = label_results(folder).weaknesses
    assert "labelled answers with the trait and without it are 2 points apart" in weakness
    without = LabelFolder.create(tmp_path / "other", "evil", answers_of())
    without.sheet().label(next(iter(without.sheet().texts)), "yes")
    with pytest.raises(InputError, match="0 of 0 answers with a raw score"):
        label_calibration(without)
