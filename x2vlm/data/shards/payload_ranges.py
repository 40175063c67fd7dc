"""Payloads out of media packs that lie far away: neighbours in one request, each checked against its sha256."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from x2vlm.errors import CorruptArtifact

# Payloads between two wanted ones (of dropped rows) are read along if they are smaller than what a request costs: 10 ms
# at 50 MB/s.
MAX_GAP_BYTES = 512 << 10
MAX_RANGE_BYTES = 8 << 20  # of a request, unless one payload is larger
NUM_THREADS = 8  # requests at a time: at most NUM_THREADS times the largest range is in memory


class Place(NamedTuple):
    """Where a payload lies: number of the pack, place in it, and sha256 of the bytes there."""

    pack: int
    offset: int
    bytes: int
    sha256: str


class ByteRange(NamedTuple):
    """Consecutive bytes of a pack."""

    pack: int
    start: int
    end: int


ReadRange = Callable[[ByteRange], bytes]


def ranges_of(
    places: Iterable[Place], max_gap_bytes: int = MAX_GAP_BYTES, max_range_bytes: int = MAX_RANGE_BYTES
) -> list[ByteRange]:
    """What to request for these payloads, by pack and offset.

    Neighbours with at most `max_gap_bytes` between them are one range, up to `max_range_bytes`.
    """
    ranges: list[ByteRange] = []
    for pack, own in groupby(sorted(set(places)), key=lambda place: place.pack):
        for place in own:
            end = place.offset + place.bytes
            last = ranges[-1] if ranges and ranges[-1].pack == pack else None
            if last and place.offset - last.end <= max_gap_bytes and end - last.start <= max_range_bytes:
                ranges[-1] = ByteRange(pack, last.start, max(end, last.end))
            else:
                ranges.append(ByteRange(pack, place.offset, end))
    return ranges


class FetchedPayloads:
    """Payloads fetched once, by `ranges_of`, into a file in `folder`; `read` gives each of them from there.

    `read_range` is called by several threads at a time.
    """

    def __init__(
        self,
        places: Sequence[Place],
        read_range: ReadRange,
        folder: Path,
        max_gap_bytes: int = MAX_GAP_BYTES,
        max_range_bytes: int = MAX_RANGE_BYTES,
    ) -> None:
        self._path = folder / "payloads"
        self._starts: dict[Place, int] = {}  # in the file
        ranges = ranges_of(places, max_gap_bytes, max_range_bytes)
        ordered = iter(sorted(set(places)))
        place, at = next(ordered, None), 0
        starts = []
        for one in ranges:
            starts.append(at)
            while place is not None and place.pack == one.pack and place.offset + place.bytes <= one.end:
                self._starts[place] = at + place.offset - one.start
                place = next(ordered, None)
            at += one.end - one.start
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with ThreadPoolExecutor(NUM_THREADS, "payloads") as pool:
                # Each thread writes what it read, so that a slow request never lets those after it pile up in memory.
                list(pool.map(lambda start, one: _write(descriptor, read_range(one), start), starts, ranges))
        finally:
            os.close(descriptor)

    def read(self, place: Place) -> bytes:
        """The bytes at `place`, not checked."""
        with self._path.open("rb") as stream:
            stream.seek(self._starts[place])
            return stream.read(place.bytes)


def _write(descriptor: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written


def checked(payload: bytes, place: Place, pack: str) -> bytes:
    """`payload`; CorruptArtifact if it is not what lay at `place` of the pack called `pack` when that was written."""
    if len(payload) != place.bytes or hashlib.sha256(payload).hexdigest() != place.sha256:
        raise CorruptArtifact(
            f"{pack}: bytes {place.offset} to {place.offset + place.bytes} are not the payload with sha256 "
            f"{place.sha256[:12]}… that its index describes; delete this part and rerun `download`"
        )
    return payload
