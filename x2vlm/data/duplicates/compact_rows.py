"""Rows of `duplicates.ROW_SCHEMA` in half the bytes, as they are sent to buckets, and the node that names their look.

Digests and keys are bytes instead of hexadecimal digits. Further columns (an embedding, texts) pass as they are.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from x2vlm.data.duplicates.components import Looks, Nodes, looks_of
from x2vlm.data.duplicates.duplicates import ROW_SCHEMA
from x2vlm.data.duplicates.sketches import mixed, sketches
from x2vlm.data.media.phash import thumbnail_matrix
from x2vlm.errors import CorruptArtifact
from x2vlm.samples import MEDIA_KINDS

DIGESTS = {"key": 16, "sha256": 32, "pixel_sha256": 32}  # columns of hexadecimal digits: bytes of a value
_DIGITS = b"0123456789abcdef"
_VALUE_OF = np.full(256, 255, np.uint8)
_VALUE_OF[np.frombuffer(_DIGITS, np.uint8)] = np.arange(16)
_DIGIT_OF = np.frombuffer(_DIGITS, np.uint8)


def compact(rows: pa.Table) -> tuple[pa.Table, dict[int, Looks]]:
    """`rows` (columns of ROW_SCHEMA and others) with `node` as first column and digests as bytes; same order.

    Beside them the looks of those with an informative hash, by the number of their kind, one a row.

    Rows without media are left out: they show nothing. CorruptArtifact for a digest of another form.
    """
    rows = rows.filter(pc.is_valid(rows["sha256"])).combine_chunks()
    for name, width in DIGESTS.items():
        place = rows.column_names.index(name)
        rows = rows.set_column(place, pa.field(name, pa.binary(width)), _as_bytes(rows[name], name, width))
    node, looks = _nodes(rows)
    return rows.add_column(0, pa.field("node", pa.uint64()), pa.array(node)), looks


def expand(rows: pa.Table) -> pa.Table:
    """The inverse of `compact`: ROW_SCHEMA, and the other columns behind it."""
    rows = rows.combine_chunks()
    others = [name for name in rows.column_names if name not in (*ROW_SCHEMA.names, "node")]
    columns = {name: rows[name] for name in (*ROW_SCHEMA.names, *others)}
    columns |= {name: _as_text(rows[name], width) for name, width in DIGESTS.items()}
    return pa.table(columns)


def _as_bytes(column: pa.ChunkedArray, name: str, width: int) -> pa.Array:
    """Texts of 2 * width digits as bytes."""
    texts = column.combine_chunks()
    texts = texts if isinstance(texts, pa.Array) else pa.array([], pa.string())
    valid = pc.is_valid(texts)
    known = pc.drop_null(texts)
    wrong = pc.not_equal(pc.binary_length(known), 2 * width)
    digits = np.empty((0, 2 * width), np.uint8)
    if not pc.any(wrong).as_py() and len(known):
        known = pa.concat_arrays([known])  # its offsets start at the first value
        _, offsets, data = known.buffers()
        first = int(np.frombuffer(offsets, np.int32, len(known) + 1)[known.offset])
        digits = np.frombuffer(data, np.uint8)[first : first + len(known) * 2 * width].reshape(-1, 2 * width)
        wrong = pa.array((_VALUE_OF[digits] == 255).any(axis=1))
    if pc.any(wrong).as_py():
        value = known.filter(wrong)[0].as_py()
        raise CorruptArtifact(
            f"{name} {value!r} is not {2 * width} hexadecimal digits; rerun the stage that wrote these rows"
        )
    values = _VALUE_OF[digits]
    packed = (values[:, 0::2] << 4) | values[:, 1::2]
    made = np.zeros((len(texts), width), np.uint8)
    made[valid.to_numpy(zero_copy_only=False)] = packed
    mask = pa.array(~valid.to_numpy(zero_copy_only=False))
    whole = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(texts), [None, pa.py_buffer(made.tobytes())])
    return pc.if_else(mask, pa.scalar(None, pa.binary(width)), whole) if texts.null_count else whole


def digest_matrix(column: pa.ChunkedArray | pa.Array, width: int) -> NDArray[np.uint8]:
    """A column of digests as bytes, of shape (rows, width); what a null has is undefined."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.empty((0, width), np.uint8)
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    return flat[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)


def _as_text(column: pa.ChunkedArray, width: int) -> pa.Array:
    values = digest_matrix(column, width)
    digits = np.empty((len(values), 2 * width), np.uint8)
    digits[:, 0::2], digits[:, 1::2] = _DIGIT_OF[values >> 4], _DIGIT_OF[values & 15]
    offsets = np.arange(len(values) + 1, dtype=np.int64) * 2 * width
    texts = pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(digits.tobytes()))
    made = texts.cast(pa.string())
    return pc.if_else(pc.is_valid(column), made, pa.scalar(None, pa.string())) if column.null_count else made


def has_hash(rows: pa.Table) -> NDArray[np.bool_]:
    """True for rows whose hash says something of the image: it has one, and is not flat."""
    usable = pc.and_kleene(pc.is_valid(rows["phash"]), pc.invert(rows["phash_flat"]))
    found: NDArray[np.bool_] = pc.fill_null(usable, False).to_numpy(zero_copy_only=False)
    return found


def kind_numbers(rows: pa.Table) -> NDArray[np.int64]:
    """The place of each row's kind in MEDIA_KINDS."""
    kinds = pc.index_in(rows["kind"], value_set=pa.array(MEDIA_KINDS))
    numbers: NDArray[np.int64] = pc.fill_null(kinds, len(MEDIA_KINDS)).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _nodes(rows: pa.Table) -> tuple[Nodes, dict[int, Looks]]:
    """Of each row the name of its look, or of its pixels (of its bytes) where the hash says nothing; and the looks."""
    kind, hashed = kind_numbers(rows), has_hash(rows)
    known = pc.is_valid(rows["pixel_sha256"]).to_numpy(zero_copy_only=False)
    digest = np.where(known[:, None], digest_matrix(rows["pixel_sha256"], 32), digest_matrix(rows["sha256"], 32))
    node = mixed(kind.astype(np.uint64), _first_word(digest), 1)
    own = rows.select(["phash", "thumbnail"]).filter(pa.array(hashed)).combine_chunks()
    sketch, found = sketches(thumbnail_matrix(own["thumbnail"])), {}
    for number in np.unique(kind[hashed]).tolist():
        there = kind[hashed] == number
        found[number] = looks_of(number, own["phash"].to_numpy()[there], sketch[there])
        node[np.flatnonzero(hashed)[there]] = found[number].node
    return node, found


def shared_values(rows: pa.Table, name: str) -> NDArray[np.uint64]:
    """64 bits of a digest column of compact rows as values for `components.shared_links`, other ones for each column.

    `name` is "key" or "sha256": what has no null.
    """
    return mixed(_first_word(digest_matrix(rows[name], DIGESTS[name])), list(DIGESTS).index(name) + 2)


def _first_word(matrix: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(matrix[:, :8]).view("<u8")[:, 0].astype(np.uint64)
