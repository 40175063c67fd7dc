"""img2dataset's Downloader for one list of URLs, without the rest of its package.

Its thread pool, its reading of X-Robots-Tag and its calls of `urlopen` are used; its process pool, its re-encoding and
its file formats are not.
"""

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.s1_download.config import DownloadConfig
from x2vlm.errors import StageFailed

Take = Callable[[str, bytes | None, str], None]


def downloader_class() -> type:
    """`img2dataset.downloader.Downloader`, at the cost of that file alone: 0.06 CPU seconds instead of 3.9.

    The package imports its command line first, and that a process pool, wandb, albumentations, OpenCV and pandas; with
    torch, ray or pyspark installed, those too. None of it runs in a download of ours: the package's own file is left
    out, and wandb, which its logger reports to when asked, is an empty module while the logger is imported.
    """
    name = "img2dataset.downloader"
    if name not in sys.modules:
        with _in_place_of("img2dataset", _bare_package("img2dataset")), _in_place_of("wandb", ModuleType("wandb")):
            importlib.import_module(name)
    found: type = sys.modules[name].Downloader
    return found


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


def run_shard(urls: Sequence[str], folder: Path, config: DownloadConfig, take: Take) -> None:
    """Have every one of `urls` opened by `urlopen` in threads, and `take(url, body or None, message)` for each.

    `take` is called from the calling thread, in the order in which downloads end; at most twice as many bodies as
    threads are in memory. What it raises is raised. StageFailed if img2dataset gives up.
    """
    errors: list[BaseException] = []

    class Taker:
        """img2dataset's idea of a writer."""

        def __init__(self, *layout: object) -> None:
            pass

        def write(self, body: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
            try:
                take(meta["url"], body, meta["error_message"] or "")
            except BaseException as error:  # img2dataset would print it and go on
                errors.append(error)
                raise

        def close(self) -> None:
            pass

    shard = folder / "urls.arrow"
    _write_urls(shard, urls)
    downloader = downloader_class()(
        sample_writer_class=Taker,
        resizer=_as_it_came,
        thread_count=config.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url"],
        timeout=config.image_deadline_seconds,
        number_sample_per_shard=max(2, len(urls)),
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # our transport retries what may pass, within one deadline
        user_agent_token=config.user_agent_token,
        disallowed_header_directives=list(config.opt_out_directives) or None,
    )
    finished, _ = downloader((0, str(shard)))
    if errors:
        raise errors[0]
    if not finished:
        raise StageFailed("img2dataset failed on a shard; its traceback is above")


def _as_it_came(stream: io.BytesIO, boxes_to_blur: object) -> tuple[bytes, None, None, None, None, None]:
    """What img2dataset's Resizer answers with `disable_all_reencoding`: bytes, four sizes, no error."""
    return stream.read(), None, None, None, None, None


def _write_urls(path: Path, urls: Sequence[str]) -> None:
    """The file img2dataset reads a shard from. Made of buffers: `pa.array` of a list would import pandas (1.3 s)."""
    texts = [url.encode() for url in urls]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    column = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("url", pa.string())])) as writer:
        writer.write_table(pa.table([column], names=["url"]))
