"""Conceptual Captions 3M: one sample per line of a TSV without a header, caption first, then URL.

Role: `rows`. The file is read line by line. Quotes are literal and "nan" or "null" are words, so no CSV reader is
involved.
"""

from collections import Counter
from collections.abc import Iterator

from x2vlm.data.readers.source import Source
from x2vlm.data.texts import clean_text
from x2vlm.samples import Caption, Drop, Sample

LOOK = 100  # that many first lines must hold one good row, or the file is not CC3M


def read_cc3m(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order; the row key is the zero-based line number.

    SourceUnavailable if none of the first lines has a caption and a URL, for example because the columns are swapped
    as in CC12M.
    """
    good = swapped = number = 0
    with source.file("rows").open("rb") as file:
        for number, line in enumerate(file):
            seen["rows"] += 1
            row = _row(source, str(number), line)
            good += isinstance(row, Sample) and "://" in row.url
            swapped += isinstance(row, Sample) and "://" in row.captions[0].text and "://" not in row.url
            if number + 1 == LOOK and not good:
                break
            yield row
    if not seen["rows"]:
        source.fail("rows", "the file is empty", "Download it again")
    if not good:
        hint = "caption and URL are swapped, as in CC12M" if swapped else "expected a caption, a tab and a URL per line"
        problem = f"none of its first {min(number + 1, LOOK)} rows is a CC3M row: {hint}"
        source.fail("rows", problem, "Check the card's reader and download the file again")


def _row(source: Source, row: str, line: bytes) -> Sample | Drop:
    try:
        columns = line.rstrip(b"\r\n").decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return source.drop(row, "not_utf8", str(error))
    if len(columns) != 2:
        return source.drop(row, "wrong_column_count", f"{len(columns)} columns, 2 expected", value=len(columns))
    caption, url = clean_text(columns[0]), columns[1].strip()
    if not url:
        return source.drop(row, "missing_url")
    if not caption:
        return source.drop(row, "empty_caption")
    return Sample(
        key=source.key(row),
        source=source.name,
        source_row=row,
        split=source.split,
        kind="image",
        url=url,
        captions=(Caption(caption, source.language, "alt"),),
        licence=source.licence,
    )
