"""Sending rows to segments, and reading the segments of many parts."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.flow.segments import SegmentWriter, read_segment
from pipelines.flow.stage import Input, InputFile, PartReader, Read


def bucket_of(nodes: NDArray[np.uint64], num_buckets: int) -> NDArray[np.int64]:
    """The bucket of each node; nodes are hashes, so buckets are of one size."""
    return (nodes % np.uint64(num_buckets)).astype(np.int64)


def power_of_two(least: float) -> int:
    """The smallest power of two that is at least `least` and 1: a few rows more or less rarely change it."""
    return 1 << max(0, int(np.ceil(np.log2(max(least, 1)))))


def write_routed(path: Path, rows: pa.Table, place: NDArray[Any], name_of: Callable[[Any], str]) -> dict[str, int]:
    """Write `rows` as a file with a segment for each value of `place`, in ascending order; rows by file name.

    The rows of a segment keep their order.
    """
    order = np.argsort(place, kind="stable")
    values, starts = np.unique(place[order], return_index=True)
    with SegmentWriter(path) as writer:
        for value, own in zip(values, np.split(order, starts[1:]), strict=False):
            writer.add(name_of(value), rows.take(pa.array(own)))
    return writer.file_rows


def bucket_name(bucket: int) -> str:
    return f"{bucket:05d}"


class SegmentReads:
    """The reads of one segment from every part of some artifacts; listings are read once."""

    def __init__(self, slot: str, artifacts: Sequence[Input], path: str) -> None:
        self._slot = slot
        self._segments = [
            part.segments(path)
            for artifact in artifacts
            for part in artifact.parts
            if any(file.path == path for file in part.files)
        ]

    def of(self, name: str) -> list[Read]:
        """Reads of the segments called `name`, of the parts that have one."""
        return [Read(self._slot, found[name]) for found in self._segments if name in found]


def of_file(reads: Sequence[Read], path: str) -> list[InputFile]:
    """The files, or segments of files, called `path`."""
    return [read.file for read in reads if read.file.path.partition("#")[0] == path]


def tables(inputs: PartReader, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of segments, one by one; of the columns only those asked for are unpacked."""
    for file in files:
        yield read_segment(inputs.open(file), columns)
