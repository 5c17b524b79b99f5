"""Collect finished quickstart runs of several seeds into a CSV, and print the table of this folder's README.

persona-train -m experiment=quickstart seed=0,1,2
python experiments/quickstart/summarise.py outputs/quickstart
"""

import csv
import statistics
import sys
from pathlib import Path

from persona_callbacks.files import atomic_write
from persona_callbacks.training import RunResult

HERE = Path(__file__).parent
COLUMNS = ("seed", "run", "coefficient", "loss", "evil_shift", "percent_of_unsteered")


def rows(root: Path) -> list[dict[str, str | float]]:
    """One row a fine-tuning of each finished seed below ``root``."""
    collected: list[dict[str, str | float]] = []
    for study in sorted(root.glob("**/seed*/trajectories.png")):
        if "earlier" in study.parts:
            continue
        unsteered, steered = (RunResult.load(study.parent / name / "result.json") for name in ("unsteered", "steered"))
        reference = unsteered.final_shift["evil"]
        for run in (unsteered, steered):
            shift = run.final_shift["evil"]
            collected.append(
                {
                    "seed": study.parent.name.split("=")[-1].split("-")[-1],
                    "run": run.name,
                    "coefficient": run.coefficients.get("evil", 0.0),
                    "loss": round(run.loss, 4),
                    "evil_shift": round(shift, 2),
                    "percent_of_unsteered": round(100 * shift / reference, 1),
                }
            )
    return collected


def main() -> None:
    """Write ``results.csv`` and print a Markdown table with mean and standard deviation over seeds."""
    collected = rows(Path(sys.argv[1]))
    if not collected:
        sys.exit(f"{sys.argv[1]}: no finished quickstart run below it")
    with atomic_write(HERE / "results.csv") as scratch, scratch.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(collected)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in collected:
        print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |")
    for name in ("unsteered", "steered"):
        runs = [row for row in collected if row["run"] == name]
        spread = []
        for column in ("loss", "evil_shift", "percent_of_unsteered"):
            values = [float(row[column]) for row in runs]
            spread.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
        print(f"| mean ± sd | {name} | {runs[0]['coefficient']} | " + " | ".join(spread) + " |")


if __name__ == "__main__":
    main()
