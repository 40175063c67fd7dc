"""A driver of the toy graph that kills itself, with SIGKILL, at one step of a write.

python -m tests.support.flow.crash STORE SOURCES POINT COUNT   (POINT "" never; COUNT: at the how-manieth time)
"""

import os
import signal
import sys
from pathlib import Path

from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import run_all


class KillAt:
    """Kills this process when a step is reached for the `count`-th time."""

    def __init__(self, point: str, count: int) -> None:
        self.point, self.left = point, count

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    uri, sources, point, count = sys.argv[1:]
    run_all(toy.toy_graph(Path(sources)), Store(uri, fault=KillAt(point, int(count))))
