#!/usr/bin/env python
"""Look at data of your own and write a card and an experiment for them: then one more command trains a model.

python jobs/new_source.py my.csv
python jobs/new_source.py my.tsv --url 1 --caption 0 --name my_photos
python jobs/new_source.py folder-with-photos-and-captions
python jobs/new_source.py 'what-img2dataset-wrote/*.tar'
"""

import argparse
import sys

from pipelines import driver
from pipelines.new_source.arguments import add_arguments
from x2vlm.command_line import EXIT_OK, JobParser


def main() -> int:
    parser = JobParser(__doc__)
    add_arguments(parser)
    text, code = driver.run_as_job(_new_source, parser)
    print(text)
    return code


def _new_source(options: argparse.Namespace) -> driver.Outcome:
    from pipelines.new_source.command import new_source  # so late that `--help` does not wait for it

    return driver.Outcome(EXIT_OK, *new_source(options))


if __name__ == "__main__":
    sys.exit(main())
