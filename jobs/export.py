"""Write an experiment's shards as the JSON lines that X-VLM's and X2-VLM's own loaders read.

python jobs/export_xvlm.py sample --out runs/export
"""

import argparse
import sys

from pipelines import driver


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="name of a file in pipelines/experiments, or the path of a YAML file")
    parser.add_argument("--out", required=True, help="an empty folder, or one with an export of the same shards")
    parser.add_argument("--store", help="where the artifacts are, instead of where the experiment says")
    text, code = driver.run_as_job(driver.export_experiment, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
