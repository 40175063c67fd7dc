"""SBU Captioned Photos: one sample per Flickr photo, read from either of the two published forms.

Roles: `rows` (sbu-captions-all.json: one object of lists of equal length, `image_urls`, `captions`, `user_ids`), or
`urls` and `captions` (SBU_captioned_photo_dataset_urls.txt and ..._captions.txt, aligned by line). All are streamed:
the lists of the JSON are read side by side, each from its own position in the file.

For a photo that was removed Flickr returns a "photo unavailable" image and HTTP 200, which no reader can detect.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from x2vlm.data.readers.json_stream import stream_sections
from x2vlm.data.readers.source import Source
from x2vlm.data.readers.web.cc3m import web_pair
from x2vlm.data.tables.lines import byte_lines, text_lines
from x2vlm.data.tables.rows import BadRow
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Drop, Sample

LISTS = ("image_urls", "captions")
REMEDY = "Expected sbu-captions-all.json with the lists image_urls, captions and user_ids"


def read_sbu(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the lists; the row key is the zero-based position.

    SourceUnavailable, before the first sample, if the lists or files differ in length: captions then cannot be
    assigned to photos.
    """
    if "rows" in source.files:
        yield from _read_json(source, seen)
    elif {"urls", "captions"} <= set(source.files):
        yield from _read_lines(source, seen)
    else:
        raise SourceUnavailable(
            f"card {source.card}: SBU needs a file for role `rows` (sbu-captions-all.json), "
            "or two for roles `urls` and `captions` (the .txt files)"
        )


def _read_json(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    lengths = {name: 0 for name in (*LISTS, "user_ids")}
    found = set()
    for name, values in stream_sections(source, "rows", tuple(lengths), REMEDY):
        if values is None:
            source.fail("rows", f"{name} is not a list", REMEDY)
        found.add(name)
        lengths[name] = sum(1 for _ in values)
    if missing := [name for name in LISTS if name not in found]:
        source.fail("rows", f"no list called {', '.join(missing)} at the top level", REMEDY)
    if len({lengths[name] for name in found}) > 1:
        lengths_found = ", ".join(f"{name} {lengths[name]}" for name in lengths if name in found)
        source.fail("rows", f"its lists differ in length: {lengths_found}", "Download it again")
    for number, (url, text) in enumerate(zip(*(_list(source, name) for name in LISTS), strict=True)):
        seen["rows"] += 1
        if isinstance(url, str) and isinstance(text, str):
            yield web_pair(source, str(number), url, text)
        else:
            yield source.drop(str(number), "malformed_row", f"not two texts: {url!r}, {text!r}")


def _list(source: Source, wanted: str) -> Iterator[Any]:
    for _, values in stream_sections(source, "rows", (wanted,), REMEDY):
        yield from values or ()


def _read_lines(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    urls, captions = source.file("urls"), source.file("captions")
    counts = []
    for role, path in (("urls", urls), ("captions", captions)):
        with source.reading(role):
            counts.append(sum(1 for _ in byte_lines(path)))
    if counts[0] != counts[1]:
        problem = f"{counts[0]} lines, but {captions.name} has {counts[1]}"
        source.fail("urls", problem, "Lines belong together by number; download both again")
    with source.reading("urls"):
        for number, (url, text) in enumerate(zip(text_lines(urls), text_lines(captions), strict=True)):
            seen["rows"] += 1
            if isinstance(url, BadRow):
                yield source.drop_bad(url, str(number))
            elif isinstance(text, BadRow):
                yield source.drop_bad(text, str(number))
            else:
                yield web_pair(source, str(number), url, text)
