"""Run some nodes of an experiment; what they read must be finished.

python jobs/run_stage.py sample --only 'score/*' --force
"""

import argparse
import sys

from pipelines import driver


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    driver.add_run_arguments(parser)
    parser.add_argument("--only", action="append", required=True, help="node key or glob; may be given several times")
    parser.add_argument("--force", action="store_true", help="run finished parts again")
    text, code = driver.run_as_job(lambda options: driver.run_experiment(options, options.only, options.force), parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
