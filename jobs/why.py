#!/usr/bin/env python
"""Say what happened to a row at every stage, or what other thresholds would keep. Runs nothing.

python jobs/why.py sample http://sample.invalid/bad/crop_300x223.jpg
python jobs/why.py sample coco:401416
python jobs/why.py sample download/coco
python jobs/why.py sample --what-if min_clip_score=0.28 --what-if min_short_edge=256
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    parser.add_argument("experiment", help="name of a file below pipelines/experiments, or the path of a YAML file")
    parser.add_argument("row", nargs="?", help="a key, an address as in the annotation file, <source>:<row>, or a node")
    parser.add_argument("--what-if", action="append", default=[], help="<field>=<value> of the filter or the scores")
    parser.add_argument("--store", help="where the artifacts are, instead of where the experiment says")

    text, code = driver.run_as_job(driver.explain_row, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
