"""Parquet: texts of every Arrow type, texts that are no texts, doubled columns, and damaged row groups."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from x2vlm.data.tables.parquet_rows import ParquetTable, is_textual
from x2vlm.data.tables.rows import BadRow, UnreadableTable
from x2vlm.data.tables.values import text_of, texts_of

TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.binary())),
]


def not_utf8(kind: pa.DataType, values: list[bytes]) -> pa.Array:
    """Texts whose bytes nobody checked: what a writer in C++ leaves behind."""
    stored = pa.array(values, pa.binary())
    if pa.types.is_dictionary(kind):
        inner = not_utf8(kind.value_type, values)
        return pa.DictionaryArray.from_arrays(pa.array(range(len(values)), kind.index_type), inner)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return stored.cast(kind)
    return pa.Array.from_buffers(pa.string(), len(values), stored.buffers()).cast(kind, safe=False)


def read(path: Path, *columns: str) -> list[Any]:
    """One entry a row: the values of `columns`, or the rule that it breaks."""
    with ParquetTable(path) as table:
        rows = list(table.rows(columns))
        assert [row.number for row in rows] == list(range(table.num_rows))
    return [row.rule if isinstance(row, BadRow) else tuple(row.values[name] for name in columns) for row in rows]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_texts_of_every_type_are_texts(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["one", None, "café"], pa.string())
    column = texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts.cast(kind)
    pq.write_table(pa.table({"text": column, "other": [1, 2, 3]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", "text") == [("one",), (None,), ("café",)]
    assert is_textual(kind)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if not pa.types.is_string_view(kind)], ids=str)
def test_a_text_that_is_none_costs_its_row_alone(tmp_path: Path, kind: pa.DataType) -> None:
    column = not_utf8(kind, [b"one dog", b"caf\xe9", b"two"])
    pq.write_table(pa.table({"url": ["a", "b", "c"], "text": column}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", "url", "text") == [("a", "one dog"), "not_utf8", ("c", "two")]
    assert read(tmp_path / "t.parquet", "url") == [("a",), ("b",), ("c",)]  # a column that nobody asked for


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        (pa.array([["a", "b"], [], None]), [["a", "b"], [], []]),
        (pa.array([[b"a", None], [b"b"], None]), [["a"], ["b"], []]),
        (pa.array([["a"], ["b", "c"], ["d"]], pa.list_(pa.large_string())), [["a"], ["b", "c"], ["d"]]),
        (pa.array(["a", None, ""]), [["a"], [], []]),
    ],
)
def test_lists_of_texts(tmp_path: Path, lists: pa.Array, expected: list[list[str]]) -> None:
    pq.write_table(pa.table({"text": lists}), tmp_path / "t.parquet")
    assert [texts_of(text) for (text,) in read(tmp_path / "t.parquet", "text")] == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (float("inf"), ""),
        (b"en", "en"),
        (b"\xe9", "\ufffd"),
        ("nan", "nan"),  # Southern Min by its language code
        (12, "12"),
        (12.0, "12"),
        (0.5, "0.5"),
        (["a"], ""),
        ({"name": "a"}, ""),
        (True, "True"),
    ],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert text_of(value) == text


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    columns = [["u", "v", None, "x"], ["u", "w", "y", "x"], ["a", "b", "c", "d"]]
    table = pa.Table.from_arrays([pa.array(column) for column in columns], names=["url", "url", "text"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", "url", "text") == [("u", "a"), "doubled_column", ("y", "c"), ("x", "d")]
    assert read(tmp_path / "t.parquet", "text") == [("a",), ("b",), ("c",), ("d",)]


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_damaged_row_group_costs_its_rows_alone(tmp_path: Path, group: int) -> None:
    path = tmp_path / "t.parquet"
    texts = [f"text {number}" for number in range(30)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, use_dictionary=False, compression="none")
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(group).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        [0xFF] * column.total_compressed_size
    )
    path.write_bytes(data)
    rows: list[Any] = [(text,) for text in texts]
    rows[group * 10 : group * 10 + 10] = ["unreadable_row_group"] * 10
    assert read(path, "text") == rows


def test_a_flipped_bit_is_found_where_pages_have_checksums(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    settings = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": ["abcdef"]}), path, write_page_checksum=True, **settings)
    path.write_bytes(path.read_bytes().replace(b"abcdef", b"abcdeg", 1))
    assert read(path, "text") == ["unreadable_row_group"]


def test_packed_files_are_read_and_others_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(data))
    assert read(tmp_path / "t.parquet.gz", "text") == [("a",), ("b",)]
    for name, content in (("cut", data[:-10]), ("html", b"<html>"), ("empty", b""), ("gz", gzip.compress(data)[:-9])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableTable, match="not readable as Parquet after row 0"):
            read(tmp_path / name, "text")
