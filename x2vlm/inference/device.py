"""Where a model runs, and on how many threads."""

import math
import os
from pathlib import Path

import torch

from x2vlm.errors import ConfigError

# With fewer parameters a thread does not have work enough to be worth waking: it spins, which costs CPU and no less
# time. Four images through the sample's model (1 million) took 29.7 CPU seconds on two threads and 7.3 on one.
PARAMETERS_PER_THREAD = 10_000_000
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "<microseconds> <of so many>", or "max ..."


def choose_device(name: str) -> torch.device:
    """The device called `name`; for `auto` a CUDA GPU if there is one, else Apple's, else the CPU.

    ConfigError for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"--device {name}: {error}") from None
    return device


def limit_threads(num_parameters: int) -> int:
    """Lets torch use as many threads as a model of this size can keep busy; how many it uses now.

    What the user has set (`OMP_NUM_THREADS`, `MKL_NUM_THREADS`) stays as it is. Of one process, so for programs to
    call and not for libraries.
    """
    if not any(os.environ.get(name) for name in THREAD_VARIABLES):
        torch.set_num_threads(threads_for(num_parameters, usable_cpus()))
    return torch.get_num_threads()


def threads_for(num_parameters: int, cpus: int) -> int:
    """One thread for every ten million parameters, at least one and at most one for each CPU."""
    return max(1, min(cpus, math.ceil(num_parameters / PARAMETERS_PER_THREAD)))


def usable_cpus(quota: Path = CPU_QUOTA) -> int:
    """CPUs that this process may use: those of its affinity, no more than its container's quota pays for."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        share, period = quota.read_text(encoding="ascii").split()
        return max(1, min(cpus, int(share) // int(period)))
    except (OSError, ValueError):
        return cpus
