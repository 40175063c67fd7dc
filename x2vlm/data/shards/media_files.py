"""The two kinds of file that hold the payloads of a shard: a WebDataset tar, and a Parquet file with the bytes inside.

Both keep payloads uncompressed, so that one reader finds them by offset and size and knows neither format. Names come
from our keys alone, never from a URL; equal rows give equal bytes everywhere.

| | tar | Parquet |
|---|---|---|
| payloads | `shard-00007.tar` | `shard-00007.media.parquet` |
| index | `shard-00007.parquet` | `_shard-00007.index` |

Both indexes are Parquet. Beside payloads in Parquet the index has a name that no reader of a folder or of `*.parquet`
takes (pandas, pyarrow, Spark and DuckDB pass over a leading underscore or over the suffix): every row is read once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.data.media.formats import DECODED
from x2vlm.errors import CorruptArtifact, InvalidSample
from x2vlm.extras import needs

TAR_SUFFIX, PARQUET_SUFFIX, INDEX_SUFFIX = ".tar", ".media.parquet", ".index"
# Members are named after what a reader is to do with them, not after the codec: open_clip takes jpg, png, jpeg and webp
# only, and Hugging Face's reader takes the names of the first five rows for all. Every reader (Pillow in all of them)
# looks at the bytes; img2dataset names originals that it does not re-encode in the same way. `media.format` says what
# the bytes are.
IMAGE, CLIP, TEXT, FACTS = "jpg", "frames", "txt", "json"
FORMATS = {**dict.fromkeys(DECODED, IMAGE), "frames": CLIP}
# The facts of a tar's JSON members and their types.
FACT_TEXTS = ("key", "source", "source_row", "split", "kind", "url", "licence", "format", "sha256", "row")
FACT_NUMBERS = ("width", "height", "num_frames")
FACT_FIELDS = {**dict.fromkeys(FACT_TEXTS, "string"), **dict.fromkeys(FACT_NUMBERS, "int64")}
PAYLOAD = "payload"
GROUP_ROWS, GROUP_BYTES = 64, 32 << 20  # of a row group of a Parquet shard, whichever is reached first
ONE_PAGE = 1 << 30  # bytes: no row group comes near it, so its payloads are one page
LENGTH_BYTES = 4  # before each value of a PLAIN byte array (Parquet's Encodings.md)
BLOCK_BYTES = 512  # of a tar; a header is one, because our names are short and ASCII

Payload = Callable[[str], bytes]  # from the sha256 of the original media to the stored bytes


@dataclass(frozen=True)
class Location:
    """Where a payload lies in its shard, and the sha256 of its bytes."""

    offset: int
    bytes: int
    sha256: str


def is_media_file(name: str) -> bool:
    """True for the file of a shard that holds its payloads, False for its index and everything else."""
    return name.startswith("shard-") and name.endswith((TAR_SUFFIX, PARQUET_SUFFIX))


def index_name(name: str) -> str:
    """File name of the index of the shard whose payloads are in the file `name`."""
    if name.endswith(PARQUET_SUFFIX):
        return f"_{name.removesuffix(PARQUET_SUFFIX)}{INDEX_SUFFIX}"
    return name.removesuffix(TAR_SUFFIX) + ".parquet"


def is_index_file(name: str) -> bool:
    """True for the index of a shard, of either kind."""
    if name.endswith(INDEX_SUFFIX):
        return name.startswith("_shard-")
    return name.startswith("shard-") and name.endswith(".parquet") and not name.endswith(PARQUET_SUFFIX)


def write_tar(path: Path, rows: pa.Table, payload_of: Payload) -> list[Location]:
    """A WebDataset tar of `<key>.jpg` (`.frames` for a clip), `<key>.json` and `<key>.txt` per row; see `sample_of`.

    The locations are in the order of `rows`. In the tar images come before clips, each by key, because Hugging Face's
    reader wants its first five samples to have members of the same names. Headers are fixed: mtime, uid and gid 0, mode
    644. webdataset imports torch, which takes 3 CPU seconds once per process.
    """
    with needs("writing a tar of samples"):
        from webdataset import TarWriter

    locations: dict[str, Location] = {}
    with path.open("wb") as stream, TarWriter(stream, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
        for row in _rows(rows.sort_by([("kind", "ascending"), ("key", "ascending")])):
            payload = payload_of(_media(row)["sha256"])
            # A sample's members are sorted by suffix, so its payload comes first.
            start = tar.tarstream.offset + BLOCK_BYTES
            tar.write(sample_of(row, payload))
            locations[row["key"]] = Location(start, len(payload), hashlib.sha256(payload).hexdigest())
    return [locations[key] for key in rows["key"].to_pylist()]


def sample_of(row: Mapping[str, Any], payload: bytes) -> dict[str, Any]:
    """A row as webdataset writes it: payload, first caption (empty if there is none) and facts as JSON.

    The JSON has fields of the same types in every row, because Hugging Face's reader infers them from five: `row` is a
    text, the whole row (every caption, boxes, scores) as JSON.
    """
    media = _media(row)
    suffix = payload_suffix(row)
    found = {**media, **row, "row": _json_text(row)}
    facts = {**{name: found[name] or "" for name in FACT_TEXTS}, **{name: found[name] or 0 for name in FACT_NUMBERS}}
    caption = row["captions"][0]["text"] if row["captions"] else ""
    return {
        "__key__": row["key"],
        suffix: payload,
        TEXT: caption.encode("utf-8"),
        FACTS: _json_text(facts).encode("utf-8"),
    }


def write_parquet(path: Path, rows: pa.Table, payload_of: Payload) -> list[Location]:
    """A Parquet file of all columns of `rows` and the column `payload`; one row group is in memory at a time."""
    # Not nullable: a page is then its values and nothing else.
    schema = rows.schema.append(pa.field(PAYLOAD, pa.binary(), nullable=False))
    others = [name for name in _leaf_columns(schema) if name != PAYLOAD]
    payloads: list[bytes] = []
    groups: list[list[tuple[int, str]]] = []
    with pq.ParquetWriter(
        path,
        schema,
        compression={**dict.fromkeys(others, "zstd"), PAYLOAD: "none"},
        use_dictionary=others,
        column_encoding={PAYLOAD: "PLAIN"},
        write_statistics=others,
        data_page_size=ONE_PAGE,
        data_page_version="1.0",
    ) as writer:
        for number, row in enumerate(_rows(rows), start=1):
            payload_suffix(row)  # refuses formats that no reader knows
            payloads.append(payload_of(_media(row)["sha256"]))
            if len(payloads) == GROUP_ROWS or sum(map(len, payloads)) >= GROUP_BYTES or number == rows.num_rows:
                group = rows.slice(number - len(payloads), len(payloads))
                columns = [*group.columns, pa.array(payloads, pa.binary())]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(payloads))
                groups.append([(len(payload), hashlib.sha256(payload).hexdigest()) for payload in payloads])
                payloads = []
    return list(_locate(path, groups))


def _leaf_columns(schema: pa.Schema) -> list[str]:
    """Dotted paths of the leaves, as Parquet names them."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    file_schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [file_schema.column(index).path for index in range(len(file_schema))]


def _locate(path: Path, groups: Sequence[Sequence[tuple[int, str]]]) -> Iterator[Location]:
    """Where each (size, sha256) lies, worked out from the footer.

    The payloads of a row group are one uncompressed page of required PLAIN values, each after its length in four bytes:
    what the page has more than that is its header. CorruptArtifact if the file was not written so.
    """
    metadata = pq.read_metadata(path)
    with path.open("rb") as stream:
        for number, group in enumerate(groups):
            chunk = metadata.row_group(number).column(metadata.num_columns - 1)
            # The header comes first and the values last, so they end where the page does.
            position = chunk.data_page_offset + chunk.total_compressed_size - sum(LENGTH_BYTES + n for n, _ in group)
            for size, sha256 in group:
                stream.seek(position)
                length, payload = stream.read(LENGTH_BYTES), stream.read(size)
                position += LENGTH_BYTES
                if length != size.to_bytes(LENGTH_BYTES, "little") or hashlib.sha256(payload).hexdigest() != sha256:
                    raise CorruptArtifact(
                        f"{path}: row group {number} of the column {PAYLOAD} is not one plain page, so its values "
                        f"cannot be read in place; pyarrow {pa.__version__} wrote it so: please report it"
                    )
                yield Location(position, size, sha256)
                position += size


def payload_suffix(row: Mapping[str, Any]) -> str:
    """The suffix of the member that holds a row's pixels; InvalidSample for a stored format that shards do not know."""
    stored = _media(row)["format"]
    if stored not in FORMATS:
        raise InvalidSample("unknown_media_format", f"{row['key']}: {stored!r} is none of {', '.join(FORMATS)}")
    return FORMATS[stored]


def _rows(rows: pa.Table) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for batch in rows.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["key"] in seen:
                raise InvalidSample("duplicate_key", f"{row['key']} comes twice in one shard")
            seen.add(row["key"])
            yield row


def _media(row: Mapping[str, Any]) -> Mapping[str, Any]:
    media = row["media"]
    if media is None:
        raise InvalidSample("missing_media", f"{row['key']} of {row['source']} has no media; run download first")
    return media  # type: ignore[no-any-return]


def _json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
