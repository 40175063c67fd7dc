"""A growing series of JSON lines as numbered segments, so that a store never has to change what it holds.

    metrics/head.json            {"segments": 3}: there are 00000000.jsonl to 00000002.jsonl
    metrics/00000000.jsonl       lines of steps 0 .. 41
    metrics/00000001.jsonl       lines of steps 30 .. 99: a start that went on at step 30; they replace 30 .. 41

Within a segment steps rise by one. A step that several segments have counts as the last of them has it, and nothing
counts that an earlier segment has beyond the first step of a later one. On an object store a segment is written once;
on a local disk the last one grows. A plain file `metrics.jsonl` beside the folder, of an earlier release, comes before
all of them. Opening a series and adding to it read and write the head alone, so they cost the same at every length.
"""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from x2vlm.stores.calls import RETRY_SECONDS, StoreFiles

HEAD = "head.json"
SUFFIX = ".jsonl"
NUM_THREADS = 16  # of a reader of all segments
_BLOCK = 1 << 16


def folder_of(series: str) -> str:
    """The folder of the segments of a series `<name>.jsonl`."""
    return series.removesuffix(SUFFIX)


def segment_name(number: int) -> str:
    """File name of the segment with that number."""
    return f"{number:08d}{SUFFIX}"


def num_segments(head: bytes | None) -> int:
    """The number of segments that a head (None: there is none) tells of."""
    return 0 if head is None else int(json.loads(head)["segments"])


def head_of(segments: int) -> bytes:
    """A head that tells of so many segments."""
    return json.dumps({"segments": segments}).encode() + b"\n"


def read_lines(series: str, retry_seconds: float = RETRY_SECONDS) -> Iterator[bytes]:
    """The lines of a series at a URI or path, each step once, in the order of steps, each with its line feed.

    Torn last lines of a process that was killed are left out. A series that is not there has no lines. Remote segments
    are copied to a temporary folder first, `NUM_THREADS` at a time.
    """
    parent, _, name = series.rpartition("/")
    files = StoreFiles(parent or ".", retry_seconds)
    folder = folder_of(name)
    numbers = range(num_segments(files.read(f"{folder}/{HEAD}")))
    names = [name, *(f"{folder}/{segment_name(number)}" for number in numbers)]
    if files.is_local:
        yield from _joined([path for path in map(Path, map(files.path, names)) if path.exists()])
        return
    with tempfile.TemporaryDirectory(prefix="x2vlm-series-") as scratch:
        copies = [Path(scratch) / f"{number:09d}" for number in range(len(names))]

        def copy(name: str, target: Path) -> None:
            target.write_bytes(files.read(name) or b"")

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(copy, names, copies))
        yield from _joined(copies)


def last_line(files: StoreFiles, series: str) -> bytes | None:
    """The last whole line of the series `<name>.jsonl` among `files`, without reading the others; None without any."""
    folder = folder_of(series)
    numbers = range(num_segments(files.read(f"{folder}/{HEAD}")))
    for name in (*(f"{folder}/{segment_name(number)}" for number in reversed(numbers)), series):
        if line := _last_of(files, name):
            return line
    return None


def _last_of(files: StoreFiles, name: str) -> bytes:
    tail = b""
    while True:
        block = max(2 * len(tail), _BLOCK)
        data = files.read(name, start=-block)
        if not data:
            return b""
        whole = data[: data.rfind(b"\n") + 1]
        begin = whole.rfind(b"\n", 0, max(0, len(whole) - 1))
        if begin >= 0 or len(data) < block:
            return whole[begin + 1 :]
        tail = data


def _joined(paths: list[Path]) -> Iterator[bytes]:
    """Lines of segments in order, each only up to the first step of those after it."""
    ends: list[float] = []
    least = float("inf")
    for path in reversed(paths):
        ends.append(least)
        with path.open("rb") as stream:
            first = stream.readline()
        if first.endswith(b"\n"):
            least = min(least, _step(first))
    for path, end in zip(paths, reversed(ends), strict=True):
        with path.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n") or (end != float("inf") and _step(line) >= end):
                    break
                yield line


def _step(line: bytes) -> int:
    return int(json.loads(line)["step"])
