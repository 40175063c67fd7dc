#!/usr/bin/env python
"""Pre-train a model: everything from upstream files to evaluation. The same command resumes after any crash.

python jobs/full_pretrain.py
ray job submit --working-dir . -- jobs/full_pretrain.py base_4m_paper
python jobs/full_pretrain.py sample --dry-run
python jobs/full_pretrain.py base_4m_paper --estimate
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    driver.add_run_arguments(parser, experiment_is_optional=True)
    text, code = driver.run_as_job(driver.run_experiment_or_sample, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
