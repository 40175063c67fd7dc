"""URLs of media for sources whose annotations contain none: an optional list that the user writes.

Role: `urls`, one line an image or video: its id (or file name), a tab, its URL. A URL may be anything that the
download stage accepts, for example a file below the `from` of the card's `url_base`.
"""

from contextlib import AbstractContextManager

from x2vlm.data.readers.join import Join
from x2vlm.data.readers.source import Source


class Locations(AbstractContextManager["Locations"]):
    """URLs by id, held on disk. Empty if the source has no role `urls`."""

    def __init__(self, source: Source) -> None:
        """SourceUnavailable names the first line that is not an id, a tab and a URL."""
        self._urls = Join()
        self._any = "urls" in source.files
        if self._any:
            with source.file("urls").open("rb") as file:
                for number, line in enumerate(file, start=1):
                    columns = [column.strip() for column in line.decode("utf-8", "replace").split("\t")]
                    if len(columns) != 2 or not all(columns):
                        source.fail("urls", f"line {number} is no id, tab and URL", "Correct the line or take it out")
                    self._urls.add_row(columns[0], {"url": columns[1]})

    def __exit__(self, *error: object) -> None:
        self._urls.__exit__(*error)

    def url(self, *names: str, otherwise: str) -> str:
        """The URL listed for the first of `names` that has one, or `otherwise`."""
        for name in names if self._any else ():
            if record := self._urls.row(name):
                return str(record["url"])
        return otherwise
