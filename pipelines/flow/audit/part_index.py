"""Which parts of an artifact read or wrote a file: one sorted array an artifact, derived from its manifest and kept.

It lies in the store (`index/parts/`), is named by the manifest's seal, and can be deleted at any time. With it, what
follows a file through the graph decodes the few parts that it meets instead of all of them.
"""

import io
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from pipelines.flow.segments import mark_of_read
from pipelines.flow.store.artifact import ManifestPart, PartRecord, SealedManifest
from pipelines.flow.store.store import Store

ENTRY = np.dtype([("hash", "<u8"), ("part", "<u4")])
FEW = 64  # parts that are looked through without an index


def parts_of_files(store: Store, stored: SealedManifest, files: Collection[str]) -> Sequence[ManifestPart]:
    """The parts that read or wrote one of `files` (hex sha256), in order.

    The first question about an artifact of many parts decodes them all to make the index.
    """
    parts = stored.manifest.parts
    if len(parts) > FEW and stored.sha256:
        index = _open(store, stored)
        wanted = np.array(sorted(int(one[:16], 16) for one in files), np.uint64)
        first, last = (np.searchsorted(index["hash"], wanted, side) for side in ("left", "right"))
        places = {place for a, b in zip(first, last, strict=True) for place in index["part"][a:b].tolist()}
        parts = [parts[place] for place in sorted(places)]
    return [part for part in parts if not set(files).isdisjoint(related(part.record))]


def related(record: PartRecord) -> Iterator[str]:
    """sha256 of the files a part was made from, the marks of the groups it read, and sha256 of what it wrote."""
    yield from (read.sha256 for read in record.reads)
    yield from (mark for read in record.reads if (mark := mark_of_read(read.path)) is not None)
    yield from (file.sha256 for file in record.files)


def _open(store: Store, stored: SealedManifest) -> np.ndarray:
    path = f"index/parts/{stored.sha256}.npy"
    data = store.blobs.read(path)
    if data is not None:
        found: np.ndarray = np.load(io.BytesIO(data))
        return found
    pairs = [(int(sha[:16], 16), at) for at, part in enumerate(stored.manifest.parts) for sha in related(part.record)]
    entries = np.array(pairs, ENTRY)
    entries = entries[np.argsort(entries["hash"], kind="stable")]
    stream = io.BytesIO()
    np.save(stream, entries)
    store.blobs.write(path, stream.getvalue())
    return entries
