"""Prints the table of README.md from kills.csv.

python experiments/faults/table_of_kills.py
"""

import csv
from collections import Counter
from pathlib import Path


def main() -> None:
    """For each command: attempts, kills by kind, ends that are equal, scratch left behind."""
    with Path(__file__).with_name("kills.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    header = (
        "command",
        "attempts",
        "kills",
        "by the clock",
        "at a file",
        "at a checkpoint",
        "equal ends",
        "scratch left",
    )
    print("|", " | ".join(header), "|")
    print("|---" * len(header) + "|")
    for command in (*dict.fromkeys(row["command"] for row in rows), "all"):
        mine = [row for row in rows if command in (row["command"], "all")]
        kinds = Counter(strike.partition(":")[0] for row in mine for strike in row["strikes"].split())
        equal = sum(row["equal"] == "True" and row["code"] == "0" for row in mine)
        left = sum(row["left_over"] != "0" for row in mine)
        counts = (kinds.total(), kinds["moment"], kinds["change"], kinds["checkpoint"])
        print("|", " | ".join(map(str, (command, len(mine), *counts, f"{equal} of {len(mine)}", left))), "|")


if __name__ == "__main__":
    main()
