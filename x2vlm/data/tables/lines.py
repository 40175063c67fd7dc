"""Text files, line by line: a line that is no good does not end the file."""

from collections.abc import Iterator
from pathlib import Path

from x2vlm.data.tables.files import READ_ERRORS, open_text_bytes
from x2vlm.data.tables.rows import BadRow, UnreadableTable

LINE_LIMIT = 64 << 20  # bytes; a line of a known source has less than a thousandth of that


def byte_lines(path: Path) -> Iterator[bytes | BadRow]:
    """The lines of a file, plain or compressed, with their ends. A line of more than LINE_LIMIT bytes is a BadRow.

    Raises UnreadableTable, with the number of the last good line, where the file is cut off.
    """
    number = 0
    try:
        with open_text_bytes(path) as file:
            while line := file.readline(LINE_LIMIT):
                number += 1
                if len(line) < LINE_LIMIT or line.endswith(b"\n"):
                    yield line
                    continue
                while (rest := file.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                    pass
                yield BadRow(number - 1, number, "line_too_long", f"more than {LINE_LIMIT >> 20} MiB without an end")
    except READ_ERRORS as error:
        problem = f"not readable after line {number}: {error}"
        raise UnreadableTable(problem, "It is probably truncated; download it again") from None


def text_lines(path: Path) -> Iterator[str | BadRow]:
    """The lines of a file as texts without their ends; one that is not UTF-8 or holds NUL is a BadRow."""
    for number, line in enumerate(byte_lines(path)):
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield BadRow(number, number + 1, "not_utf8", str(error))
            continue
        yield BadRow(number, number + 1, "nul_byte", "a NUL byte") if "\0" in text else text
