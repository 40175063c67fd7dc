"""Digests of rows: sha256 over values alone, so that equal rows have equal digests in whatever file or batch they lie.

What is hashed of a run of rows, all numbers little-endian:

1. the number of rows, 8 bytes;
2. of each row its columns in order, structs replaced by their fields: a byte 1, or 0 for a null, then the number itself
   (0 for a null) or the length of the text or of the list in 4 bytes; nothing more of a struct, whose fields are null
   where it is;
3. of each row its texts in the order of the columns, in UTF-8;
4. of each list column 2 to 4 of the items of all rows, in order.

Lengths come before what they measure, so different rows never give equal bytes. No offset, padding or file format is
hashed, and no library chooses the encoding.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ends = NDArray[np.int64]


def digests_of_runs(table: pa.Table, ends: Sequence[int]) -> list[bytes]:
    """The digest (32 bytes) of each run of consecutive rows; run i ends before row `ends[i]`, where run i + 1 starts.

    TypeError for columns of other types than numbers, booleans, texts, binaries, and structs and lists of these.
    """
    bounds = np.array([0, *ends], dtype=np.int64)
    table = table.slice(0, int(bounds[-1])).combine_chunks()
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    pieces = [(view, at.tolist()) for view, at in _Frame(columns, table.num_rows).pieces(bounds)]
    found = []
    for run, num_rows in enumerate(np.diff(bounds).tolist()):
        digest = hashlib.sha256(num_rows.to_bytes(8, "little"))
        for view, at in pieces:
            digest.update(view[at[run] : at[run + 1]])
        found.append(digest.digest())
    return found


class _Frame:
    """Rows, or the items of a list column of all rows, as one block of numbers, one of texts, and frames of lists."""

    def __init__(self, columns: Sequence[pa.Array], num_rows: int) -> None:
        self.num_rows = num_rows
        self._numbers: list[NDArray[np.uint8]] = []
        self._texts: list[pa.Array] = []
        self._lists: list[tuple[Ends, _Frame]] = []
        for column in columns:
            self._add(column, np.ones(num_rows, dtype=np.bool_))

    def pieces(self, bounds: Ends) -> Iterator[tuple[memoryview, Ends]]:
        """Each block of bytes, with the place in it of each bound, a row number."""
        block = np.concatenate([np.empty((self.num_rows, 0), np.uint8), *self._numbers], axis=1)
        yield memoryview(block.reshape(-1).data), bounds * block.shape[1]
        if self._texts:
            joined = pc.binary_join_element_wise(*self._texts, pa.scalar(b"", pa.large_binary()))
            _, offsets, data = joined.buffers()
            ends = np.frombuffer(offsets, np.int64, self.num_rows + 1, joined.offset * 8) if offsets else None
            places = np.zeros_like(bounds) if ends is None else ends[bounds]
            yield memoryview(data if data is not None else b""), places
        for list_ends, items in self._lists:
            yield from items.pieces(list_ends[bounds])

    def _add(self, column: pa.Array, inside: Bools) -> None:
        """Add a column, null wherever `inside` is not true: there the struct around it is null."""
        valid = inside & pc.is_valid(column).to_numpy(zero_copy_only=False)
        self._number(valid.astype(np.uint8))
        if pa.types.is_struct(column.type):
            for place in range(column.type.num_fields):
                self._add(column.field(place), valid)
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            if not inside.all():
                column = pc.if_else(pa.array(valid), column, pa.scalar(None, column.type))
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            self._number(lengths.astype("<u4"))
            ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            self._lists.append((ends, _Frame([column.flatten()], int(ends[-1]))))
        elif _is_text(column.type):
            column = column.cast(pa.large_binary())
            if not valid.all():
                column = pc.if_else(pa.array(valid), column, pa.scalar(b"", pa.large_binary()))
            self._number(pc.binary_length(column).to_numpy(zero_copy_only=False).astype("<u4"))
            self._texts.append(column)
        elif pa.types.is_boolean(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            number = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
            number = number if number.null_count == 0 else pc.fill_null(number, 0)
            values = number.to_numpy(zero_copy_only=False)
            values = np.where(valid, values, np.zeros_like(values))
            self._number(values.astype(values.dtype.newbyteorder("<"), copy=False))
        else:
            raise TypeError(f"rows with a column of type {column.type} have no digest")

    def _number(self, values: NDArray[np.generic]) -> None:
        self._numbers.append(np.ascontiguousarray(values).view(np.uint8).reshape(self.num_rows, values.dtype.itemsize))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind))
