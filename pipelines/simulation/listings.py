"""Listings of segments that nobody wrote, as large as those of real parts: what plans read of files without content."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.flow.segments import GROUP_TYPE, SCHEMA, encode


def digests(seed: str, number: int) -> pa.Array:
    """So many sha256 of nothing, other ones for another seed."""
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    data = np.random.default_rng(first).bytes(32 * number)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), number, [None, pa.py_buffer(data)])


def listing(
    seed: str, names: Sequence[str], num_bytes: int, rows: int, groups: Sequence[tuple[str, int]] = ()
) -> bytes:
    """The listing of a file of `num_bytes` and `rows`, in equal segments called `names`.

    `groups` are names of groups and the number of the segment that has each, in order.
    """
    number = len(names)
    sizes = np.full(number, num_bytes // max(1, number), np.int64)
    owners = np.array([segment for _, segment in groups], np.int64)
    ends = np.concatenate([[0], np.searchsorted(owners, np.arange(number), side="right")]).astype(np.int32)
    columns = [
        pa.array([name for name, _ in groups], pa.string()),
        digests(f"{seed} groups", len(groups)),
        pa.array(np.full(len(groups), rows // max(1, len(groups)), np.int64)),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(GROUP_TYPE))
    table = pa.table(
        [
            pa.array(names, pa.string()),
            pa.array(np.concatenate([[0], np.cumsum(sizes)[:-1]]) if number else np.empty(0, np.int64), pa.int64()),
            pa.array(sizes),
            digests(seed, number),
            pa.array(np.full(number, rows // max(1, number), np.int64)),
            pa.ListArray.from_arrays(pa.array(ends), structs),
        ],
        schema=SCHEMA,
    )
    return encode(table)
