"""Where parts run: on Ray, or in this process."""

import argparse
import os

from pipelines.driver.endings import reinstall
from pipelines.flow.run.runner import InlineRunner, Runner


def start_runner(options: argparse.Namespace) -> Runner:
    """The runner that the command line asks for. `--inline` looks for no Ray at all, whatever the environment says."""
    if options.inline:
        # As Ray does for its workers: on all cores the threads of a small model spin and get nothing done.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return InlineRunner()
    from pipelines.flow.run.ray_runner import RayRunner  # importing ray takes a second that many commands can save

    # Two at least: the sample trains with two workers, and on a single core they take turns.
    runner = RayRunner(num_cpus=options.num_cpus or max(2, os.cpu_count() or 1))
    reinstall()  # Ray has taken SIGTERM
    return runner
