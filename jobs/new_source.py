#!/usr/bin/env python
"""Look at data of your own and write a card and an experiment for them: then one more command trains a model.

python jobs/new_source.py my.csv
python jobs/new_source.py my.tsv --url 1 --caption 0 --name my_photos
"""

import sys

from pipelines import driver
from pipelines.new_source.command import add_arguments, new_source
from x2vlm.command_line import EXIT_OK, JobParser


def main() -> int:
    parser = JobParser(__doc__)
    add_arguments(parser)
    text, code = driver.run_as_job(lambda options: driver.Outcome(EXIT_OK, *new_source(options)), parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
