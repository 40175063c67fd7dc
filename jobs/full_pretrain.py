#!/usr/bin/env python
"""Pre-train a model: everything from upstream files to evaluation. The same command resumes after any crash.

python jobs/full_pretrain.py
ray job submit --working-dir . -- jobs/full_pretrain.py base_4m_paper
python jobs/full_pretrain.py sample --dry-run
python jobs/full_pretrain.py base_4m_paper --estimate
"""

import argparse
import sys

from pipelines import driver


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    driver.add_run_arguments(parser, experiment_is_optional=True)
    text, code = driver.run_as_job(driver.run_experiment_or_sample, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
