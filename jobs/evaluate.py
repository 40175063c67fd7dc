#!/usr/bin/env python
"""Evaluate an experiment's model on some of its tasks; pre-training must be finished.

python jobs/evaluate.py sample --tasks retrieval,grounding
"""

import sys
from argparse import Namespace

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    driver.add_run_arguments(parser)
    parser.add_argument("--tasks", required=True, help="names under `evaluate:` of the experiment, separated by commas")
    parser.add_argument("--force", action="store_true", help="evaluate again even if nothing changed")

    def evaluate(options: Namespace) -> driver.Outcome:
        return driver.run_experiment(options, [f"evaluate/{name}" for name in options.tasks.split(",")], options.force)

    text, code = driver.run_as_job(evaluate, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
