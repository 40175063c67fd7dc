#!/usr/bin/env python
"""Run some nodes of an experiment; what they read must be finished.

python jobs/run_stage.py sample --only 'score/*' --force
python jobs/run_stage.py sample --only 'download/*' --retry dns,timeout,5xx
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    driver.add_run_arguments(parser)
    parser.add_argument("--only", action="append", required=True, help="node key or glob; may be given several times")
    parser.add_argument("--force", action="store_true", help="run finished parts again")
    parser.add_argument(
        "--retry", action="append", default=[], help="download again only what failed by dns, timeout, 5xx, ..."
    )

    text, code = driver.run_as_job(
        lambda options: driver.run_experiment(options, options.only, options.force, options.retry), parser
    )
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
