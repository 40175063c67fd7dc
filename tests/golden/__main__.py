"""Runs every golden case under a folder: `python -m tests.golden FOLDER`.

One line per case with every array's largest difference and its tolerance. Exits 1 if one is exceeded, 3 if the folder
holds no case. Kinds that are not supported yet are named and do not count.
"""

import sys
from pathlib import Path

from tests.golden.runner import Outcome, run_folder


def main(arguments: list[str]) -> int:
    """The exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write("usage: python -m tests.golden FOLDER   (a folder of golden cases)\n")
        return 3
    outcomes = []
    for outcome in run_folder(Path(arguments[0])):
        sys.stdout.write(outcome.line() + "\n")
        sys.stdout.flush()
        outcomes.append(outcome)
    if not outcomes:
        sys.stderr.write(f"{arguments[0]}: no golden cases below this folder\n")
        return 3
    sys.stdout.write(_summary(outcomes) + "\n")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _summary(outcomes: list[Outcome]) -> str:
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    waiting = [outcome.name for outcome in outcomes if not outcome.is_supported]
    text = f"{len(outcomes) - len(failed) - len(waiting)} of {len(outcomes)} cases within their tolerances"
    if waiting:
        text += f"; not supported yet: {', '.join(waiting)}"
    return text + (f"; FAILED: {', '.join(failed)}" if failed else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
