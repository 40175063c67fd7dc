"""img2dataset's function that fetches an image, for a list of URLs, without the rest of its package.

Its requests, its calls of `urlopen` and its check of X-Robots-Tag are used; its pools, re-encoding and file formats are
not.
"""

import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from types import ModuleType

from pipelines.s1_download.config import DownloadConfig
from x2vlm.errors import StageFailed

Take = Callable[[str, bytes | None, str], None]
Download = Callable[..., tuple[str, BytesIO | None, str | None]]  # (key, body, error)

VERSION = "1.47.0"  # the only version whose function and import were checked; pinned in pyproject.toml too


@functools.cache
def download_function() -> Download:
    """`img2dataset.downloader.download_image_with_retry`, at the cost of that file alone: 0.06 CPU seconds.

    The package imports its command line first, and that wandb, albumentations, OpenCV, pandas and, where they are
    installed, torch and ray: 5 CPU seconds and 400 MB, none of which a download uses. A process that has imported
    the package gets the function from there. StageFailed if img2dataset is missing, broken or of another version.
    """
    # Compared with an ordinary import, also in a process that forks a child for every part:
    # `python -m tests.benchmarks.img2dataset_import`, docs/performance.md.
    remedy = (
        f"run `make setup`, or `pip install --force-reinstall img2dataset=={VERSION}`, on every machine that downloads"
    )
    try:
        found = version("img2dataset")
    except PackageNotFoundError as error:
        raise StageFailed(f"img2dataset {VERSION}, which fetches images, is not installed here; {remedy}") from error
    if found != VERSION:
        raise StageFailed(f"img2dataset {found} is installed here, but images are fetched with {VERSION}; {remedy}")
    try:
        with _without_package_imports():
            from img2dataset.downloader import download_image_with_retry
    except (ImportError, SyntaxError) as error:
        raise StageFailed(f"img2dataset {VERSION} cannot be imported: {error}; {remedy}") from error
    return download_image_with_retry  # type: ignore[no-any-return]


@contextmanager
def _without_package_imports() -> Iterator[None]:
    """Inside the block `img2dataset.downloader` can be imported without the package's `__init__` and without wandb.

    Both are empty modules meanwhile, that of the package with its search path. The package's logger optionally reports
    to wandb. Afterwards `sys.modules` contains neither them nor modules imported through them, so later imports of
    img2dataset or wandb get the real ones. Modules that are imported already are not replaced.
    """
    spec = importlib.util.find_spec("img2dataset")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("there is no package of that name")
    package = ModuleType("img2dataset")
    package.__path__ = list(spec.submodule_search_locations)
    stand_ins = {"img2dataset": package, "wandb": ModuleType("wandb")}
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in stand_ins]:
            del sys.modules[name]


def run_shard(urls: Sequence[str], config: DownloadConfig, take: Take) -> None:
    """Have every one of `urls` opened by `urlopen` in threads, and `take(url, body or None, message)` for each.

    `take` is called in the thread that has opened the URL, so at most as many bodies as threads are in memory. What it
    raises is raised, and no further URL is opened.
    """
    # The loop of `Downloader` is left out: it hands each body to one thread through a queue, behind a semaphore, and
    # keeps a record of its own that nobody here reads.
    download_image_with_retry = download_function()
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
