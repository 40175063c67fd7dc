"""Upstream files as inputs: hashed once, remembered by size and time of change, refused if not as promised."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import fsspec

from pipelines.flow.fingerprint import sha256_of_file, sha256_of_stream
from pipelines.flow.stage import Input, InputFile, InputPart, SourceFile
from pipelines.flow.store.blobs import PROJECT_SCHEME, local_path_of
from pipelines.flow.store.source_trees import tree_input
from pipelines.flow.store.store import Store
from x2vlm.errors import SourceUnavailable
from x2vlm.stores.objects import Objects

log = logging.getLogger(__name__)

CACHE_PATH = "state/source_hashes.jsonl"
# A file changed this recently may change again without its size or time showing it, so its hash is not remembered.
SETTLED_SECONDS = 2.0

Stamp = tuple[str, int, str]  # uri, bytes, time of change or entity tag


class SourceHashes:
    """sha256 of upstream files, remembered in the store. The file it keeps is a cache: losing lines costs time only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Stamp, str] = {}
        self._trees: dict[tuple[str, tuple[str, ...]], Input] = {}
        for line in (store.blobs.read(CACHE_PATH) or b"").splitlines():
            try:
                entry = json.loads(line)
                self._known[(str(entry["uri"]), int(entry["bytes"]), str(entry["stamp"]))] = str(entry["sha256"])
            except (ValueError, KeyError, TypeError):
                log.warning("event=source_hash_line_ignored store=%s", store.uri)

    def fingerprint(self, source: SourceFile) -> Input:
        """The file as a node's input: node "source:<card>", one part with one file, or with all files of a tree.

        SourceUnavailable names card, file and remedy where it is missing, unreadable or not the published one.
        """
        if source.patterns:
            if (key_of_tree := (source.uri, source.patterns)) not in self._trees:
                self._trees[key_of_tree] = tree_input(source, lambda file: self.fingerprint(file).root)
            return self._trees[key_of_tree]
        uri, size, stamp, settled = self._look_at(source)
        key = (uri, size, stamp)
        digest = self._known.get(key)
        if digest is None:
            digest = self._hash(source)
            if settled:
                self._remember(key, digest)
        if source.sha256 is not None and digest != source.sha256.lower():
            raise SourceUnavailable(
                f"card {source.card}: {source.uri}: its sha256 is {digest}, the card expects {source.sha256}. The file "
                "was truncated, changed or is another release: download it again, or correct the card"
            )
        name = uri.rstrip("/").rsplit("/", 1)[-1]
        file = InputFile(path=name, bytes=size, sha256=digest, uri=uri)
        return Input(node=f"source:{source.card}", root=digest, parts=(InputPart(name=name, files=(file,)),))

    def _look_at(self, source: SourceFile) -> tuple[str, int, str, bool]:
        """(absolute uri, bytes, stamp, settled) of the file as it is now."""
        local = local_path_of(source.uri)
        try:
            if local is not None:
                stat = local.stat()
                if not local.is_file():
                    raise SourceUnavailable(f"card {source.card}: {local} is a folder; the card must name files")
                settled = abs(time.time() - stat.st_mtime) > SETTLED_SECONDS
                name = source.uri if source.uri.startswith(PROJECT_SCHEME) else str(local)
                return name, stat.st_size, str(stat.st_mtime_ns), settled
            fs = self._fs(source.uri)
            info: dict[str, Any] = Objects(fs).call(lambda: fs.info(source.uri), f"look at {source.uri}")
            stamp = next((str(info[k]) for k in ("ETag", "etag", "LastModified", "mtime") if info.get(k)), "")
            return source.uri, int(info["size"]), stamp, bool(stamp)
        except OSError as error:
            raise self._unavailable(source, error) from error

    def _hash(self, source: SourceFile) -> str:
        local = local_path_of(source.uri)
        try:
            if local is not None:
                return sha256_of_file(Path(local))[0]
            fs = self._fs(source.uri)

            def hashed() -> str:
                with fs.open(source.uri, "rb") as stream:
                    return sha256_of_stream(stream)[0]

            return Objects(fs).call(hashed, f"read {source.uri}")
        except OSError as error:
            raise self._unavailable(source, error) from error

    def _fs(self, uri: str) -> Any:
        blobs = self._store.blobs
        if blobs.local_root is None and uri.split("://", 1)[0] == blobs.protocol:
            return blobs.fs
        return fsspec.core.url_to_fs(uri)[0]

    def _remember(self, key: Stamp, digest: str) -> None:
        self._known[key] = digest
        uri, size, stamp = key
        line = json.dumps({"uri": uri, "bytes": size, "stamp": stamp, "sha256": digest}).encode() + b"\n"
        root = self._store.blobs.local_root
        if root is None:
            self._store.blobs.write(CACHE_PATH, (self._store.blobs.read(CACHE_PATH) or b"") + line)
            return
        path = root / CACHE_PATH
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as stream:  # one write: lines of two drivers never mix
                stream.write(line)
        except OSError as error:
            log.warning("event=source_hash_not_remembered path=%s error=%s", path, error)

    def _unavailable(self, source: SourceFile, error: OSError) -> SourceUnavailable:
        reason = error.strerror or str(error) or type(error).__name__
        return SourceUnavailable(
            f"card {source.card}: {source.uri}: {reason}. Put the file there (the card says where it comes from), or "
            "take the source out of the experiment"
        )
