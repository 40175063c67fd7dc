"""What readers of a user's own files share: the files of a set, where the bytes of a row lie, which names are media.

A set is a folder, or a bucket's prefix, with any number of files. It is read in groups of files that belong together
(a tar with the table beside it, the files of one folder), so that a new file makes only its own group due.
"""

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from x2vlm.data.readers.source import Source
from x2vlm.samples import MediaKind, Sample

# Which files stand for media; what the bytes are, and whether that is supported, is for the download stage to say.
IMAGES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl"]
)
CLIPS = frozenset(["mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "m2ts", "ogv", "flv", "wmv", "3gp"])
TEXTS = frozenset(["txt", "caption"])
FACTS = "json"
MAX_TEXT_BYTES = 4 << 20  # of one caption or JSON file
CHUNK_BYTES = 1 << 20
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIX, STATS_SUFFIX = ".parquet", "_stats.json"
MAX_FOLDER_GROUPS = 1000

MEMBER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("column", pa.string()),
    ]
)


@dataclass(frozen=True)
class SetFile:
    """One file of a set. `name` is its path below the set's root, with "/"; `open` gives a seekable binary stream."""

    name: str
    bytes: int
    open: Callable[[], BinaryIO]


class Member(NamedTuple):
    """Where the media of a row lie: `bytes` bytes from `offset` on in `file` (unpacked, where the name ends in gz), or
    the value of Parquet `column` in row number `offset`. `sha256` is of those bytes."""

    file: str
    offset: int
    bytes: int
    sha256: str
    column: str = ""


class Located(NamedTuple):
    """A row whose media lie in the set."""

    sample: Sample
    member: Member


def media_kind(suffix: str) -> MediaKind | None:
    """The kind of media that files with this suffix (without the dot) hold, None for other files."""
    name = suffix.lower()
    return "image" if name in IMAGES else "video" if name in CLIPS else None


def suffix_of(name: str) -> str:
    """The last suffix of a file name in lower case, without its dot."""
    return PurePosixPath(name).suffix[1:].lower()


def local_url(source: Source, file: str, inner: str = "") -> str:
    """The address of a row that has none on the web: `local://<card>/<file>/<name inside it>`, wherever it lies."""
    path = f"{file}/{inner}" if inner else file
    return f"local://{source.name}/{urllib.parse.quote(path)}"


def is_text(name: str) -> bool:
    """False for a name that is not UTF-8, which Python holds as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def shown(name: str) -> str:
    """A name that can be written down: bytes that are not UTF-8 and control characters as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def hash_range(stream: BinaryIO, num_bytes: int) -> tuple[str, int]:
    """sha256 of the next `num_bytes` bytes, and how many there were."""
    digest, left = hashlib.sha256(), num_bytes
    while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest(), num_bytes - left


def local_files(root: Path) -> list[SetFile]:
    """The files below a folder by name, hidden ones left out; what a link points to counts as lying there."""
    return [
        SetFile(path.relative_to(root).as_posix(), path.stat().st_size, lambda path=path: path.open("rb"))  # type: ignore[misc]
        for path in sorted(root.rglob("*"))
        if path.is_file() and not is_hidden(path.relative_to(root).as_posix())
    ]


def is_hidden(name: str) -> bool:
    """Files that a system leaves beside what users put there: below or in a name that begins with a dot, `__MACOSX`."""
    return any(step.startswith((".", "__MACOSX")) or step in ("Thumbs.db", "desktop.ini") for step in name.split("/"))


def group_names(reader: str, names: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """The files of a set by group, groups and names in alphabetical order.

    `webdataset`: a tar or Parquet shard with the files called like it; everything else is left out. `folder`: the
    files of one folder, of a folder and all below it where it has a `metadata` file, or of one folder of the first
    level where there would be more than 1,000.
    """
    ordered = sorted(names)
    found = _shards(ordered) if reader == "webdataset" else _folders(ordered)
    groups: dict[str, Sequence[str]] = {}
    for name, members in sorted(found.items()):
        safe = re.sub(r"[^A-Za-z0-9._=-]", "_", name).lstrip("._=-") or "top"
        if safe != name or safe in groups:
            safe += f"-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}" if name else ""
        groups[safe] = members
    return groups


def stem_of(name: str) -> str:
    """A shard's name without the endings that tars, tables and counts of one shard have."""
    for suffix in (*TAR_SUFFIXES, STATS_SUFFIX, PARQUET_SUFFIX):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _shards(names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith((*TAR_SUFFIXES, PARQUET_SUFFIX)):
            groups.setdefault(stem_of(name), []).append(name)
    for name in names:
        if name.endswith(STATS_SUFFIX) and stem_of(name) in groups:
            groups[stem_of(name)].append(name)
    return groups


def _folders(names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    parents = {name: name.rpartition("/")[0] for name in names}
    governed = sorted({parents[name] for name in names if is_metadata(name)})
    folders = set(parents.values())

    def group(name: str) -> str:
        for folder in governed:
            if not folder or name.startswith(f"{folder}/"):
                return folder
        stem = stem_of(name)  # img2dataset writes 00000.parquet and 00000_stats.json beside the folder 00000
        return stem if stem != name and stem in folders else parents[name]

    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(group(name), []).append(name)
    if len(found) <= MAX_FOLDER_GROUPS:
        return found
    coarse: dict[str, list[str]] = {}
    for folder, members in found.items():
        coarse.setdefault(folder.partition("/")[0], []).extend(members)
    return coarse


def is_metadata(name: str) -> bool:
    """True for the table of a Hugging Face imagefolder."""
    return name.rpartition("/")[2].lower() in ("metadata.csv", "metadata.jsonl", "metadata.parquet")
