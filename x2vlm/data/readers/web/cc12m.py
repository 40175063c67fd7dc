"""Conceptual 12M: one sample per line of a TSV without a header, URL first, then caption - the reverse of CC3M.

Roles: `rows`, and optionally `hashes`, the published hashes of the file behind each URL
(`x2vlm.data.readers.hashes`). Names of people are replaced by `<PERSON>` upstream.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from x2vlm.data.readers.hashes import HashList
from x2vlm.data.readers.source import Source
from x2vlm.data.readers.web.cc3m import read_pairs
from x2vlm.data.tables.lines import numbered_texts
from x2vlm.samples import Drop, Sample


def read_cc12m(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order; the row key is the zero-based line number.

    SourceUnavailable if none of the first lines has a URL and a caption, for example because the file is CC3M's.
    """
    wanted = frozenset(_urls(source)) if source.within and "hashes" in source.files else None
    with HashList(source, wanted) as hashes:
        for row in read_pairs(source, seen, url_first=True, name="CC12M", other="CC3M"):
            yield replace(row, published_hash=hashes.of(row.url)) if isinstance(row, Sample) else row


def _urls(source: Source) -> Iterator[str]:
    """The URLs of a slice."""
    with source.reading("rows"):
        for _, line in numbered_texts(source.file("rows"), source.within):
            if isinstance(line, str):
                yield line.split("\t", 1)[0].strip()
