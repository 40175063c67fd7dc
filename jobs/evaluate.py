#!/usr/bin/env python
"""Evaluate a model: an experiment's on some of its tasks (pre-training must be finished), or any on files you name.

python jobs/evaluate.py sample --tasks retrieval,grounding
python jobs/evaluate.py sample --table markdown
python jobs/evaluate.py --model runs/model --task retrieval --data runs/test.csv --media-root photos
python jobs/evaluate.py --model runs/model --task vqa --card downstream/vqav2 --data-root /data --media-root /coco
"""

import sys
from argparse import Namespace

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    driver.add_run_arguments(parser, experiment_is_optional=True)
    driver.add_evaluate_arguments(parser)

    def evaluate(options: Namespace) -> driver.Outcome:
        if options.model:
            return driver.evaluate_model(options)
        if options.experiment and options.table and not options.tasks:
            return driver.compare_evaluations(options)
        if not options.tasks or not options.experiment or options.table:
            parser.error("give an experiment with its --tasks or --table, or a --model with --task and --data")
        return driver.run_experiment(options, [f"evaluate/{name}" for name in options.tasks.split(",")], options.force)

    text, code = driver.run_as_job(evaluate, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
