"""Conceptual Captions 3M: one sample per line of a TSV without a header, caption first, then URL.

Role: `rows`. The file is read line by line. Quotes are literal and "nan" or "null" are words, so no CSV reader is
used.
"""

from collections import Counter
from collections.abc import Iterator

from x2vlm.data.readers.source import Source
from x2vlm.data.tables.lines import numbered_texts
from x2vlm.data.tables.rows import BadRow
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Caption, Drop, MediaKind, Sample

LOOK = 100  # one of the first LOOK lines must hold a good row, or it is the wrong file


def read_cc3m(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order; the row key is the zero-based line number.

    SourceUnavailable if none of the first lines has a caption and a URL, for example because the columns are swapped
    as in CC12M.
    """
    return read_pairs(source, seen, url_first=False, name="CC3M", other="CC12M")


def read_pairs(
    source: Source, seen: Counter[str], *, url_first: bool, name: str, other: str
) -> Iterator[Sample | Drop]:
    """Samples from lines of a URL and a caption in either order; `other` is the data set with the other order."""
    good = swapped = number = 0
    with source.reading("rows"):
        for number, line in numbered_texts(source.file("rows"), source.within):
            seen["rows"] += 1
            row = _row(source, str(number), line, url_first)
            good += isinstance(row, Sample) and "://" in row.url
            swapped += isinstance(row, Sample) and "://" in row.captions[0].text and "://" not in row.url
            if number + 1 == LOOK and not good:
                break
            yield row
    if not source.is_first_slice:
        return
    if not seen["rows"]:
        source.fail("rows", "the file is empty", "Download it again")
    if not good:
        columns = "a URL, a tab and a caption" if url_first else "a caption, a tab and a URL"
        hint = f"caption and URL are swapped, as in {other}" if swapped else f"expected {columns} per line"
        problem = f"none of its first {min(number + 1, LOOK)} rows is a {name} row: {hint}"
        source.fail("rows", problem, "Check the card's reader and download the file again")


def _row(source: Source, row: str, line: str | BadRow, url_first: bool) -> Sample | Drop:
    if isinstance(line, BadRow):
        return source.drop_bad(line, row)
    columns = line.split("\t")
    if len(columns) != 2:
        return source.drop(row, "wrong_column_count", f"{len(columns)} columns, 2 expected", value=len(columns))
    text, url = reversed(columns) if url_first else columns
    return web_pair(source, row, url, text)


def web_pair(source: Source, row: str, url: str, text: str, kind: MediaKind = "image") -> Sample | Drop:
    """The sample of an image or clip on the web with its text, or a drop where one of them is empty."""
    url, text = url.strip(), clean_text(text)
    if not url:
        return source.drop(row, "missing_url")
    if not text:
        return source.drop(row, "empty_caption")
    return source.sample(row, url, kind, captions=(Caption(text, source.language, "alt"),))
