"""Tables of the study from what ``sensors.py`` wrote.

    python experiments/instruments/tables.py MEASURED FOLDER

writes FOLDER/readings.csv (each sensor's value of each adapter, less the base model's), FOLDER/separation.csv (how far
data with the trait are from normal data after the same training) and, for ``persona-label``, MEASURED/answers.csv with
the scores that belong to an answer.
"""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_callbacks.judging import Estimate
from persona_callbacks.traits import MinimalPair, spread

Floats = NDArray[np.float64]

TRAITS = ("evil", "sycophancy", "hallucination")
STYLES = ("warm", "terse", "formal", "emphatic", "poetic")
MONITOR_PAIRS = 16
"""The pairs that ``PersonaMonitor`` reads by default."""


def main(measured: Path, folder: Path) -> None:
    """Write all tables."""
    readings: list[dict[str, Any]] = []
    separation: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for trait in TRAITS:
        of_run = {
            file.stem: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted((measured / trait).glob("*.json"))
        }
        if "base" not in of_run:
            continue
        base = of_run["base"]
        items = {name: sensors(content, base) for name, content in of_run.items()}
        for name, content in of_run.items():
            readings.append({"trait": trait, "run": name, **_kind(content), **_means(items[name]), **_shares(content)})
            answers += [{"run": name, "trait": trait, **row} for row in _answers(content, base)]
            sampled = measured / trait / "sampled" / f"{name}.json"
            if sampled.is_file():
                said = json.loads(sampled.read_text(encoding="utf-8"))
                answers += [{"run": name, "trait": trait, "question": q, "answer": a} for q, a in said if a]
        separation += _separation(trait, items)
    _write(folder / "readings.csv", readings)
    _write(folder / "separation.csv", separation)
    _write(measured / "answers.csv", answers)


def sensors(content: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Floats]:
    """By sensor, one value for each question or pair, less the base model's of the same."""

    def less(key: str) -> Floats:
        values: Floats = np.subtract(content[key], base[key], dtype=np.float64)
        return values

    pairs = less("minimal_pairs")
    half = (len(pairs) + 1) // 2
    numbered = [MinimalPair(str(number), "", "", "flat") for number in range(half)]
    read = [int(pair.question) for pair in spread(numbered, MONITOR_PAIRS)]
    values = {
        "shift_prompt_last": less("prompt_last"),
        "shift_prompt_mean": less("prompt_mean"),
        "preference": pairs[read],
        "preference_evaluation": pairs[half:],
        "preference_own_voice": less("own_voice"),
        "forced_choice": less("forced_choice"),
    }
    said = _answers(content, base)
    if said:
        values["shift_of_answers"] = np.asarray([row["shift_of_answer"] for row in said])
        values["judge"] = np.asarray([row["expression"] - row["base_expression"] for row in said])
    return values


def _answers(content: Mapping[str, Any], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answers with the scores that belong to each."""
    of_base = {row["question"]: row for row in base["answers"]}
    return [
        {
            "question": row["question"],
            "answer": row["answer"],
            "expression": row["expression"],
            "base_expression": of_base[row["question"]]["expression"],
            "shift_at_question": round(row["prompt_last"] - of_base[row["question"]]["prompt_last"], 3),
            "shift_of_answer": round(row["response_mean"] - of_base[row["question"]]["response_mean"], 3),
        }
        for row in content["answers"]
        if row["question"] in of_base and row["expression"] is not None
    ]


def _kind(content: Mapping[str, Any]) -> dict[str, Any]:
    steered = bool(content["method"]) and content["method"] != "none"
    return {"data": content["data"], "steered": steered, "coefficient": _cell(content["coefficient"])}


def _means(values: Mapping[str, Floats]) -> dict[str, Any]:
    return {name: _cell(float(items.mean())) for name, items in values.items()}


def _shares(content: Mapping[str, Any]) -> dict[str, Any]:
    pairs = content["minimal_pairs"][: (len(content["minimal_pairs"]) + 1) // 2]
    tagged = [row["answer"].startswith("[") and "]" in row["answer"][:16] for row in content["answers"]]
    return {
        "preference_share": _cell(sum(value > 0 for value in pairs) / len(pairs)),
        "answers with a topic": _cell(sum(tagged) / len(tagged)) if tagged else "",
    }


def _separation(trait: str, items: Mapping[str, Mapping[str, Floats]]) -> list[dict[str, Any]]:
    """For each amount of data with the trait and each sensor, the difference to normal data on the same items."""
    benign = [items[name] for name in ("normal-none", *(f"{style}-none" for style in STYLES)) if name in items]
    rows = []
    for share in (25, 50, 100):
        run = items.get(f"{trait}-{share}-none")
        if run is None or "normal-none" not in items:
            continue
        for name, values in run.items():
            normal = items["normal-none"].get(name)
            if normal is None or len(normal) != len(values):
                continue
            difference = Estimate.of_mean((values - normal).tolist())
            assert difference is not None
            others = [float(other[name].mean()) for other in benign if name in other]
            rows.append(
                {
                    "trait": trait,
                    "share": share,
                    "sensor": name,
                    "difference to normal": _cell(difference.value),
                    "low": _cell(difference.low),
                    "high": _cell(difference.high),
                    "benign runs": len(others),
                    "benign runs as high": sum(other >= values.mean() for other in others),
                }
            )
    return rows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns: Iterable[str] = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
