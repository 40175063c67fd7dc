"""An index of the rows in the files of an artifact: sorted hashes of keys and URLs in buckets, built once.

A bucket holds the hashes that begin with certain bits, about a million of them, so that a question opens one file of a
few megabytes however many rows there are. An index is derived data: it lies in the store (`index/`), is named by the
artifact's root, and can be deleted at any time. It is built by all CPUs of this machine, first a draft for every
GROUP_FILES files, then the buckets; a build that broke off goes on with the drafts that it has.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import InputFile
from pipelines.flow.store.artifact import FileRecord, Manifest, PartRecord
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from pipelines.why.parallel import parallel

log = logging.getLogger(__name__)

COLUMNS = ("key", "url")
KEY_DIGITS = 32
BUCKET_ROWS = 1 << 20
GROUP_FILES = 64
ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4")])
DONE, FILES, DRAFTS = "index.json", "files.npy", "drafts"

Numbered = Sequence[tuple[int, InputFile]]


class RowIndex:
    """Finds the files of one artifact that contain a key or a URL. A question opens two files."""

    def __init__(self, store: Store, folder: str, bits: int) -> None:
        self._store, self._folder, self._bits = store, folder, bits

    def files_with(self, column: str, text: str) -> list[str]:
        """sha256 of the files where `column` may have the value `text`. Hashes have 64 bits: verify hits."""
        wanted = _hash(column, text)
        bucket = self._load(_bucket_name(column, _bucket_of(wanted, self._bits)))
        # A Python number would convert the whole array to floats: 30 ms for 20 million rows instead of 20 us.
        hashes, sought = bucket["hash"], np.uint64(wanted)
        first, last = np.searchsorted(hashes, sought, "left"), np.searchsorted(hashes, sought, "right")
        numbers = sorted(set(bucket["file"][first:last].tolist()))
        return [bytes(digest).hex() for digest in self._load(FILES)[numbers]] if numbers else []

    def _load(self, name: str) -> np.ndarray:
        root, place = self._store.local_root, f"{self._folder}/{name}"
        found: np.ndarray
        if root is not None:
            found = np.load(root / place, mmap_mode="r")
        else:
            found = np.load(io.BytesIO(self._store.blobs.read(place) or b""))
        return found


def open_index(store: Store, manifest: Manifest) -> RowIndex:
    """The index of the rows of an artifact; the first call builds it, in one pass over its keys and URLs."""
    folder = f"index/{manifest.root}"
    done = store.blobs.read(f"{folder}/{DONE}")
    if done is None:
        _build(store, manifest, folder)
        done = store.blobs.read(f"{folder}/{DONE}") or b"{}"
    return RowIndex(store, folder, int(json.loads(done)["bits"]))


def _build(store: Store, manifest: Manifest, folder: str) -> None:
    records = ((p.record, file) for p in manifest.parts for file in p.record.files if file.path.endswith(".parquet"))
    files = [_input_file(store, record, file) for record, file in records]
    rows = sum(file.rows or 0 for file in files)
    bits = max(0, (rows - 1) // BUCKET_ROWS).bit_length()
    log.info("event=row_index_built node=%s files=%d rows=%d buckets=%d", manifest.node, len(files), rows, 1 << bits)
    root = store.local_root or Path(tempfile.gettempdir()) / f"x2vlm-index-{os.getuid()}"
    local = root / folder
    (local / DRAFTS).mkdir(parents=True, exist_ok=True, mode=0o700)
    numbered = list(enumerate(files))
    groups = [numbered[start : start + GROUP_FILES] for start in range(0, len(files), GROUP_FILES)]
    with parallel(len(groups)) as run:
        list(run(_write_draft, [(store.uri, local, number, group) for number, group in enumerate(groups)]))
        buckets = [(column, number) for column in COLUMNS for number in range(1 << bits)]
        list(run(_write_bucket, [(local, len(groups), column, number, bits) for column, number in buckets]))
    _save(local / FILES, np.array([list(bytes.fromhex(file.sha256)) for file in files], np.uint8).reshape(-1, 32))
    shutil.rmtree(local / DRAFTS)
    if store.local_root is None:
        for path in sorted(local.glob("*.npy")):
            store.blobs.write(f"{folder}/{path.name}", path.read_bytes())
        shutil.rmtree(local)
    store.blobs.write(f"{folder}/{DONE}", json.dumps({"bits": bits}).encode())  # last: without it there is no index


def _write_draft(task: tuple[str, Path, int, Numbered]) -> None:
    """The sorted entries of a group of files, one array a column."""
    uri, local, group, files = task
    if all(_draft_path(local, column, group).exists() for column in COLUMNS):
        return
    store = Store(uri)
    found: dict[str, list[np.ndarray]] = {column: [np.empty(0, ENTRY)] for column in COLUMNS}
    with tempfile.TemporaryDirectory(prefix="x2vlm-index-") as scratch:
        for number, file in files:
            path = StoreReader(store, Path(scratch)).local_path(file)
            names = [name for name in COLUMNS if name in pq.read_schema(path).names]
            table = pq.read_table(path, columns=names)
            shutil.rmtree(Path(scratch) / file.sha256, ignore_errors=True)  # one fetched copy at a time is on disk
            for name in names:
                hashes = _hashes(name, pc.drop_null(table[name].unique()).to_pylist())
                entries = np.empty(len(hashes), ENTRY)
                entries["hash"], entries["file"] = hashes, number
                found[name].append(entries)
    for column, arrays in found.items():
        _save(_draft_path(local, column, group), _in_order(arrays))


def _write_bucket(task: tuple[Path, int, str, int, int]) -> None:
    """The entries of all drafts that begin with the bits of one bucket."""
    local, num_groups, column, number, bits = task
    first, last = number << (64 - bits), ((number + 1) << (64 - bits)) - 1
    found = [np.empty(0, ENTRY)]
    for group in range(num_groups):
        draft = np.load(_draft_path(local, column, group), mmap_mode="r")
        start = np.searchsorted(draft["hash"], np.uint64(first), "left")
        found.append(np.array(draft[start : np.searchsorted(draft["hash"], np.uint64(last), "right")]))
    _save(local / _bucket_name(column, number), _in_order(found))


def _in_order(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Entries by hash; those of earlier files first."""
    together = np.concatenate(arrays)
    return together[np.argsort(together["hash"], kind="stable")]


def _save(path: Path, array: np.ndarray) -> None:
    draft = path.with_name(f".{path.name}")
    np.save(draft, array)
    os.replace(draft, path)


def _draft_path(local: Path, column: str, group: int) -> Path:
    return local / DRAFTS / f"{column}-{group:05d}.npy"


def _bucket_name(column: str, number: int) -> str:
    return f"{column}-{number:05d}.npy"


def _bucket_of(hashed: int, bits: int) -> int:
    return hashed >> (64 - bits)


def _input_file(store: Store, record: PartRecord, file: FileRecord) -> InputFile:
    return InputFile(file.path, file.bytes, file.sha256, store.file_uri(record, file), file.rows)


def _hashes(column: str, texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((_hash(column, text) for text in texts), dtype=np.uint64)


def _hash(column: str, text: str) -> int:
    """64 bits of a value. A key is already the start of a sha256."""
    if column == "key" and len(text) == KEY_DIGITS:
        return int(text[:16], 16)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
