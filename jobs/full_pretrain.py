"""Pre-train a model: everything from upstream files to evaluation. The same command resumes after any crash.

ray job submit --working-dir . -- python jobs/full_pretrain.py base_4m_paper
python jobs/full_pretrain.py sample --dry-run
python jobs/full_pretrain.py base_4m_paper --estimate
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    driver.add_run_arguments(parser)

    text, code = driver.run_as_job(driver.run_experiment, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
