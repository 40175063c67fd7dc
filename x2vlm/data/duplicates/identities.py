"""Ids of the image or video that a row shows, in the public collections that contain it.

| kind | value | where it comes from |
|---|---|---|
| coco | COCO image id | row keys of COCO and RefCOCO; file names COCO_val2014_*.jpg; cocodataset.org |
| visual_genome | image id | row keys of Visual Genome and of GQA (its numeric ids); URLs below VG_100K |
| flickr | photo id | Flickr30k file names; URLs of Flickr, in any source |
| openimages, objects365, gqa, webvid | own id | row keys |
| youtube | video id | row keys of HowTo100M and YT-Temporal; URLs of YouTube, in any source |
| url | URL without scheme and fragment | every row |

One image has several ids. Upstream tables link them (`visual_genome_links` etc.), and `identify` merges them into one
identity: so a COCO test image is found in Visual Genome, and in OpenImages by its Flickr id.
"""

import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

ID_FIELDS = [
    pa.field("id_kind", pa.string()),
    pa.field("id_value", pa.string()),
    pa.field("start_seconds", pa.float64()),  # of a clip in the video that the id names; null: from its beginning
    pa.field("end_seconds", pa.float64()),  # null: to its end
]
ID_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("source", pa.string()), *ID_FIELDS])
LINK_SCHEMA = pa.schema([(name, pa.string()) for name in ("id_kind", "id_value", "other_kind", "other_value")])

Id = tuple[str, str]  # kind, value
Record = Mapping[str, Any]

ROW_KINDS = {
    "coco": "coco",
    "refcoco": "coco",
    "visual_genome": "visual_genome",
    "openimages": "openimages",
    "objects365": "objects365",
    "flickr_entities": "flickr",
    "webvid": "webvid",
}
VIDEO_READERS = ("howto100m", "yttemporal")  # row keys: <video id>#<number>

FLICKR_FILE = re.compile(r"(\d+)_[0-9a-f]+(?:_[a-z0-9]+)?\.(?:jpe?g|png|gif)", re.IGNORECASE)
FLICKR_PAGE = re.compile(r"/photos/[^/]+/(\d+)(?:/|$)")
COCO_FILE = re.compile(r"COCO_(?:train|val|test)\d{4}_(\d{12})(?:_\d+)?\.jpg")
COCO_2017_FILE = re.compile(r"(\d{12})\.jpg")
VISUAL_GENOME_FILE = re.compile(r"/VG_100K(?:_2)?/(\d+)\.jpg$")
YOUTUBE_ID = re.compile(r"[0-9A-Za-z_-]{11}")


def media_ids(rows: pa.Table, readers: Mapping[str, str]) -> pa.Table:
    """The ids of every row as ID_SCHEMA; rows are SAMPLE_SCHEMA or at least its columns that are read here.

    `readers` maps a source to the reader (a key of `readers.READERS`) of its rows. The row keys of a source without
    entry mean nothing outside it, so its ids are those of its URLs.
    """
    columns = ("key", "source", "source_row", "url", "start_seconds", "end_seconds")
    made: dict[str, list[Any]] = {name: [] for name in ID_SCHEMA.names}
    for batch in rows.select(columns).to_batches(max_chunksize=10_000):
        for key, source, row, url, start, end in zip(
            *(batch.column(name).to_pylist() for name in columns), strict=True
        ):
            for kind, value in dict.fromkeys([*ids_of_row(readers.get(source, ""), row), *ids_of_url(url)]):
                for name, one in zip(ID_SCHEMA.names, (key, source, kind, value, start, end), strict=True):
                    made[name].append(one)
    return pa.table(made, schema=ID_SCHEMA)


def ids_of_row(reader: str, row: str) -> list[Id]:
    """The ids in a source's row key, [] where it means nothing outside that source."""
    if reader in VIDEO_READERS:
        return [("youtube", row.rpartition("#")[0] or row)]
    if reader == "gqa":
        return [("visual_genome" if row.isdecimal() else "gqa", row)]
    kind = ROW_KINDS.get(reader)
    return [(kind, _number(row) if row.isdecimal() else row)] if kind else []


def ids_of_url(url: str) -> list[Id]:
    """The ids in a URL; [] for an empty one. A malformed URL is compared as it is written."""
    if not url:
        return []
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host = (parts.hostname or "").removeprefix("www.")
        port = "" if parts.port in (None, 80, 443) else f":{parts.port}"
    except ValueError:
        return [("url", url.strip())]
    found = list(_ids_of_place(host, parts.path, urllib.parse.parse_qs(parts.query)))
    # The URL of a YouTube video adds nothing to its id.
    if not any(kind == "youtube" for kind, _ in found):
        query = f"?{parts.query}" if parts.query else ""
        found.append(("url", f"{host}{port}{parts.path}{query}"))
    return found


def ids_of_name(name: str) -> list[Id]:
    """The ids in a file name of COCO or Flickr30k ("1018148011.jpg"); [] for any other."""
    name = name.rpartition("/")[2]
    if match := COCO_FILE.fullmatch(name):
        return [("coco", _number(match[1]))]
    stem, _, ending = name.rpartition(".")
    return [("flickr", _number(stem))] if ending.lower() == "jpg" and stem.isdecimal() else []


def _ids_of_place(host: str, path: str, query: Mapping[str, list[str]]) -> Iterator[Id]:
    name = path.rpartition("/")[2]
    own = _is_below(host, "cocodataset.org", "mscoco.org")
    if match := COCO_FILE.fullmatch(name) or (COCO_2017_FILE.fullmatch(name) if own else None):
        yield "coco", _number(match[1])
    elif match := VISUAL_GENOME_FILE.search(path):
        yield "visual_genome", _number(match[1])
    elif _is_below(host, "staticflickr.com", "static.flickr.com") and (match := FLICKR_FILE.fullmatch(name)):
        yield "flickr", match[1]
    elif _is_below(host, "flickr.com"):
        page = FLICKR_PAGE.search(path)
        if page or path == "/photo.gne":
            yield from (("flickr", value) for value in ([page[1]] if page else query.get("id", [])))
    elif video := _youtube(host, path, query):
        yield "youtube", video


def _youtube(host: str, path: str, query: Mapping[str, list[str]]) -> str:
    video = ""
    if _is_below(host, "youtu.be"):
        video = path.strip("/")
    elif _is_below(host, "youtube.com", "youtube-nocookie.com"):
        first, _, rest = path.strip("/").partition("/")
        video = rest if first in ("embed", "shorts", "v") else "".join(query.get("v", []))
    return video if YOUTUBE_ID.fullmatch(video) else ""


def _is_below(host: str, *domains: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _number(text: str) -> str:
    """A number without leading zeros, which only some files write."""
    return text.lstrip("0") or "0"


def visual_genome_links(images: Iterable[Record]) -> pa.Table:
    """Links from the records of image_data.json: its ids with COCO's and Flickr's. Null and 0 mean none."""
    return _links(
        [
            ("visual_genome", record.get("image_id", record.get("id"))),
            ("coco", record.get("coco_id")),
            ("flickr", record.get("flickr_id")),
        ]
        for record in images
    )


def coco_links(images: Iterable[Record]) -> pa.Table:
    """Links from the `images` of a COCO file: COCO ids with the Flickr photo ids in `flickr_url`."""
    return _links([("coco", record.get("id")), *ids_of_url(str(record.get("flickr_url") or ""))] for record in images)


def openimages_links(images: Iterable[Record]) -> pa.Table:
    """Links from rows of an OpenImages image table: image ids with the Flickr photo of OriginalLandingURL.

    The reader takes OriginalURL as a row's URL, so it is linked too.
    """
    return _links(
        [("openimages", record.get("ImageID"))]
        + [one for name in ("OriginalLandingURL", "OriginalURL") for one in ids_of_url(str(record.get(name) or ""))]
        for record in images
    )


def _links(rows: Iterable[list[tuple[str, Any]]]) -> pa.Table:
    made = []
    for first, *others in rows:
        known = [(kind, str(value)) for kind, value in (first, *others) if value not in (None, "", 0, "0")]
        # A URL links nothing: the image behind it may have been replaced.
        known = [one for one in known if one[0] != "url"]
        if first[0] == (known[0][0] if known else ""):
            made += [dict(zip(LINK_SCHEMA.names, (*known[0], *other), strict=True)) for other in known[1:]]
    return pa.Table.from_pylist(made, schema=LINK_SCHEMA)


@dataclass(frozen=True)
class Identities:
    """Which ids mean the same image: "kind:value" -> the first of them, for ids that occur in links."""

    of: Mapping[str, str]

    def largest(self) -> int:
        """The number of ids of the image with the most: a value far above 4 means that a link is wrong."""
        counts: dict[str, int] = {}
        for identity in self.of.values():
            counts[identity] = counts.get(identity, 0) + 1
        return max(counts.values(), default=0)


def identify(links: Iterable[pa.Table]) -> Identities:
    """The connected ids of all link tables; memory is that of the links (about 300 bytes per id)."""
    parent: dict[str, str] = {}

    def root(one: str) -> str:
        parent.setdefault(one, one)
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for table in links:
        for link in table.to_pylist():
            a, b = root(f"{link['id_kind']}:{link['id_value']}"), root(f"{link['other_kind']}:{link['other_value']}")
            parent[max(a, b)] = min(a, b)
    return Identities({one: root(one) for one in sorted(parent)})


def with_identity(ids: pa.Table, identities: Identities) -> pa.Table:
    """`ids` with a column `identity`: equal for ids that mean the same image."""
    own = pc.binary_join_element_wise(ids["id_kind"], ids["id_value"], ":")
    known = pa.array(list(identities.of.keys()), pa.string())
    names = pa.array(list(identities.of.values()), pa.string())
    linked = names.take(pc.index_in(own, value_set=known)) if len(known) else pa.nulls(len(own), pa.string())
    return ids.append_column("identity", pc.coalesce(linked, own))
