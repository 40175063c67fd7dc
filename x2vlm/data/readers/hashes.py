"""Published hashes of the files behind a source's URLs, in one spelling.

A hash is written "md5:<32 hex digits>" or "sha256:<64 hex digits>", in lower case; "" where none is published. It is of
the bytes as fetched when the list was made: a server that has re-encoded its images since returns other bytes.
"""

import logging
from collections.abc import Container
from contextlib import AbstractContextManager

from x2vlm.data.readers.join import Join
from x2vlm.data.readers.source import Source
from x2vlm.data.tables.lines import text_lines
from x2vlm.data.tables.rows import BadRow

HEX_DIGITS = {"md5": 32, "sha256": 64}
LOOK = 100  # one of the first LOOK lines must hold a hash, or it is the wrong file
logger = logging.getLogger(__name__)


def published_hash(algorithm: str, value: object) -> str:
    """`value` as "<algorithm>:<hex>", or "" if it is not a text of the right number of hex digits."""
    text = value.strip().lower() if isinstance(value, str) else ""
    is_hash = len(text) == HEX_DIGITS[algorithm] and all(digit in "0123456789abcdef" for digit in text)
    return f"{algorithm}:{text}" if is_hash else ""


class HashList(AbstractContextManager["HashList"]):
    """Hashes by URL, held on disk. Empty if the source has no role `hashes`.

    Role `hashes`, plain or gzip: URL, tab, SHA256, tab, MD5 (CC12M's `cc_hashes/cc12m.tsv.gz`). The SHA256 is taken, or
    the MD5 where that is missing. The first line of a URL counts. Memory is that of `x2vlm.data.readers.join`: 150 MiB
    at a million lines, with 260 bytes of disk and 24 us of CPU a line to fill and look up (measured): CC12M's 12.4
    million take about 5 minutes and 3.3 GB of disk.
    """

    def __init__(self, source: Source, wanted: Container[str] | None = None) -> None:
        """Of the URLs in `wanted`, where it is given: the lines of all others are passed over, at 2 us each.

        SourceUnavailable if no line of the first 100 holds a hash, or the file is truncated. Later lines without one
        are skipped; their number is logged.
        """
        self._wanted = wanted
        self._hashes = Join()
        self._any = "hashes" in source.files
        if self._any:
            try:
                self._read(source)
            except BaseException:
                self._hashes.__exit__()
                raise

    def __exit__(self, *error: object) -> None:
        self._hashes.__exit__(*error)

    def of(self, url: str) -> str:
        """The hash published for a URL, "" if there is none."""
        record = self._hashes.row(url) if self._any else None
        return "" if record is None else str(record["hash"])

    def _read(self, source: Source) -> None:
        good = bad = number = 0
        with source.reading("hashes"):
            for number, line in enumerate(text_lines(source.file("hashes")), start=1):
                columns = [] if isinstance(line, BadRow) else [column.strip() for column in line.split("\t")]
                found = _best_hash(columns)
                good, bad = good + bool(found), bad + (not found)
                if found and (self._wanted is None or columns[0] in self._wanted):
                    self._hashes.add_row(columns[0], {"hash": found})
                if number == LOOK and not good:
                    break
        if number and not good:  # an empty list is allowed
            problem = f"none of its first {min(number, LOOK)} lines is a URL, a SHA256 and an MD5, with tabs between"
            source.fail("hashes", problem, "Check the card, or take the role out: it is optional")
        logger.info("card=%s role=hashes lines=%d lines_without_hash=%d", source.card, number, bad)


def _best_hash(columns: list[str]) -> str:
    if len(columns) != 3 or not columns[0]:
        return ""
    return published_hash("sha256", columns[1]) or published_hash("md5", columns[2])
