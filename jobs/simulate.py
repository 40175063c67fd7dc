#!/usr/bin/env python
"""Say what a run of so many rows costs its driver and its store, by driving the engine with made-up parts.

python jobs/simulate.py base_1b_paper --rows 1300000000 --sizes 250,500,1000,2000
python jobs/simulate.py sample --rows 1000000 --parts 100 --out runs/simulation.json
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    driver.add_simulate_arguments(parser)
    text, code = driver.run_as_job(driver.simulate_experiment, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
