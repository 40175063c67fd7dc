"""Where parts run: on Ray, or in this process."""

import argparse
import os
from collections.abc import Iterable

from pipelines.driver.endings import reinstall
from pipelines.flow.run.runner import InlineRunner, Runner
from pipelines.flow.stage import Node
from pipelines.flow.store.store import Store


def start_runner(options: argparse.Namespace, due: Iterable[Node], store: Store) -> Runner:
    """The runner that the command line asks for. `--inline` looks for no Ray at all, whatever the environment says.

    Errors as in `RayRunner.prepare` where the machines have no room for the nodes that are due.
    """
    if options.inline:
        # As Ray does for its workers: on all cores the threads of a small model spin and get nothing done.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return InlineRunner()
    from pipelines.flow.run.ray_runner import RayRunner  # importing ray takes a second that many commands can save

    # Two at least: the sample trains with two workers, and on a single core they take turns.
    runner = RayRunner(num_cpus=options.num_cpus or max(2, os.cpu_count() or 1))
    reinstall()  # Ray has taken SIGTERM
    try:
        runner.prepare(due, store)
    except BaseException:
        runner.close()
        raise
    return runner
