"""Rows for measuring the filter stage: made from a seed, column by column, so that a million take seconds."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.samples import BOX_FIELDS, SAMPLE_SCHEMA

WORDS = (
    *("a", "the", "of", "on", "in", "with", "and", "dog", "cat", "man", "woman", "child", "street", "house", "red"),
    *("green", "blue", "small", "large", "old", "photo", "view", "sitting", "standing", "walking", "holding", "near"),
    *("table", "chair", "tree", "water", "mountain", "sky", "car", "train", "window", "wooden", "Vintage", "2019", "-"),
)


def synthetic_rows(count: int, seed: int = 1, boxes_per_row: int = 0, first: int = 0) -> pa.Table:
    """`count` rows of SAMPLE_SCHEMA as of LAION after download: images, one alt-text each, a fifth too small or long.

    `boxes_per_row` regions each, some outside and some tiny. Rows are numbered from `first`, which decides their keys.
    """
    draws = np.random.default_rng([seed, first])
    sizes = draws.integers(150, 1600, (2, count)).astype(np.int32)
    row = pa.array(np.arange(first, first + count)).cast(pa.string())
    columns: dict[str, pa.Array] = {
        "key": _hex_digits(draws, count, 32),
        "source": _same("laion", count),
        "source_row": row,
        "split": _same("train", count),
        "kind": _same("image", count),
        "url": pc.binary_join_element_wise("https://images.example.org/photos/", row, ".jpg", ""),
        "captions": _captions(draws, count),
        "concepts": _concepts(draws, sizes, count, boxes_per_row),
        "claimed_width": pa.array(sizes[0]),
        "claimed_height": pa.array(sizes[1]),
        "licence": _same("", count),
        "author": _same("", count),
        "media": _struct(
            SAMPLE_SCHEMA.field("media").type,
            kind=_same("image", count),
            sha256=_hex_digits(draws, count, 64),
            bytes=pa.array(draws.integers(20_000, 200_000, count)),
            width=pa.array(sizes[0]),
            height=pa.array(sizes[1]),
            format=_same("jpeg", count),
            num_frames=pa.array(np.ones(count, np.int32)),
            phash=_same("", count),
        ),
    }
    arrays = [columns.get(field.name) for field in SAMPLE_SCHEMA]
    filled = [
        pa.nulls(count, field.type) if array is None else array.cast(field.type)
        for field, array in zip(SAMPLE_SCHEMA, arrays, strict=True)
    ]
    return pa.table(filled, schema=SAMPLE_SCHEMA)


def _captions(draws: np.random.Generator, count: int) -> pa.Array:
    items = {"text": _texts(draws, count, 12), "language": _same("en", count), "origin": _same("alt", count)}
    values = _struct(SAMPLE_SCHEMA.field("captions").type.value_type, **items)
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), values)


def _concepts(draws: np.random.Generator, sizes: np.ndarray, rows: int, boxes_per_row: int) -> pa.Array:
    count = rows * boxes_per_row
    width, height = np.repeat(sizes, boxes_per_row, axis=1).astype(np.float64)
    # Corners are drawn so that about one box in ten is outside, and one in ten is tiny.
    x, y = draws.random((2, count)) * (width, height) * 0.6
    w, h = draws.random((2, count)) ** 2 * (width, height) * 0.5
    sides = [pa.array(np.round(side, 2)) for side in (x, y, w, h)]
    values = _struct(
        SAMPLE_SCHEMA.field("concepts").type.value_type,
        grain=_same("region", count),
        text=_texts(draws, count, 6),
        box=pa.StructArray.from_arrays(sides, fields=[pa.field(*field) for field in BOX_FIELDS]),
        attributes=pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.string())),
        annotation_id=pa.array(np.arange(count)).cast(pa.string()),
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * boxes_per_row), values)


def _texts(draws: np.random.Generator, count: int, most: int) -> pa.Array:
    """Texts of 1 to `most` words."""
    lengths = draws.integers(1, most + 1, count)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    words = pa.array(WORDS).take(pa.array(draws.integers(0, len(WORDS), offsets[-1])))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words), " ")


def _hex_digits(draws: np.random.Generator, count: int, chars: int) -> pa.Array:
    """Random texts of hex digits, as incompressible as real keys and checksums."""
    data = np.frombuffer(b"0123456789abcdef", np.uint8)[draws.integers(0, 16, count * chars, np.uint8)]
    offsets = np.arange(count + 1, dtype=np.int32) * chars
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _same(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), count)


def _struct(struct: pa.StructType, **fields: pa.Array) -> pa.StructArray:
    arrays = [fields[field.name].cast(field.type) for field in struct]
    return pa.StructArray.from_arrays(arrays, fields=list(struct))
