"""URLs of media for sources whose annotations contain none: an optional list that the user writes.

Role: `urls`, one line an image or video: its id (or file name), a tab, its URL. A URL may be anything that the
download stage accepts, for example a file below the `from` of the card's `url_base`.
"""

import logging
from contextlib import AbstractContextManager

from x2vlm.data.readers.join import Join
from x2vlm.data.readers.source import Source
from x2vlm.data.tables.lines import text_lines
from x2vlm.data.tables.rows import BadRow

LOOK = 100  # one of the first LOOK lines must be good, or it is the wrong file
logger = logging.getLogger(__name__)


class Locations(AbstractContextManager["Locations"]):
    """URLs by id, held on disk. Empty if the source has no role `urls`."""

    def __init__(self, source: Source) -> None:
        """Lines that are not an id, a tab and a URL are skipped with a warning that gives their numbers.

        SourceUnavailable if none of the first LOOK lines is one.
        """
        self._urls = Join()
        self._any = "urls" in source.files
        if self._any:
            try:
                self._read(source)
            except BaseException:
                self._urls.__exit__()
                raise

    def _read(self, source: Source) -> None:
        good, bad = 0, []
        with source.reading("urls"):
            for number, line in enumerate(text_lines(source.file("urls")), start=1):
                columns = [] if isinstance(line, BadRow) else [column.strip() for column in line.split("\t")]
                if len(columns) == 2 and all(columns):
                    good += 1
                    self._urls.add_row(columns[0], {"url": columns[1]})
                elif isinstance(line, BadRow) or line.strip():
                    bad.append(number)
                if number >= LOOK and not good:
                    break
        if bad and not good:
            source.fail("urls", f"line {bad[0]} is no id, tab and URL, nor is any other", "Correct the lines")
        if bad:
            lines = ", ".join(map(str, bad[:10]))
            logger.warning("card=%s role=urls lines_skipped=%d first=%s", source.card, len(bad), lines)

    def __exit__(self, *error: object) -> None:
        self._urls.__exit__(*error)

    def url(self, *names: str, otherwise: str) -> str:
        """The URL listed for the first of `names` that has one, or `otherwise`."""
        for name in names if self._any else ():
            if record := self._urls.row(name):
                return str(record["url"])
        return otherwise
