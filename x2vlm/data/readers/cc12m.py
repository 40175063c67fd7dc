"""Conceptual 12M: one sample per line of a TSV without a header, URL first, then caption - the reverse of CC3M.

Role: `rows`. Names of people read `<PERSON>` and stay so here. The published hash list (cc12m.tsv.gz) is not read: a
row has no place for what its bytes should be.
"""

from collections import Counter
from collections.abc import Iterator

from x2vlm.data.readers.cc3m import read_pairs
from x2vlm.data.readers.source import Source
from x2vlm.samples import Drop, Sample


def read_cc12m(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order; the row key is the zero-based line number.

    SourceUnavailable if none of the first lines has a URL and a caption, for example because the file is CC3M's.
    """
    return read_pairs(source, seen, url_first=True, name="CC12M", other="CC3M")
