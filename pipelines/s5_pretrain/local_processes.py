"""Training by several processes of this machine without Ray: torchrun, on the job in the state folder."""

import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from typing import IO

from pipelines.project import PROJECT_ROOT
from x2vlm.errors import ConfigError, StageFailed

log = logging.getLogger(__name__)

NUM_LINES = 500  # kept of what the processes said
NUM_SHOWN = 30  # of them in the message of a failure
STOP_SECONDS = 15.0  # for a step to end and be saved, when this process is told to stop


def check_devices(world_size: int, num_gpus: int) -> None:
    """ConfigError if this machine has GPUs, but fewer than processes; without any GPU they share the CPUs."""
    if 0 < num_gpus < world_size:
        raise ConfigError(
            f"pretrain: without Ray (--inline) all {world_size} processes of the training run on this machine, which "
            f"has {num_gpus} GPUs. Set pretrain.world_size to at most {num_gpus}, or run on a Ray cluster"
        )


def train_on_this_machine(job_path: str, world_size: int) -> None:
    """Train the job to its end. StageFailed with what the processes said if one of them failed.

    Told to stop, the processes save their step first if `STOP_SECONDS` are enough.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    log.info("event=training_started processes=%d job=%s", world_size, job_path)
    process = subprocess.Popen(
        [*command, "-m", "pipelines.s5_pretrain.torchrun", job_path],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process, which then stops those
    )
    assert process.stdout is not None
    try:
        said = _pass_on(process.stdout)
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code:
        raise StageFailed(f"pretrain: its processes ended with {code}. They said:\n{''.join(causes(said))}")


def causes(said: Sequence[str]) -> list[str]:
    """What the trainers themselves said of an error, if anything: the launcher's own report buries it."""
    own = [line for line in said if line.startswith(("[rank", "ERROR:"))]
    return (own or list(said))[-NUM_SHOWN:]


def _pass_on(stream: IO[str]) -> deque[str]:
    """Copy lines to stderr until they end; the last ones."""
    last: deque[str] = deque(maxlen=NUM_LINES)
    for line in stream:
        sys.stderr.write(line)
        last.append(line)
    return last
