"""Runs every golden case under a folder: `python -m tests.golden [FOLDER]`, by default the public ones.

One line per case with every array's largest difference and its tolerance. Exits 1 if one is exceeded, 2 if a case is of
a kind that has no check (they are named), 3 if the folder holds no case.
"""

import sys
from pathlib import Path

from tests.golden.runner import Outcome, run_folder

PUBLIC = Path(__file__).resolve().parent / "reference"


def main(arguments: list[str]) -> int:
    """The exit code."""
    folder = Path(arguments[0]) if arguments else PUBLIC
    if len(arguments) > 1 or not folder.is_dir():
        sys.stderr.write("usage: python -m tests.golden [FOLDER]   (a folder of golden cases)\n")
        return 3
    outcomes = []
    for outcome in run_folder(folder):
        sys.stdout.write(outcome.line() + "\n")
        sys.stdout.flush()
        outcomes.append(outcome)
    if not outcomes:
        sys.stderr.write(f"{folder}: no golden cases below this folder\n")
        return 3
    sys.stdout.write(_summary(outcomes) + "\n")
    if any(outcome.failed for outcome in outcomes):
        return 1
    return 2 if any(outcome.unsupported for outcome in outcomes) else 0


def _summary(outcomes: list[Outcome]) -> str:
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    waiting = [outcome.unsupported for outcome in outcomes if outcome.unsupported is not None]
    text = f"{len(outcomes) - len(failed) - len(waiting)} of {len(outcomes)} cases within their tolerances"
    if waiting:
        text += f"; kinds without a check: {', '.join(dict.fromkeys(waiting))}"
    return text + (f"; FAILED: {', '.join(failed)}" if failed else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
