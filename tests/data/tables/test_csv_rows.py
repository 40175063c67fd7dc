"""CSV: one bad row never ends a file, and what a stray quote swallowed is read again."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.tables.csv_columns import csv_columns
from x2vlm.data.tables.csv_rows import Record, csv_records, csv_rows
from x2vlm.data.tables.rows import BadRow, Row, UnreadableTable

HEADER = b"id,url,text\n"
GOOD = [b"8,http://a/8,eight\n", b"9,http://a/9,\xc3\xa9t\xc3\xa9\n"]


def read(path: Path, content: bytes, *required: str) -> tuple[list[dict[str, str]], list[tuple[int, int, str]]]:
    """The values of the good rows; number, line and rule of the bad ones."""
    path.write_bytes(content)
    rows = list(csv_rows(path, required or ("id", "text")))
    assert [row.number for row in rows] == list(range(len(rows)))
    good = [row.values for row in rows if isinstance(row, Row)]
    return good, [(row.number, row.line, row.rule) for row in rows if isinstance(row, BadRow)]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (b'1,u,"old" film\n', "malformed_csv"),
        (b'1,u,"the \\"best\\" clip"\n', "malformed_csv"),
        (b'1,u,"5 feet tall\n', "malformed_csv"),
        (b'1,u,"never closed, with "" inside\n', "malformed_csv"),
        (b'"1"x,u,a\n', "malformed_csv"),
        (b"1,u," + b"word " * 40_000 + b"\n", "field_too_long"),
        (b'1,u,"' + b"word " * 40_000 + b'"\n', "field_too_long"),
        (b"1,u,caf\xe9\n", "not_utf8"),
        (b"1,u\xff\xfe,text\n", "not_utf8"),
        (b"1,u,half a pair \xed\xa0\xbd\n", "not_utf8"),
        (b'1,u,"caf\xe9\nand tea"\n', "not_utf8"),
        (b"1,u,a\0b\n", "nul_byte"),
        (b"\0\0\0\0,u,a\n", "nul_byte"),
        (b"1,u\n", "wrong_column_count"),
        (b"1,u,a,b\n", "wrong_column_count"),
        (b"\n", "wrong_column_count"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_row_is_one_bad_row_wherever_it_stands(tmp_path: Path, row: bytes, rule: str, place: int) -> None:
    rows = [*GOOD[:place], row, *GOOD[place:]]
    good, bad = read(tmp_path / "t.csv", HEADER + b"".join(rows))
    assert [values["id"] for values in good] == ["8", "9"]
    assert good[1]["text"] == "été"
    assert bad == [(place, place + 2, rule)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_rows_between_two_stray_quotes_are_read(tmp_path: Path, end: bytes) -> None:
    lines = [b'1,u,"open', b"2,u,two", b'3,u,"three, and ""more"""', b'4,u,6" tall', b'5,u,"open again', b"6,u,six"]
    good, bad = read(tmp_path / "t.csv", HEADER.strip() + end + end.join(lines) + end)
    assert [values["id"] for values in good] == ["2", "3", "4", "6"]
    assert [(line, rule) for _, line, rule in bad] == [(2, "malformed_csv"), (6, "malformed_csv")]
    assert good[1]["text"] == 'three, and "more"'


def test_line_ends_inside_quotes_are_text_and_the_last_line_needs_no_end(tmp_path: Path) -> None:
    good, bad = read(tmp_path / "t.csv", b'id,text\n1,"a\nb\r\nc"\n2,"d ""e""\n"\n3,f')
    assert [values["text"] for values in good] == ["a\nb\r\nc", 'd "e"\n', "f"]
    assert bad == []


def test_a_quote_is_searched_for_in_bounds(tmp_path: Path) -> None:
    """A stray quote at the beginning of 3 MB costs one look ahead and not the file."""
    rows = b"".join(b"%d,u,%s\n" % (number, b"x" * 50) for number in range(50_000))
    good, bad = read(tmp_path / "t.csv", HEADER + b'0,u,"open\n' + rows)
    assert (len(good), bad) == (50_000, [(0, 2, "malformed_csv")])


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (b"id,text,id\n", b"1,a,1\n", {"id": "1", "text": "a"}),
        (b"id,text,id\n", b"1,a,2\n", None),
        (b"id,text,text\n", b"1,,b\n", {"id": "1", "text": "b"}),
        (b"id,text,note,note\n", b"1,a,x,y\n", {"id": "1", "text": "a", "note": "x"}),
    ],
)
def test_a_column_that_is_there_twice(
    tmp_path: Path, header: bytes, row: bytes, expected: dict[str, str] | None
) -> None:
    good, bad = read(tmp_path / "t.csv", header + row)
    assert good == ([] if expected is None else [expected])
    assert bad == ([(0, 2, "doubled_column")] if expected is None else [])


def test_packed_files_and_byte_order_marks_change_nothing(tmp_path: Path) -> None:
    content = HEADER + GOOD[0] + b"7,u,caf\xe9\n" + GOOD[1]
    expected = read(tmp_path / "plain.csv", content)
    assert read(tmp_path / "bom.csv", b"\xef\xbb\xbf" + content) == expected
    assert read(tmp_path / "t.csv.gz", gzip.compress(b"\xef\xbb\xbf" + content)) == expected
    assert len(expected[0]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 has no column id, text; it has nothing"),
        (b"a,b\n1,2\n", "line 1 has no column id, text; it has a, b"),
        (b"id,caf\xe9\n1,2\n", "line 1 has no column text; it has id, caf"),
        ("id,text\n1,a\n".encode("utf-16"), "it is UTF-16. Convert it: iconv"),
        (gzip.compress(b"id,text\n" + bytes(range(256)) * 300)[:-9], "not readable after line .*truncated"),
    ],
)
def test_a_file_that_is_no_such_table(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UnreadableTable, match=message):
        read(tmp_path / "t.csv", content)


def test_a_header_with_a_bad_name_still_names_the_others(tmp_path: Path) -> None:
    good, bad = read(tmp_path / "t.csv", b"id,caf\xe9,text\n1,x,a\n2,y,b\n")
    assert [(values["id"], values["text"]) for values in good] == [("1", "a"), ("2", "b")]
    assert bad == []


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


@settings(deadline=None)
@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_what_a_csv_writer_wrote_is_read_as_it_was(tmp_path_factory: pytest.TempPathFactory, rows, end: str) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    path.write_bytes(text.getvalue().encode())
    records = list(csv_records(path))
    assert [record.fields for record in records if isinstance(record, Record)] == [["a", "b", "c"], *rows]
    assert len(records) == len(rows) + 1


@pytest.mark.parametrize(
    ("rows", "numbers", "bad"),
    [
        (b"1,a\n2,b\n", [0, 1], []),
        (b"1,a\n2\n3,c\n", [0, 2], [(1, "wrong_column_count", "2")]),
        (b"1,a\n2,\xe9\n3,c\n", [0, 2], [(1, "not_utf8", "2")]),
        (b'1,a\n2,"b" c\n3,"c"\n', [0, 2], [(1, "malformed_csv", "")]),
        (b'1,"a\n2,b\n3,c\n', [1, 2], [(0, "malformed_csv", "")]),
    ],
)
def test_columns_by_arrow_and_by_row_agree(
    tmp_path: Path, rows: bytes, numbers: list[int], bad: list[tuple[int, str, str]]
) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,text\n" + rows)
    found = csv_columns(tmp_path / "t.csv", ("id", "text"))
    assert found.numbers == numbers
    assert [(row.number, row.rule, first) for row, first in found.bad] == bad
    assert found.table["id"].to_pylist() == [str(number + 1) for number in numbers]
