#!/usr/bin/env python
"""Collect an experiment's shards in a folder for other programs: WebDataset tars, Parquet, or X-VLM's JSON lines.

python jobs/export.py sample --format webdataset --out runs/tars
python jobs/export.py sample --format parquet --out runs/parquet
python jobs/export.py sample --format xvlm --out runs/lines
"""

import sys

from pipelines import driver
from pipelines.export import FORMATS
from x2vlm.command_line import JobParser, one_of


def main() -> int:
    parser = JobParser(__doc__)
    parser.add_argument("experiment", help="name of a file below pipelines/experiments, or the path of a YAML file")
    parser.add_argument("--format", required=True, type=one_of(FORMATS), help=f"what to write: {', '.join(FORMATS)}")
    parser.add_argument("--out", required=True, help="an empty folder, or one with the same export of the same shards")
    parser.add_argument("--copy", action="store_true", help="copy shards instead of linking them to the store's files")
    parser.add_argument("--store", help="where the artifacts are, instead of where the experiment says")

    text, code = driver.run_as_job(driver.export_experiment, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
