"""Shards of an object store as files of this machine: fetched once, checked once, thrown away when room is needed.

Every file is named by its sha256, so what has the name has the bytes: it is written under another name, checked, and
renamed. A store on a local disk is read in place. Any number of processes may use one cache; a file that one of them
holds open stays readable for it after another has thrown it away.
"""

import fcntl
import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import fsspec
from fsspec.implementations.local import LocalFileSystem

from x2vlm.data.loading.shard_set import CountedShards, ShardFiles
from x2vlm.data.shards.listing import ShardListing, read_listing
from x2vlm.data.shards.row_counts import CountTable, ShardCounts
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.stores.calls import RETRY_SECONDS, retrying

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTIAL = ".partial"
WAITS = "store-waits.lock"  # its time of change is when a process last waited for a store that failed
# X2VLM_CACHE: where a run of the pipeline keeps copies that outlive it; its temporary folder does not.
DEFAULT_FOLDER = Path(os.environ.get("X2VLM_CACHE") or tempfile.gettempdir()) / "x2vlm-shards"


@dataclass(frozen=True)
class CachedFile:
    """A remote file that can be opened like a Path: it is in the cache then, whatever was thrown away before."""

    cache: "ShardCache"
    uri: str
    sha256: str

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """The file for reading."""
        while True:
            try:
                return self.cache.fetch(self.uri, self.sha256).open(mode)
            except FileNotFoundError:
                continue  # another process made room in between

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True)
class CheckedFile:
    """A file of a local store that is checked against its sha256 whenever it is opened."""

    path: Path
    sha256: str

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """The file for reading; CorruptArtifact if it has another sha256."""
        stream = self.path.open(mode)
        try:
            _check(hashlib.file_digest(stream, "sha256").hexdigest(), self.sha256, str(self.path))
        except CorruptArtifact:
            stream.close()
            raise
        stream.seek(0)
        return stream

    def __str__(self) -> str:
        return str(self.path)


class ShardCache:
    """Local copies of remote files below `folder`, together at most `max_bytes` (None: no limit).

    Files that several processes fetch at the same time may be more than that together. The least recently asked for go
    first. `options` are fsspec's, for the store, whose calls are tried again for `retry_seconds`.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None = None,
        options: Mapping[str, Any] | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.folder, self.max_bytes, self.options = folder, max_bytes, dict(options or {})
        self.retry_seconds = retry_seconds

    def fetch(self, uri: str, sha256: str) -> Path:
        """The file with the bytes of `uri`.

        CorruptArtifact if what is there has another sha256, ConfigError if it alone is larger than the cache. Files of
        a local store are given back as they are, unchecked.
        """
        fs, path = fsspec.core.url_to_fs(uri, **self.options)
        if "file" in fs.protocol:
            return Path(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{sha256}{''.join(Path(path).suffixes)}"
        with _locked(self.folder / f"{sha256}.lock"):  # others that want the same file wait for it
            if not target.exists():
                self._download(fs, path, uri, sha256, target)
            os.utime(target)  # asked for just now
        return target

    def _download(self, fs: Any, path: str, uri: str, sha256: str, target: Path) -> None:
        partial, size = target.with_name(target.name + PARTIAL), 0
        if self.max_bytes is not None:
            size = self._call(lambda: int(fs.size(path)), uri)
            if size > self.max_bytes:
                raise ConfigError(
                    f"{uri}: {size} bytes do not fit into a shard cache of {self.max_bytes}; make it larger"
                )
        self._evict(size, partial)
        try:
            self._call(lambda: fs.get_file(path, str(partial)), uri)
            size = partial.stat().st_size
            with partial.open("rb") as stream:
                _check(hashlib.file_digest(stream, "sha256").hexdigest(), sha256, uri)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        log.info("shard_cache fetched=%s bytes=%d", uri, size)

    def _call(self, call: Callable[[], T], uri: str) -> T:
        return retrying(call, f"read {uri}", self.retry_seconds, (self.folder / WAITS).touch)

    def _evict(self, wanted: int, partial: Path) -> None:
        """Throw away the least recently asked for until `wanted` more bytes fit, and take them for `partial`.

        What others are fetching counts with its full size from the start. A partial file that nobody is fetching is
        what a killed process left.
        """
        with _locked(self.folder / "room.lock"):
            kept = []
            for path in [] if self.max_bytes is None else self.folder.iterdir():
                if path.suffix == ".lock":
                    continue
                if path.suffix == PARTIAL and not _is_locked(path.with_name(f"{path.name.split('.')[0]}.lock")):
                    path.unlink(missing_ok=True)
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:  # renamed by a download that has just ended
                    continue
                kept.append((status.st_mtime_ns, status.st_size, path))
            used = sum(size for _, size, _ in kept)
            for _, size, path in sorted(kept):
                if self.max_bytes is None or used + wanted <= self.max_bytes:
                    break
                if path.suffix != PARTIAL:
                    path.unlink(missing_ok=True)
                    used -= size
                    log.info("shard_cache evicted=%s bytes=%d", path.name, size)
            with partial.open("wb") as file:
                file.truncate(wanted)


def local_shards(shards: Sequence[Mapping[str, Any]], cache: ShardCache | None = None) -> list[ShardFiles]:
    """Shards, each with `media`, `media_sha256`, `index` and `index_sha256`, as files of this machine.

    `rows`, where a shard has it, are its counts (`ShardCounts.to_json`): nothing of it is then read here. Remote files
    are fetched when they are first opened, so a cache may be smaller than all of them together. Indexes are checked
    against their sha256 in a local store too; payloads are checked one by one whenever they are read.
    """
    cache = cache or ShardCache(DEFAULT_FOLDER)
    files = []
    for shard in shards:
        media, index = (_file(shard[name], shard[f"{name}_sha256"], cache) for name in ("media", "index"))
        counts = ShardCounts.from_json(shard["rows"]) if "rows" in shard else None
        if isinstance(index, Path) and counts is not None:
            index = CheckedFile(index, shard["index_sha256"])
        elif isinstance(index, Path):
            _check(hashlib.sha256(index.read_bytes()).hexdigest(), shard["index_sha256"], shard["index"])
        files.append(ShardFiles(media, index, counts))
    return files


class ListedShards(CountedShards):
    """The shards of a listing as files of this machine: as `local_shards`, each made when it is asked for."""

    def __init__(self, listing: ShardListing, cache: ShardCache, counts: CountTable) -> None:
        self._listing, self._cache, self._counts = listing, cache, counts

    @property
    def counts(self) -> CountTable:
        return self._counts

    def __len__(self) -> int:
        return len(self._listing)

    @overload
    def __getitem__(self, place: int) -> ShardFiles: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[ShardFiles]: ...
    def __getitem__(self, place: int | slice) -> ShardFiles | Sequence[ShardFiles]:
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step != 1:
                return [self[number] for number in range(first, end, step)]
            return listed_shards(self._listing.part(first, max(first, end)), self._cache)
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"shard {place} of {len(self)}")
        return local_shards([self._listing.shard(number)], self._cache)[0]


def listed_shards(listing: ShardListing, cache: ShardCache | None = None) -> Sequence[ShardFiles]:
    """The shards of a listing as files of this machine. Nothing of them is read here where their counts are known."""
    cache = cache or ShardCache(DEFAULT_FOLDER)
    if listing.counts is None:
        return local_shards([listing.shard(number) for number in range(len(listing))], cache)
    return ListedShards(listing, cache, listing.counts)


def fetch_listing(uri: str, sha256: str, cache: ShardCache | None = None) -> ShardListing:
    """The listing at `uri`, which the first process of a machine that asks fetches for all of them.

    CorruptArtifact if it has another sha256.
    """
    with CachedFile(cache or ShardCache(DEFAULT_FOLDER), uri, sha256).open() as stream:
        return read_listing(stream.read(), sha256, uri)


def seconds_since_wait(folder: Path) -> float:
    """Seconds since a process with its cache in `folder` last waited for a store that fails; infinite if none did."""
    try:
        return max(0.0, time.time() - (folder / WAITS).stat().st_mtime)
    except OSError:
        return float("inf")


def _file(uri: str, sha256: str, cache: ShardCache) -> Path | CachedFile | CheckedFile:
    if fsspec.utils.get_protocol(uri) in ("file", "local"):
        return Path(LocalFileSystem._strip_protocol(uri))
    return CachedFile(cache, uri, sha256)


def _check(actual: str, recorded: str, uri: str) -> None:
    if actual != recorded:
        raise CorruptArtifact(f"{uri}: sha256 is {actual[:12]}…, recorded is {recorded[:12]}…; rerun the pack stage")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    """Whether some process holds the lock at `path`."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
