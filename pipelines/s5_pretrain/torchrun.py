"""A pre-training on processes that torchrun starts, where there is no Ray.

    torchrun --nproc-per-node 8 -m pipelines.s5_pretrain.torchrun STATE/job.json

`job.json` is what the pretrain stage leaves in its state folder. Checkpoints and metrics go there too, so runs under
Ray and under torchrun go on from each other. Exit codes: 0 done, 75 stopped by SIGTERM with its state saved.
"""

import json
import logging
import os
import sys

import fsspec
import torch
import torch.distributed as dist

from pipelines.s5_pretrain.worker import train_worker
from x2vlm.train.stopping import EXIT_STOPPED, TrainingStopped

log = logging.getLogger(__name__)


def main(job_uri: str) -> int:
    """Train the job in this process; its place among the others is in the environment."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    with fsspec.open(job_uri, "rb") as stream:
        job = json.load(stream)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train_worker(job)
    except TrainingStopped as stopped:
        log.warning("stopped step=%d", stopped.step)
        return EXIT_STOPPED
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
