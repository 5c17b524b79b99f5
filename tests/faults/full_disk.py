"""Runs the commands on disks that are too small, gives them space, and compares the end with an undisturbed run's.

    sudo python tests/faults/full_disk.py OUT.csv --attempts 8

Each disk is a tmpfs, which only root can mount. Each attempt is a row of OUT.csv: how much of what an undisturbed run
writes fitted, how the command ended on the full disk and what it said last, and whether the run after that ended as the
undisturbed one.
"""

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.harness import end_of, finish, left_over, make_attempts, make_folder, output, start

COLUMNS = ("command", "attempt", "kilobytes", "fitted", "code", "last line", "scratch left", "code with space", "equal")


def size_of(folder: Path) -> int:
    """Bytes on a disk with pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096 for path in folder.rglob("*"))


def attempt(command: str, number: int, share: float, inputs: Path, scratch: Path) -> dict[str, object]:
    """Run once where a share of what the command writes fits, and once more with space."""
    whole = make_folder(inputs, scratch / "whole")
    code = finish(start(command, whole, temporary=scratch / "tmp"))
    if code:
        raise RuntimeError(f"persona-{command} ended with {code} undisturbed:\n{output(whole)[-3000:]}")
    expected, written = end_of(whole), size_of(whole) - size_of(inputs)
    shutil.rmtree(whole)
    disk = scratch / "disk"
    disk.mkdir()
    size = size_of(inputs) + int(share * written) + 16384
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    try:
        folder = make_folder(inputs, disk / "run")
        full = finish(start(command, folder, temporary=scratch / "tmp"))
        said, left = output(folder).strip().splitlines() or [""], len(left_over(folder))
        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
        code = finish(start(command, folder, temporary=scratch / "tmp"))
        if code:
            print(output(folder)[-3000:], file=sys.stderr)
        return {
            "command": command, "attempt": number, "kilobytes": written // 1024, "fitted": f"{share:.2f}", "code": full,
            "last line": said[-1][:160], "scratch left": left, "code with space": code,
            "equal": end_of(folder) == expected,
        }  # fmt: skip
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


def main() -> None:
    """Make the attempts that the table does not have yet."""

    def prepare(_, inputs, scratch, attempts):
        return lambda command, number: attempt(command, number, (number + 0.5) / attempts, inputs, scratch)

    make_attempts(__doc__, COLUMNS, 8, prepare)


if __name__ == "__main__":
    main()
