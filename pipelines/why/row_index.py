"""An index of the rows in the files of a `read` artifact: a sorted list of hashes, built once and searched in place.

An index is derived data. It is beside the store (`index/`), or in the machine's temporary folder for a remote one, is
named by the artifact's root, and can be deleted at any time.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import InputFile
from pipelines.flow.store.artifact import FileRecord, Manifest, PartRecord
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store

log = logging.getLogger(__name__)

COLUMNS = ("key", "url")
KEY_DIGITS = 32


class RowIndex:
    """Finds the files of one artifact that contain a key or a URL. Opens only two memory-mapped arrays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[str] = json.loads((folder / "files.json").read_text(encoding="utf-8"))

    def files_with(self, column: str, text: str) -> list[str]:
        """sha256 of the files where `column` may have the value `text`. Hashes have 64 bits: verify hits."""
        hashes = np.load(self._folder / f"{column}.hash.npy", mmap_mode="r")
        places = np.load(self._folder / f"{column}.file.npy", mmap_mode="r")
        # A Python number would convert the whole array to floats: 30 ms for 20 million rows instead of 20 us.
        wanted = np.uint64(_hash(column, text))
        first, last = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        return [self._files[number] for number in sorted(set(places[first:last].tolist()))]


def open_index(store: Store, manifest: Manifest) -> RowIndex:
    """The index of a `read` artifact; the first call builds it, which takes one pass over its keys and URLs."""
    root = store.local_root or Path(tempfile.gettempdir()) / f"x2vlm-index-{os.getuid()}"
    folder = root / "index" / manifest.root
    if not (folder / "files.json").exists():
        _build(store, manifest, folder)
    return RowIndex(folder)


def _build(store: Store, manifest: Manifest, folder: Path) -> None:
    files = [(p.record, file) for p in manifest.parts for file in p.record.files if file.path.endswith(".parquet")]
    rows = sum(file.rows or 0 for _, file in files)
    log.info("event=row_index_built node=%s files=%d rows=%d", manifest.node, len(files), rows)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        draft = Path(scratch)
        hashed = list(_hashed_files(store, files, draft))
        for column in COLUMNS:
            hashes = np.concatenate([found[column] for found in hashed] or [np.empty(0, np.uint64)])
            places = np.repeat(np.arange(len(hashed), dtype=np.uint32), [len(found[column]) for found in hashed])
            order = np.argsort(hashes, kind="stable")
            np.save(draft / f"{column}.hash.npy", hashes[order])
            np.save(draft / f"{column}.file.npy", places[order])
            for kind in ("hash", "file"):
                os.replace(draft / f"{column}.{kind}.npy", folder / f"{column}.{kind}.npy")
        (draft / "files.json").write_text(json.dumps([file.sha256 for _, file in files]), encoding="utf-8")
        os.replace(draft / "files.json", folder / "files.json")  # last: without it there is no index


def _hashed_files(
    store: Store, files: Sequence[tuple[PartRecord, FileRecord]], scratch: Path
) -> Iterator[dict[str, np.ndarray]]:
    """Per file the hashes of every indexed column."""
    for record, file in files:
        path = StoreReader(store, scratch, record.fingerprint).local_path(_input_file(store, record, file))
        names = [name for name in COLUMNS if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=names)
        shutil.rmtree(scratch / file.sha256, ignore_errors=True)  # fetched copy: only one file at a time is on disk
        columns = {name: table[name].unique() for name in names}
        yield {
            name: _hashes(name, pc.drop_null(columns[name]).to_pylist() if name in columns else []) for name in COLUMNS
        }


def _input_file(store: Store, record: PartRecord, file: FileRecord) -> InputFile:
    return InputFile(file.path, file.bytes, file.sha256, store.file_uri(record, file), file.rows)


def _hashes(column: str, texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((_hash(column, text) for text in texts), dtype=np.uint64)


def _hash(column: str, text: str) -> int:
    """64 bits of a value. A key is already the start of a sha256."""
    if column == "key" and len(text) == KEY_DIGITS:
        return int(text[:16], 16)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
