"""Text files, line by line: a line that is no good does not end the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from x2vlm.data.tables.files import READ_ERRORS, open_text_bytes
from x2vlm.data.tables.rows import BadRow, ByteRange, UnreadableTable

LINE_LIMIT = 64 << 20  # bytes; a line of a known source has less than a thousandth of that


BLOCK = 1 << 20


def byte_lines(path: Path) -> Iterator[bytes | BadRow]:
    """The lines of a file, plain or compressed, with their ends. A line of more than LINE_LIMIT bytes is a BadRow.

    Raises UnreadableTable, with the number of the last good line, where the file is cut off.
    """
    return (line for _, line in numbered_lines(path))


def numbered_lines(path: Path, within: ByteRange | None = None) -> Iterator[tuple[int, bytes | BadRow]]:
    """`byte_lines` with their zero-based numbers in the file; of a plain file, those that begin in `within`.

    Of what lies before a slice only the ends of lines are counted, at about 1 GB/s.
    """
    number = 0
    try:
        with open_text_bytes(path) as file:
            if within is not None and within.start:
                number = _skip_to(file, within.start)
            left = within.stop - file.tell() if within is not None else None
            while (left is None or left > 0) and (line := file.readline(LINE_LIMIT)):
                number += 1
                taken = len(line)
                if len(line) < LINE_LIMIT or line.endswith(b"\n"):
                    yield number - 1, line
                else:
                    while (rest := file.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                        taken += len(rest)
                    taken += len(rest)
                    reason = f"more than {LINE_LIMIT >> 20} MiB without an end"
                    yield number - 1, BadRow(number - 1, number, "line_too_long", reason)
                left = None if left is None else left - taken
    except READ_ERRORS as error:
        problem = f"not readable after line {number}: {error}"
        raise UnreadableTable(problem, "It is probably truncated; download it again") from None


def _skip_to(file: BinaryIO, start: int) -> int:
    """Go to the first line that begins at byte `start` (above 0) or after it; returns how many begin before."""
    file.seek(0)
    lines, left = 0, start - 1
    while left and (block := file.read(min(left, BLOCK))):
        lines += block.count(b"\n")
        left -= len(block)
    while block := file.readline(BLOCK):  # the rest of the line that holds the byte before `start`
        if block.endswith(b"\n"):
            return lines + 1
    return lines


def text_lines(path: Path) -> Iterator[str | BadRow]:
    """The lines of a file as texts without their ends; one that is not UTF-8 or holds NUL is a BadRow."""
    return (line for _, line in numbered_texts(path))


def numbered_texts(path: Path, within: ByteRange | None = None) -> Iterator[tuple[int, str | BadRow]]:
    """`text_lines` with their zero-based numbers in the file; of a plain file, those that begin in `within`."""
    for number, line in numbered_lines(path, within):
        if isinstance(line, BadRow):
            yield number, line
            continue
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield number, BadRow(number, number + 1, "not_utf8", str(error))
            continue
        yield number, BadRow(number, number + 1, "nul_byte", "a NUL byte") if "\0" in text else text
