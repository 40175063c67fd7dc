"""Evaluate an experiment's model on some of its tasks; pre-training must be finished.

python jobs/evaluate.py sample --tasks retrieval,grounding
"""

import sys

from pipelines.arguments import add_run_arguments
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    add_run_arguments(parser)
    parser.add_argument("--tasks", required=True, help="names under `evaluate:` of the experiment, separated by commas")
    parser.add_argument("--force", action="store_true", help="evaluate again even if nothing changed")
    options = parser.parse()
    from pipelines import driver  # imports half the project, which --help and a typing error need not wait for

    targets = [f"evaluate/{name}" for name in options.tasks.split(",")]
    text, code = driver.run_as_job(lambda options: driver.run_experiment(options, targets, options.force), options)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
