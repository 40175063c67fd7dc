"""How parts open their inputs: verified against the recorded sha256 before the first use, fetched if remote."""

import hashlib
import os
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import fsspec

from pipelines.flow.fingerprint import sha256_of_file
from pipelines.flow.stage import ArtifactReference, Input, InputFile
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from pipelines.flow.store.temporary import cache_base
from x2vlm.errors import CorruptArtifact, SourceUnavailable
from x2vlm.stores.file_cache import FileCache
from x2vlm.stores.objects import Objects

# Files this process has already checked: (path, size, mtime, expected sha256). Media packs are opened by many parts.
_verified: set[tuple[str, int, int, str]] = set()
# Artifacts that parts of this process look things up in: their manifests are read once, not once a part.
KEPT_ARTIFACTS = 16
_artifacts: dict[tuple[str, ArtifactReference], Input] = {}
_opening = threading.Lock()


class StoreReader:
    """Opens input files of one part. Remote files come through a cache shared by all processes of this machine.

    `links` is a folder of this attempt: what is handed out is a hard link there, so that the cache may drop a file
    at any time without pulling it from under its reader.
    """

    def __init__(self, store: Store, links: Path, part: str = "", cache: Path | None = None) -> None:
        self.store, self.links, self.part = store, links, part
        self.cache = cache or cache_base() / f"x2vlm-cache-{os.getuid()}"
        self._cache = FileCache(self.cache)

    def open(self, file: InputFile) -> BinaryIO:
        """A stream of the file's verified bytes."""
        return self.local_path(file).open("rb")

    def artifact(self, reference: ArtifactReference) -> Input:
        """The artifact named by one of the part's `lookup_artifacts`; CorruptArtifact if its manifest changed."""
        key = (self.store.uri, reference)
        with _opening:
            found = _artifacts.pop(key, None) or self.store.open_artifact(reference)
            _artifacts[key] = found  # the last one used comes last
            while len(_artifacts) > KEPT_ARTIFACTS:
                del _artifacts[next(iter(_artifacts))]
        return found

    def local_path(self, file: InputFile) -> Path:
        """A local file with the verified bytes; of a segment, a file of its bytes alone. Errors: CorruptArtifact
        (names file, part, both digests), SourceUnavailable (gone or unreadable)."""
        local = local_path_of(file.uri)
        if file.start is not None:
            return self._segment(file, local)
        if local is None:
            return self._fetched(file)
        try:
            stat = local.stat()
            key = (str(local), stat.st_size, stat.st_mtime_ns, file.sha256)
            if key not in _verified:
                found, size = sha256_of_file(local)
                if found != file.sha256:
                    raise self._corrupt(file, found, size)
                _verified.add(key)
        except OSError as error:
            raise self._missing(file, error) from error
        return local

    def read_range(self, file: InputFile, start: int, num_bytes: int) -> bytes:
        """So many bytes of the file from `start` on, not checked; SourceUnavailable if it is gone or unreadable."""
        return self._range(replace(file, start=start, bytes=num_bytes), local_path_of(file.uri))

    def _segment(self, file: InputFile, local: Path | None) -> Path:
        """The bytes of a segment, read as a range and checked, in a file of this attempt."""
        target = self.links / file.sha256 / "segment"
        if target.exists():
            return target
        data = self._range(file, local)
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            raise self._corrupt(file, found, len(data))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        temporary.write_bytes(data)
        os.replace(temporary, target)
        return target

    def _range(self, file: InputFile, local: Path | None) -> bytes:
        assert file.start is not None
        try:
            if local is not None:
                with local.open("rb") as stream:
                    stream.seek(file.start)
                    return stream.read(file.bytes)
            objects, path = self._remote(file.uri)
            return objects.read_range(path, file.start, file.bytes)
        except OSError as error:
            raise self._missing(file, error) from error

    def _fetched(self, file: InputFile) -> Path:
        link = self.links / file.sha256 / Path(file.path).name
        if link.exists():
            return link
        link.parent.mkdir(parents=True, exist_ok=True)
        if not self._cache.take(file.sha256, file.bytes, link):
            self._download(file, link)
            self._cache.keep(link, file.sha256)
        return link

    def _download(self, file: InputFile, target: Path) -> None:
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        digest, size = hashlib.sha256(), 0
        try:
            objects, path = self._remote(file.uri)
            with temporary.open("xb") as sink:
                for piece in objects.stream(path, file.bytes):
                    digest.update(piece)
                    sink.write(piece)
                    size += len(piece)
        except FileNotFoundError as error:
            raise self._missing(file, error) from error
        if digest.hexdigest() != file.sha256:
            raise self._corrupt(file, digest.hexdigest(), size)
        os.replace(temporary, target)

    def _remote(self, uri: str) -> tuple[Objects, str]:
        """The store's own client for its files, one without options for others, and the path there."""
        blobs = self.store.blobs
        if uri.startswith(f"{self.store.uri}/"):
            return blobs.objects, blobs.path_of(uri.removeprefix(f"{self.store.uri}/"))
        file_system, path = fsspec.core.url_to_fs(uri)
        return Objects(file_system), str(path)

    def _corrupt(self, file: InputFile, found: str, size: int) -> CorruptArtifact:
        return CorruptArtifact(
            f"{file.uri}: read as {file.path} by part {self.part or '?'}: sha256 is {found} ({size} bytes), recorded "
            f"was {file.sha256} ({file.bytes} bytes). Rerun the node that wrote it with --force to make it again "
            "from its inputs, or restore the file"
        )

    def _missing(self, file: InputFile, error: OSError) -> SourceUnavailable:
        return SourceUnavailable(
            f"{file.uri}: read as {file.path} by part {self.part or '?'}: {error.strerror or error}. Restore the "
            "file, or rerun the node that wrote it with --force: a plan looks for records of parts, not for files"
        )
