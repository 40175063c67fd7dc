"""Pre-training on processes started by torchrun, without Ray.

    torchrun --nproc-per-node 8 -m pipelines.s5_pretrain.torchrun STATE/job.json

The pretrain stage writes `job.json` to its state folder. Checkpoints and metrics are written there too, so a run can
continue under Ray or torchrun. Exit codes: 0 done, 1 failed, 3 wrong use, 75 stopped by SIGTERM with its
state saved.
"""

import json
import logging
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipelines.s5_pretrain.worker import train_worker
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError, X2VLMError
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.config import TrainRuntime
from x2vlm.train.stopping import EXIT_STOPPED, TrainingStopped

log = logging.getLogger(__name__)


USAGE = "torchrun --nproc-per-node 8 -m pipelines.s5_pretrain.torchrun STATE/job.json"
EXIT_FAILED, EXIT_USAGE = 1, 3


def main(arguments: list[str]) -> int:
    """Train the job in this process; its rank is in the environment."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        job = read_job(arguments)
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_USAGE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    runtime = parse_config(TrainRuntime, job.get("runtime", {}), "pretrain job: runtime")
    timeout = timedelta(seconds=runtime.collective_seconds)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
    try:
        train_worker(job)
    except TrainingStopped as stopped:
        log.warning("stopped step=%d", stopped.step)
        return EXIT_STOPPED
    except X2VLMError as error:
        log.error("%s: %s", type(error).__name__, error)
        return EXIT_FAILED
    finally:
        dist.destroy_process_group()
    return 0


def read_job(arguments: list[str]) -> dict[str, Any]:
    """The job that the only argument names. ConfigError if it is missing or damaged, or without torchrun."""
    if len(arguments) != 1:
        raise ConfigError(f"one argument is wanted, the job of a run: {USAGE}")
    if "RANK" not in os.environ:
        raise ConfigError(f"this process was not started by torchrun: {USAGE}")
    (uri,) = arguments
    try:
        folder, _, name = uri.rpartition("/")
        content = StoreFiles(folder or ".").read(name)
        if content is None:
            raise FileNotFoundError(uri)
        job = json.loads(content)
    except FileNotFoundError:
        raise ConfigError(
            f"{uri}: no such file. A run leaves job.json in its state folder (<store>/state/pretrain/<fingerprint>) "
            "when it begins to train; start it once with jobs/full_pretrain.py"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{uri}: not the job of a run ({error}); start the run again, which writes it anew") from None
    if not isinstance(job, dict) or not {"config", "shards", "vocabulary", "state_uri", "facts"} <= job.keys():
        raise ConfigError(f"{uri}: not the job of a run; start the run again, which writes it anew")
    return job


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
