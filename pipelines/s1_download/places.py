"""Media that lie in files of the user's own: where a child process finds the bytes of each row.

A member of a local tar or a local file is read where it lies. What can only be read from its beginning or needs
credentials (a packed tar, Parquet, a bucket) is first copied into a scratch file, the range of this part's rows and no
more; children have no credentials and parse no container. The scratch file is gone when the part is done.
"""

import gzip
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.stage import PartReader, Read
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.source_trees import open_forward
from pipelines.s1_download.child.protocol import Place, Result
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import Refusal, parse_target
from pipelines.s1_download.read_set import members_of
from x2vlm.data.readers.own.files import CHUNK_BYTES, TAR_SUFFIXES, Member, shown
from x2vlm.data.readers.own.parquet_shard import BrokenParquet, PayloadColumn, open_parquet, read_rows
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.samples import Sample

REMOTE_FILES = 16  # objects of a bucket that are fetched at a time


def open_places(members: Mapping[str, Member], root: str, scratch: Path) -> Mapping[str, Place]:
    """The place of every row's media, by key of `members`. `root` is where the files lie that members name.

    SourceUnavailable names a file that is gone or is no longer what was read.
    """
    by_file: defaultdict[str, list[tuple[str, Member]]] = defaultdict(list)
    for key, member in members.items():
        by_file[member.file].append((key, member))
    places: dict[str, Place] = {}
    loose: list[tuple[str, Member]] = []
    with (scratch / "members").open("wb") as spool:
        for name, rows in by_file.items():
            uri = f"{root.rstrip('/')}/{name}"
            path = local_path_of(uri)
            try:
                if rows[0][1].column:
                    places |= _from_parquet(uri, rows, spool)
                elif path is not None and not name.lower().endswith("gz"):
                    if not path.is_file():
                        raise FileNotFoundError(2, "no such file")
                    places |= {key: Place(str(path), m.offset, m.bytes) for key, m in rows}
                elif name.lower().endswith(TAR_SUFFIXES):
                    places |= _from_stream(uri, rows, spool)
                else:
                    loose += rows
            except (OSError, EOFError, BrokenParquet) as error:
                raise _changed(uri, getattr(error, "strerror", None) or str(error)) from error
        places |= _from_bucket(root, loose, spool)
    return places


def members_in(
    inputs: PartReader, tables: Sequence[Read], samples: Sequence[Sample], config: DownloadConfig
) -> Mapping[str, Member]:
    """Where the media of `samples` lie, by key; empty where they are on the web."""
    if not tables:
        return {}
    if config.set_root is None:
        raise ConfigError("download: the rows were read from a set of files, but `set_root` does not say where it lies")
    found = members_of(pq.read_table(inputs.local_path(tables[0].file)))
    return {sample.key: found[sample.key] for sample in samples}


def check_denied(url: str, denied: DenyList) -> None:
    """Refusal if media that somebody fetched once come from where nothing may be taken from."""
    try:
        target = parse_target(url)
    except Refusal:
        return  # no address that could be on the list
    denied.check(target)


def check_unchanged(samples: Sequence[Sample], members: Mapping[str, Member], results: Sequence[Result]) -> None:
    """SourceUnavailable if media are not the bytes that were there when the rows were read."""
    for sample, result in zip(samples, results, strict=True):
        found, expected = result.hashes.get("sha256"), members[sample.key].sha256
        if found not in (None, expected):
            member = members[sample.key]
            raise _changed(member.file, f"{shown(sample.source_row)} has sha256 {found}, it was read with {expected}")


def _from_parquet(uri: str, rows: Sequence[tuple[str, Member]], spool: BinaryIO) -> Mapping[str, Place]:
    wanted = {member.offset: key for key, member in rows}
    places = {}
    with open_forward(uri) as stream, open_parquet(stream) as file:
        name = rows[0][1].column
        if name not in file.schema_arrow.names:
            raise OSError(f"no column {name}")
        is_struct = pa.types.is_struct(file.schema_arrow.field(name).type)
        column = PayloadColumn(name, is_struct, "image")
        for number, _, payload in read_rows(file, column, min(wanted), max(wanted), facts=False):
            if number in wanted:
                places[wanted[number]] = _append(spool, payload or b"")
    if missing := wanted.values() - places.keys():
        raise OSError(f"{len(missing)} rows are gone")
    return places


def _from_stream(uri: str, rows: Sequence[tuple[str, Member]], spool: BinaryIO) -> Mapping[str, Place]:
    """From a packed or remote tar: one pass over the range that the rows span, keeping their bytes."""
    places = {}
    with open_forward(uri) as raw:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if uri.lower().endswith("gz") else raw
        for key, member in sorted(rows, key=lambda row: row[1].offset):
            stream.seek(member.offset)
            start, left = spool.tell(), member.bytes
            while left:
                chunk = stream.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise EOFError("it ends earlier than it did")
                spool.write(chunk)
                left -= len(chunk)
            places[key] = Place(spool.name, start, member.bytes)
    return places


def _from_bucket(root: str, rows: Sequence[tuple[str, Member]], spool: BinaryIO) -> Mapping[str, Place]:
    """Objects of their own, several at a time."""
    if not rows:
        return {}
    fs, base = fsspec.core.url_to_fs(root)

    def fetch(row: tuple[str, Member]) -> bytes:
        try:
            return bytes(fs.cat_file(f"{str(base).rstrip('/')}/{row[1].file}"))
        except OSError as error:
            raise _changed(f"{root}/{row[1].file}", str(error)) from error

    places = {}
    with ThreadPoolExecutor(REMOTE_FILES) as pool:
        for batch in _batches(rows):  # so that no more than one batch is in memory
            for (key, _), data in zip(batch, pool.map(fetch, batch), strict=True):
                places[key] = _append(spool, data)
    return places


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    waiting = iter(rows)
    while batch := list(itertools.islice(waiting, REMOTE_FILES)):
        yield batch


def _append(spool: BinaryIO, data: bytes) -> Place:
    start = spool.tell()
    spool.write(data)
    return Place(spool.name, start, len(data))


def _changed(file: str, problem: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"{file}: {problem}. The file is not the one that was read: restore it, or run the same command again, which "
        "reads it anew"
    )
