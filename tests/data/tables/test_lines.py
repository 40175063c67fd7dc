"""Lines and JSON lines: packed in every way, cut off, and with lines that are no good."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from x2vlm.data.tables import lines
from x2vlm.data.tables.json_rows import json_rows
from x2vlm.data.tables.lines import text_lines
from x2vlm.data.tables.rows import BadRow, Row, UnreadableTable


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def packed(kind: str, content: bytes) -> bytes:
    pack = {"plain": bytes, "gz": gzip.compress, "zst": zstd}[kind]
    half = len(content) // 2  # two members, as concatenated files have
    return pack(content[:half]) + pack(content[half:])


@pytest.mark.parametrize("kind", ["plain", "gz", "zst"])
def test_a_line_that_is_no_text_does_not_end_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(packed(kind, b"\xef\xbb\xbfone\r\n\ncaf\xe9\na\0b\n" + "été".encode()))
    found = [line.rule if isinstance(line, BadRow) else line for line in text_lines(path)]
    assert found == ["one", "", "not_utf8", "nul_byte", "été"]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_file_that_is_cut_off_says_after_which_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.tsv"
    content = b"".join(b"%d %d\n" % (number, number * 7919 % 10007) for number in range(50_000))
    path.write_bytes({"gz": gzip.compress, "zst": zstd}[kind](content)[:-200])
    found = text_lines(path)
    number = 0
    try:
        for number, line in enumerate(found, start=1):
            assert str(line).startswith(f"{number - 1} ")
        message = ""
    except UnreadableTable as error:
        message = str(error)
    assert number > 30_000
    assert f"not readable after line {number}: " in message
    assert message.endswith("truncated; download it again")


def test_a_line_without_end_is_skipped_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_LIMIT", 100)
    path = tmp_path / "t.tsv"
    path.write_bytes(b"a\n" + b"x" * 1000 + b"\nb\n" + b"y" * 99 + b"\n" + b"z" * 250)
    found = [line.rule if isinstance(line, BadRow) else line[:3] for line in text_lines(path)]
    assert found == ["a", "line_too_long", "b", "yyy", "line_too_long"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"a": "x", "b": 1}', {"a": "x", "b": 1}),
        (b'{"a": NaN, "b": [null, NaN]}', {"a": None, "b": [None, None]}),
        (b'{"a": "\\ud83d"}', {"a": "\ufffd"}),
        (b'{"a": "caf\xe9"}', "not_utf8"),
        (b'{"a": ', "malformed_json"),
        (b"[1]", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "malformed_json"),
    ],
)
def test_json_lines(tmp_path: Path, line: bytes, expected: Any) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": "first"}\n\n' + line + b'\n{"a": "last"}')
    rows = list(json_rows(path))
    assert [row.number for row in rows] == [0, 1, 2]
    assert [row.line for row in rows] == [1, 3, 4]
    found = [row.values if isinstance(row, Row) else row.rule for row in rows]
    assert found == [{"a": "first"}, expected, {"a": "last"}]
