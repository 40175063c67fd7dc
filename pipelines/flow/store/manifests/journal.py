"""What a driver knows of the parts of an unfinished artifact, so that resuming it reads few files.

Parts are the truth: a part counts only if it is in the store, and one that the journal does not know is asked for. A
kill at any moment therefore loses nothing but the knowledge of parts whose page was not written yet.
"""

import hashlib
import logging
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.store.artifact import PartRecord
from pipelines.flow.store.layout import journal_folder
from pipelines.flow.store.manifests.part_table import Chunk, PartTableWriter
from pipelines.flow.store.store import Store
from x2vlm.errors import StageFailed

log = logging.getLogger(__name__)

PAGE_PARTS = 1000  # records in a file


class HeldRecords(Mapping[str, PartRecord]):
    """Records by fingerprint, compressed: 130,000 of them take 100 MB instead of more than 1 GB."""

    def __init__(self, records: Iterable[PartRecord] = ()) -> None:
        self._held: dict[str, bytes] = {}
        for record in records:
            self.add(record)

    def add(self, record: PartRecord) -> None:
        """Hold `record`, in place of an earlier one of its fingerprint."""
        self._held[record.fingerprint] = zlib.compress(record.model_dump_json().encode(), level=1)

    def __getitem__(self, fingerprint: str) -> PartRecord:
        return PartRecord.model_validate_json(zlib.decompress(self._held[fingerprint]))

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Journal:
    """The journal of the artifact of `stage` with this fingerprint, in pages of PAGE_PARTS records.

    A page is named after the sha256 of its bytes; one that is damaged is passed over.
    """

    def __init__(self, store: Store, stage: str, fingerprint: str) -> None:
        self._store, self._folder = store, journal_folder(stage, fingerprint)
        self._waiting: list[PartRecord] = []
        self._num_pages = 0

    def read(self) -> Iterator[PartRecord]:
        """All records, in the order in which they were written."""
        for path in self._paths():
            data = self._store.blobs.read(path)
            digest = path.rsplit("-", 1)[-1].removesuffix(".parquet")
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                log.warning("event=journal_page_ignored path=%s meaning=its parts are asked for", path)
                continue
            table = pq.read_table(pa.BufferReader(data))
            chunk = Chunk(table.num_rows, table.column)
            yield from map(chunk.record, range(chunk.num_parts))

    def add(self, record: PartRecord) -> None:
        """Note a part that was committed; a full page is written."""
        self._waiting.append(record)
        if len(self._waiting) >= PAGE_PARTS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting. A store that refuses costs time at the next resume and nothing else: it is logged."""
        if not self._waiting:
            return
        writer = PartTableWriter()
        for record in self._waiting:
            writer.add("", record)
        data = writer.close()
        path = f"{self._folder}/{self._num_pages:06d}-{hashlib.sha256(data).hexdigest()}.parquet"
        self._store.fault("journal:before")
        try:
            self._store.blobs.create(path, data)
        except (OSError, StageFailed) as error:  # of a remote store StoreUnavailable, after many tries
            log.warning("event=journal_page_not_written path=%s error=%r", path, str(error))
        self._store.fault("journal:after")
        self._num_pages += 1
        self._waiting.clear()

    def clear(self) -> None:
        """Remove all pages: there is a manifest now, or they tell of parts that are gone.

        A page that a store keeps is read by nobody once there is a manifest; that it stays is logged.
        """
        try:
            for path in self._paths():
                self._store.blobs.delete(path)
        except (OSError, StageFailed) as error:
            log.warning("event=journal_not_removed folder=%s error=%r", self._folder, str(error))
        self._waiting.clear()

    def _paths(self) -> list[str]:
        paths = self._store.blobs.find(self._folder)
        self._num_pages = max(self._num_pages, len(paths))
        return paths


def open_journal(store: Store, stage: str, fingerprint: str, num_parts: int) -> Journal | None:
    """The journal of an artifact of so many parts; None if it has no more of them than a page."""
    return Journal(store, stage, fingerprint) if num_parts > PAGE_PARTS else None


def known_records(store: Store, stage: str, done: Collection[str], known: Iterable[PartRecord]) -> HeldRecords:
    """The records of the committed parts `done`: those that `known` has, of others what the parts themselves say."""
    wanted = set(done)
    held = HeldRecords(record for record in known if record.fingerprint in wanted)
    for record in store.read_parts(stage, [fingerprint for fingerprint in done if fingerprint not in held]).values():
        held.add(record)
    return held


def journalled(journal: Journal, done: Collection[str]) -> Iterator[PartRecord]:
    """What the journal knows of the parts in `done`.

    If it also tells of a part that is gone it is written anew without that one: when the part has been made again its
    record may be another.
    """
    records = HeldRecords(journal.read())
    there = set(done)
    if any(fingerprint not in there for fingerprint in records):
        log.warning("event=journal_rewritten stage_parts_gone=%d", sum(one not in there for one in records))
        journal.clear()
        for fingerprint in records:
            if fingerprint in there:
                journal.add(records[fingerprint])
        journal.flush()
    return (records[fingerprint] for fingerprint in records if fingerprint in there)
