"""JSON lines: one object a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from x2vlm.data.tables.lines import numbered_lines
from x2vlm.data.tables.rows import BadRow, ByteRange, Row
from x2vlm.data.tables.values import plain_value, without_lone_surrogates


def json_of(text: str | bytes) -> Any:
    """The value of a JSON text, without lone halves of surrogate pairs. ValueError says what is wrong."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    has_escapes = (
        (b"\\ud" in text or b"\\uD" in text) if isinstance(text, bytes) else ("\\ud" in text or "\\uD" in text)
    )
    return without_lone_surrogates(value) if has_escapes else value


def json_rows(path: Path, within: ByteRange | None = None) -> Iterator[Row | BadRow]:
    """The objects of a file, one a line; blank lines are no rows. Of a plain file, those that begin in `within`."""
    number = 0 if within is None else _rows_before(path, within.start)
    for at, line in numbered_lines(path, within):
        if isinstance(line, BadRow):
            yield line._replace(number=number)
        elif not line.strip():
            continue
        else:
            yield _row(number, at + 1, line)
        number += 1


def _rows_before(path: Path, start: int) -> int:
    """How many rows of a file begin before byte `start`."""
    before = numbered_lines(path, ByteRange(0, start)) if start else iter(())
    return sum(isinstance(line, BadRow) or bool(line.strip()) for _, line in before)


def _row(number: int, line_number: int, line: bytes) -> Row | BadRow:
    try:
        value = json_of(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(number, line_number, "not_utf8", str(error))
    except ValueError as error:
        return BadRow(number, line_number, "malformed_json", str(error))
    if not isinstance(value, dict):
        return BadRow(number, line_number, "malformed_json", "not an object")
    return Row(number, line_number, {name: plain_value(one) for name, one in value.items()})
