"""JSON files of any size, one record at a time.

`json.JSONDecoder.raw_decode` works on a buffer that slides over the file, so memory is bounded by a few times the
largest single record and never by the file. Yielded records are not kept. A broken file raises SourceUnavailable that
names the byte. Most of a COCO file is segmentations that are not read: their numbers are skipped by a regular
expression, which makes this twice as fast as `ijson` (`python -m tests.benchmarks.readers` measures both, and `ijson`
names no byte). Lone surrogates ("\\ud83d" without its second half), which UTF-8 cannot encode, become U+FFFD.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from x2vlm.data.readers.source import Source
from x2vlm.data.tables.values import without_lone_surrogates

CHUNK_BYTES = 1 << 20
MAX_RECORD_CHARS = 256 << 20  # far above any record of a known source; limit for a file that never closes a bracket
LONGEST_TOKEN = 16  # an error closer to the end of the buffer than this may be due to a truncated token
AROUND_NUMBERS = 1024  # so many characters before and after a list of numbers may belong to its record

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBERS = re.compile(r"[-+0-9.eE,\[\]\s]*")


class _Cursor:
    """A position in a JSON file: a buffer of decoded text, and the number of bytes before it."""

    def __init__(self, source: Source, role: str, file: BinaryIO) -> None:
        self._source, self._role = source, role
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._raw_decode = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._at = 0
        self._numbers_at = -1  # start of the next list of numbers to skip; before `_at` if that is not known
        self._bytes_before = 0  # of the file, before the buffer
        self._at_end = False
        if self._file.read(3) != codecs.BOM_UTF8:
            self._file.seek(0)
        else:
            self._bytes_before = 3

    def next_char(self) -> str:
        """The next character that is not white space, without taking it; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def take(self, expected: str) -> str:
        """Take the next character, which must be one of `expected`."""
        char = self.next_char()
        if not char or char not in expected:
            wanted = " or ".join(f"`{one}`" for one in expected)
            self.fail(f"expected {wanted}, found {f'`{char}`' if char else 'the end of the file'}")
        self._at += 1
        return char

    def value(self, unread: re.Pattern[str] | None = None) -> Any:
        """Take the next complete value; a list of numbers after what `unread` matches may come back empty.

        Of such a list only the brackets and the characters are checked, not the syntax of each number.
        """
        if not self.next_char():
            self.fail("expected a value, found the end of the file")
        while True:
            try:
                short = None if unread is None else self._decode_around_numbers(unread)
                value, end = short or self._raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos + LONGEST_TOKEN > len(self._buffer)
                if cut and self._read_more():
                    continue
                self.fail(error.msg, error.pos)
            except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
                self.fail(str(error))
            # A number may go on in the next chunk ("12" of "12.5e3").
            if end + LONGEST_TOKEN > len(self._buffer) and self._read_more():
                continue
            text_has_escapes = (
                self._buffer.find("\\ud", self._at, end) >= 0 or self._buffer.find("\\uD", self._at, end) >= 0
            )
            self._at = end
            return without_lone_surrogates(value) if text_has_escapes else value

    def _decode_around_numbers(self, unread: re.Pattern[str]) -> tuple[Any, int] | None:
        """(value, its end) with `[]` in place of the next list of numbers; None if that fails.

        The value is then decoded in full, so that values and errors are those of the decoder.
        """
        if self._numbers_at < self._at:
            found = unread.search(self._buffer, self._at)
            self._numbers_at = found.end() if found else len(self._buffer)
        before = self._numbers_at - self._at
        stop = _NUMBERS.match(self._buffer, self._numbers_at).end()  # type: ignore[union-attr]
        if before > AROUND_NUMBERS or stop == len(self._buffer):
            return None
        after = self._buffer.rfind("]", self._numbers_at, stop) + 1
        opened, closed = (self._buffer.count(bracket, self._numbers_at, after) for bracket in "[]")
        if not after or opened != closed:
            return None
        head, tail = self._buffer[self._at : self._numbers_at], self._buffer[after : after + AROUND_NUMBERS]
        try:
            value, end = self._raw_decode(f"{head}[]{tail}")
        except (ValueError, RecursionError):
            return None
        return value, self._at + end if end <= before else after + end - before - 2

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        """Raise SourceUnavailable about a position in the buffer, by default that of the next character."""
        before = self._buffer[: self._at if position is None else position]
        self._fail_at(problem, self._bytes_before + len(before.encode("utf-8")))

    def _fail_at(self, problem: str, byte: int) -> NoReturn:
        remedy = "The file is probably truncated; download it again"
        self._source.fail(self._role, f"not valid JSON: {problem} at byte {byte}", remedy)

    def _read_more(self) -> bool:
        """Lengthen the buffer; False at the end of the file. Each retry of a long record doubles it."""
        if self._at_end:
            return False
        used, left = self._buffer[: self._at], len(self._buffer) - self._at
        if left > MAX_RECORD_CHARS:
            self.fail(f"a single record of more than {MAX_RECORD_CHARS >> 20} million characters")
        data = self._file.read(max(CHUNK_BYTES, left))
        self._bytes_before += len(used.encode("utf-8"))
        self._buffer, self._at, self._numbers_at = self._buffer[self._at :], 0, -1
        try:
            self._buffer += self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = self._file.tell() - len(error.object) + error.start
            self._fail_at(f"not UTF-8 ({error.reason})", at)
        self._at_end = not data
        return True


def stream_list(source: Source, role: str, expected: str) -> Iterator[Any]:
    """The elements of a file that is one JSON array. SourceUnavailable, with remedy `expected`, for anything else."""
    with source.file(role).open("rb") as file:
        cursor = _Cursor(source, role, file)
        if cursor.next_char() not in ("[", ""):
            source.fail(role, "not a list of objects at the top level", expected)
        yield from _elements(cursor)
        _finish(cursor)


def stream_dict(source: Source, role: str, expected: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of a file that is one JSON object, values whole, keys in file order and possibly repeated."""
    with source.file(role).open("rb") as file:
        cursor = _Cursor(source, role, file)
        if cursor.next_char() not in ("{", ""):
            source.fail(role, "not a JSON object at the top level", expected)
        for key in _keys(cursor):
            yield key, cursor.value()
        _finish(cursor)


def stream_sections(
    source: Source, role: str, lists: tuple[str, ...], expected: str, unread: str = ""
) -> Iterator[tuple[str, Iterator[Any] | None]]:
    """(key, its elements) for each key of `lists` in a file that is one JSON object, in file order.

    The elements are None where the value is not an array. Elements that the caller does not consume are skipped, as is
    every other key: skipped arrays are read element by element, without keeping them. Lists of numbers under the key
    `unread` of elements may come back empty.
    """
    pattern = re.compile(rf'"{re.escape(unread)}"\s*:\s*(?=\[)') if unread else None
    with source.file(role).open("rb") as file:
        cursor = _Cursor(source, role, file)
        if cursor.next_char() not in ("{", ""):
            source.fail(role, "not a JSON object at the top level", expected)
        for key in _keys(cursor):
            if cursor.next_char() != "[":
                cursor.value()
                if key in lists:
                    yield key, None
                continue
            elements = _elements(cursor, pattern)
            if key in lists:
                yield key, elements
            for _ in elements:
                pass
        _finish(cursor)


def _keys(cursor: _Cursor) -> Iterator[str]:
    """The keys of an object; the caller takes the value before the next key."""
    cursor.take("{")
    if cursor.next_char() == "}":
        cursor.take("}")
        return
    while True:
        if cursor.next_char() != '"':
            cursor.take('"')
        key = cursor.value()
        cursor.take(":")
        yield key
        if cursor.take(",}") == "}":
            return


def _elements(cursor: _Cursor, unread: re.Pattern[str] | None = None) -> Iterator[Any]:
    cursor.take("[")
    if cursor.next_char() == "]":
        cursor.take("]")
        return
    while True:
        yield cursor.value(unread)
        if cursor.take(",]") == "]":
            return


def _finish(cursor: _Cursor) -> None:
    if cursor.next_char():
        cursor.fail("data after the end of the JSON value")
