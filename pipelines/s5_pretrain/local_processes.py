"""Training by several processes of this machine without Ray, on the job in the state folder; and how many fit it."""

import contextlib
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pipelines.project import PROJECT_ROOT
from x2vlm.command_line import EXIT_FENCED
from x2vlm.errors import ConfigError, LeaseLost, StageFailed, Stopped

EXIT_STOPPED = 75  # `x2vlm.train.stopping`

log = logging.getLogger(__name__)

NUM_LINES = 500  # kept of what the processes said
NUM_SHOWN = 30  # of them in the message of a failure
STOP_SECONDS = 15.0  # for a step to end and be saved, when this process is told to stop
# At the speed of an H200 a trainer needs 3 cores of readers; more than this many only take memory, 0.7 GB each.
MAX_READERS = 16
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs that this process may use: those of its affinity, and no more than the quota of its control groups.

    `os.cpu_count()` counts those of the machine, which a container or a batch system may have given to others.
    """
    try:
        allowed = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        allowed = float(os.cpu_count() or 1)
    return min([allowed, *_quotas(cgroups, own)])


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The CPU quotas of this process's control groups and those above them (version 2: cpu.max; 1: cfs_quota_us)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        for folder in (Path(path), *Path(path).parents):
            place = root / folder.relative_to("/")
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                if controllers:
                    quota, period = ((place / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (place / "cpu.max").read_text().split()
                if float(quota) > 0:
                    yield float(quota) / float(period)


def readers_per_trainer(num_trainers: int, num_cpus: float) -> int:
    """Prefetching processes of each of `num_trainers` processes on a machine: an equal part of its CPUs but one."""
    return min(MAX_READERS, max(1, int(num_cpus // max(1, num_trainers)) - 1))


def check_devices(world_size: int, num_gpus: int, stage: str = "pretrain") -> None:
    """ConfigError if this machine has GPUs, but fewer than processes; without any GPU they share the CPUs."""
    if 0 < num_gpus < world_size:
        raise ConfigError(
            f"{stage}: without Ray (--inline) all {world_size} processes of the training run on this machine, which "
            f"has {num_gpus} GPUs. Set {stage}.world_size to at most {num_gpus}, or run on a Ray cluster"
        )


def train_on_this_machine(job_path: str, world_size: int, stage: str = "pretrain") -> None:
    """Train the job to its end. StageFailed with what the processes said if one of them failed, LeaseLost if another
    driver trains the same run now.

    Told to stop, the processes save their step first if `STOP_SECONDS` are enough.
    """
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    log.info("event=training_started processes=%d job=%s", world_size, job_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.s5_pretrain.torchrun", "--nproc-per-node", str(world_size), job_path],
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
    if code == EXIT_FENCED:
        raise LeaseLost("".join(causes(said)) or "another driver trains this run now")
    if code == EXIT_STOPPED:
        raise Stopped(
            f"{stage}: its processes were told to stop; their step is saved, the same command goes on from there"
        )
    if code:
        raise StageFailed(f"{stage}: its processes ended with {code}. They said:\n{''.join(causes(said))}")


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
