"""img2dataset's way to fetch an image for one list of URLs, without the rest of its package.

Its requests, its calls of `urlopen` and its reading of X-Robots-Tag are used; its pools, its re-encoding and its file
formats are not.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType

from pipelines.s1_download.config import DownloadConfig

Take = Callable[[str, bytes | None, str], None]


def downloader_module() -> ModuleType:
    """`img2dataset.downloader`, at the cost of that file alone: 0.06 CPU seconds instead of 3.9.

    The package imports its command line first, and that a process pool, wandb, albumentations, OpenCV and pandas; with
    torch, ray or pyspark installed, those too. None of it runs in a download of ours: the package's own file is left
    out, and wandb, which its logger reports to when asked, is an empty module while the logger is imported.
    """
    name = "img2dataset.downloader"
    if name not in sys.modules:
        with _in_place_of("img2dataset", _bare_package("img2dataset")), _in_place_of("wandb", ModuleType("wandb")):
            importlib.import_module(name)
    return sys.modules[name]


def _bare_package(name: str) -> ModuleType:
    """A package whose modules can be imported though its `__init__` has not run; ImportError if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{name} is not installed; run `make setup`", name=name)
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    return package


@contextmanager
def _in_place_of(name: str, stand_in: ModuleType) -> Iterator[None]:
    """Have imports find `stand_in` inside the block, and afterwards what they would have found without it."""
    if name in sys.modules:  # the real one is here already: nothing to save, and others use it
        yield
        return
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


def run_shard(urls: Sequence[str], config: DownloadConfig, take: Take) -> None:
    """Have every one of `urls` opened by `urlopen` in threads, and `take(url, body or None, message)` for each.

    `take` is called in the thread that has opened the URL, so at most as many bodies as threads are in memory. What it
    raises is raised, and no further URL is opened.
    """
    # The loop of `Downloader` is left out: it hands each body to one thread through a queue, behind a semaphore, and
    # keeps a record of its own that nobody here reads.
    download_image_with_retry = downloader_module().download_image_with_retry
    directives = {text.strip().lower() for text in config.opt_out_directives} or None
    waiting = iter(urls)
    lock, failed = threading.Lock(), threading.Event()

    def work() -> None:
        while not failed.is_set():
            with lock:
                url = next(waiting, None)
            if url is None:
                return
            try:
                _, stream, message = download_image_with_retry(
                    (url, url),
                    timeout=config.image_deadline_seconds,
                    retries=0,  # our transport retries what may pass, within one deadline
                    user_agent_token=config.user_agent_token.strip().lower(),
                    disallowed_header_directives=directives,
                )
                take(url, None if stream is None else stream.getvalue(), message or "")
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(config.threads) as pool:
        for done in [pool.submit(work) for _ in range(min(config.threads, len(urls)))]:
            done.result()
