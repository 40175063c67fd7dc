"""WebVid: one sample per row of results_*.csv, each a short clip with one text. Read by column name: orders differ.

Role: `rows`. The `duration` column ("PT00H00M17S") is rounded to whole seconds and is that of the whole file, so no
start or end is set: a clip is its file.
"""

from collections import Counter
from collections.abc import Iterator

from x2vlm.data.readers.source import Source, met_before, read_csv
from x2vlm.data.readers.web.cc3m import web_pair
from x2vlm.data.tables.rows import BadRow, ByteRange, Row
from x2vlm.samples import Drop, Sample

COLUMNS = ("videoid", "contentUrl", "name")


def read_webvid(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order; the row key is the videoid, always a string (some look like numbers or flags).

    Ids are kept in memory to find repeats: about 1.1 GB of memory for WebVid-10M, and those of its own rows for a
    slice, which takes two more passes over what lies before it.
    """
    known = met_before(_ids(source, source.within), _ids(source, source.before)) if source.before else set()
    for row in read_csv(source, "rows", COLUMNS, source.within):
        seen["rows"] += 1
        if isinstance(row, BadRow):
            yield source.drop_bad(row)
            continue
        line, values = row.line, row.values
        video_id = values["videoid"].strip()
        if not video_id:
            yield source.drop(f"line {line}", "malformed_row", "no videoid")
        elif video_id in known:
            yield source.drop(video_id, "duplicate_row", f"line {line} repeats videoid {video_id}")
        else:
            known.add(video_id)
            yield web_pair(source, video_id, values["contentUrl"], values["name"], "video")


def _ids(source: Source, within: ByteRange | None) -> Iterator[str]:
    for row in read_csv(source, "rows", COLUMNS, within):
        if isinstance(row, Row) and (video_id := row.values["videoid"].strip()):
            yield video_id
