"""Pre-training on processes of one machine or several, without Ray.

    python -m pipelines.s5_pretrain.torchrun --nproc-per-node 8 STATE/job.json
    torchrun --nproc-per-node 8 -m pipelines.s5_pretrain.torchrun STATE/job.json

The pretrain stage writes `job.json` to its state folder. Checkpoints and metrics are written there too, so a run can
continue under Ray or torchrun. The first form takes all options of torchrun (`--nnodes`, `--rdzv-endpoint`, ...) and
ends with the exit code of the training: 0 done, 1 failed, 3 wrong use, 6 another driver trains this run now, 75
stopped by SIGTERM with its state saved, 76 a process hung. The second is torchrun's own program, which ends with 1
whenever a process did not end with 0; the codes above are then those of its processes, in its report.
"""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.s5_pretrain.worker import train_worker
from x2vlm.command_line import EXIT_FENCED
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError, LeaseLost, X2VLMError
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.config import TrainRuntime
from x2vlm.train.stopping import EXIT_STOPPED, TrainingStopped
from x2vlm.train.watchdog import EXIT_STALLED

log = logging.getLogger(__name__)


USAGE = "python -m pipelines.s5_pretrain.torchrun --nproc-per-node 8 STATE/job.json"
EXIT_FAILED, EXIT_USAGE = 1, 3
# Where the processes of one machine leave their exit codes for the process that launched them.
CODES_VARIABLE = "X2VLM_EXIT_CODES"


def main(arguments: list[str]) -> int:
    """Launch the processes of this machine, or be one of them where the environment has a rank."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    if "RANK" not in os.environ:
        return launch(arguments)
    code = EXIT_FAILED
    try:
        code = train_process(arguments)
    finally:
        if folder := os.environ.get(CODES_VARIABLE):
            Path(folder, os.environ["RANK"]).write_text(str(code))
    return code


def train_process(arguments: list[str]) -> int:
    """Train the job in this process; its rank is in the environment."""
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
    except LeaseLost as error:
        log.error("%s: %s", type(error).__name__, error)
        return EXIT_FENCED
    except ConfigError as error:
        log.error("%s: %s", type(error).__name__, error)
        return EXIT_USAGE
    except X2VLMError as error:
        log.error("%s: %s", type(error).__name__, error)
        return EXIT_FAILED
    finally:
        if dist.is_initialized():  # one that only waited for the others has left its group
            dist.destroy_process_group()
    return 0


def launch(arguments: list[str]) -> int:
    """Start the processes with torchrun's own launcher and give the exit code that they agree on."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    *options, job = arguments or [""]
    try:
        if not job or job.startswith("-"):
            raise ConfigError(f"one argument is wanted, the job of a run: {USAGE}")
        content = parse_job(job)
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_USAGE
    if not any(word.startswith(("--rdzv", "--standalone", "--master", "--nnodes")) for word in options):
        options = ["--standalone", *options]
    with tempfile.TemporaryDirectory(prefix="x2vlm-codes-") as folder:
        os.environ[CODES_VARIABLE] = folder
        codes: list[int] = []
        try:
            copy = Path(folder, "job.json")  # the store is asked once a machine, not by every process
            copy.write_text(json.dumps(content))
            run.main([*options, "-m", "pipelines.s5_pretrain.torchrun", str(copy)])
            return 0
        except SystemExit as wrong:  # of torchrun's own arguments
            return EXIT_USAGE if wrong.code else 0
        except SignalException as stopped:
            log.warning("stop_asked signal=%d", stopped.sigval)
        except ChildFailedError as failed:
            log.error("%s", failed)
            codes = [failure.exitcode for failure in failed.failures.values()]
        codes += [int(path.read_text()) for path in Path(folder).iterdir() if path.name.isdigit()]
    return agreed_code(codes)


def agreed_code(codes: Collection[int]) -> int:
    """The exit code of a run whose processes ended with `codes`, of which the first to fail takes others with it."""
    for code in (EXIT_FENCED, EXIT_STALLED, EXIT_USAGE):
        if code in codes:
            return code
    ended = [code for code in codes if code != -signal.SIGTERM]  # ended by the launcher
    return EXIT_STOPPED if ended and set(ended) <= {0, EXIT_STOPPED} else EXIT_FAILED


def read_job(arguments: list[str]) -> dict[str, Any]:
    """The job that the only argument names. ConfigError if it is missing or damaged, or without torchrun."""
    if len(arguments) != 1:
        raise ConfigError(f"one argument is wanted, the job of a run: {USAGE}")
    if "RANK" not in os.environ:
        raise ConfigError(f"this process was not started by torchrun: {USAGE}")
    return parse_job(arguments[0])


def parse_job(uri: str) -> dict[str, Any]:
    """The job at `uri`. ConfigError if it is missing or damaged."""
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
    own = {"data", "start"} if isinstance(job, dict) and job.get("kind") == "finetune" else {"shards", "vocabulary"}
    if not isinstance(job, dict) or not {"config", "state_uri", "facts", *own} <= job.keys():
        raise ConfigError(f"{uri}: not the job of a run; start the run again, which writes it anew")
    return job


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
