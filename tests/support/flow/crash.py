"""A driver of the toy graph that kills itself, with SIGKILL, at one step of a write.

python -m tests.support.flow.crash STORE SOURCES POINT COUNT [NAMES ROWS]

POINT "": never; COUNT: at the how-manieth time. NAMES, letters, are the sources; ROWS is `ReadConfig.rows_per_file`.

With JOURNAL_PAGE in the environment, journals have pages of so many parts, and manifests of more are paged too.
"""

import os
import signal
import sys
from pathlib import Path

from pipelines.flow.store.manifests import journal, paged
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


def small_pages(num_parts: int) -> None:
    """Write journals and manifests of this process in pages of so many parts (of a manifest, a power of two)."""
    journal.PAGE_PARTS = num_parts
    paged.INLINE_PARTS = num_parts
    paged.CHUNK_PARTS = 1 << (num_parts - 1).bit_length()


if __name__ == "__main__":
    uri, sources, point, count, *graph = sys.argv[1:]
    if "JOURNAL_PAGE" in os.environ:
        small_pages(int(os.environ["JOURNAL_PAGE"]))
    names, rows_per_file = (graph[0], int(graph[1])) if graph else ("ab", 3)
    wanted = toy.toy_graph(Path(sources), names, read_config=toy.ReadConfig(rows_per_file=rows_per_file))
    run_all(wanted, Store(uri, fault=KillAt(point, int(count))))
