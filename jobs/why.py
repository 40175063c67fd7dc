"""Say what happened to a row at every stage, with values and thresholds.

python jobs/why.py sample http://sample.invalid/laion/0003.jpg
python jobs/why.py sample coco:397133
"""

import argparse
import sys

from pipelines import driver


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="name of a file in pipelines/experiments, or the path of a YAML file")
    parser.add_argument("row", help="a key, an address as it stands in the annotation file, or <source>:<row>")
    parser.add_argument("--store", help="where the artifacts are, instead of where the experiment says")
    text, code = driver.run_as_job(driver.explain_row, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
