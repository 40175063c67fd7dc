#!/usr/bin/env python
"""Fine-tune a model on a task and measure it; the same command goes on after any crash.

python jobs/finetune.py runs/model --task classification --data runs/train.csv --val runs/val.csv --test runs/test.csv
python jobs/finetune.py runs/model --task vqa --data my.jsonl --preset vqa2_base --epochs 3
python jobs/finetune.py runs/model.th --vocabulary vocab.txt --task retrieval --data my.csv --media-root photos
python jobs/finetune.py base_4m_paper --task vqa
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser


def main() -> int:
    parser = JobParser(__doc__)
    parser.add_argument("model", help="a model's folder, a checkpoint file of the reference, or an experiment")
    driver.add_finetune_arguments(parser)
    text, code = driver.run_as_job(driver.finetune_model, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
