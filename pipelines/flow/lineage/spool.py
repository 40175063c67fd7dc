"""The spool: lineage first becomes lines on disk, so that a dead MLflow costs nothing but a later delivery.

In a local store one run of the graph is `lineage/<dag_run>.jsonl`, appended and fsynced line by line. Object stores
cannot append: there it is one object per record below `lineage/<dag_run>/`. Beside it, per MLflow server, a marker says
how many records that server has.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.store.artifact import seal, unseal
from pipelines.flow.store.store import Store
from x2vlm.errors import CorruptArtifact

log = logging.getLogger(__name__)


class Spool:
    """Records of one run of the graph. One process appends; any process may read."""

    def __init__(self, store: Store, dag_run: str) -> None:
        self.store, self.dag_run = store, dag_run
        self._num_objects: int | None = None

    def append(self, record: LineageRecord) -> None:
        """Write `record` so that it survives a crash of this machine; OSError if the store refuses."""
        line, _ = seal(record)
        root = self.store.blobs.local_root
        if root is None:
            if self._num_objects is None:
                self._num_objects = len(self.store.blobs.find(f"lineage/{self.dag_run}"))
            self.store.blobs.write(f"lineage/{self.dag_run}/{self._num_objects:06d}.json", line)
            self._num_objects += 1
            return
        path = root / self._file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a line torn by a crash must not swallow this one
                    line = b"\n" + line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> list[LineageRecord]:
        """All whole records in order. A line torn by a crash is left out with a warning: nobody was told of it."""
        if self.store.blobs.local_root is not None:
            lines = (self.store.blobs.read(self._file) or b"").splitlines(keepends=True)
        else:
            paths = self.store.blobs.find(f"lineage/{self.dag_run}")
            lines = [self.store.blobs.read(path) or b"" for path in paths]
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(unseal(LineageRecord, line, f"lineage/{self.dag_run} line {number}")[0])
            except CorruptArtifact as error:
                log.warning("event=spool_line_skipped dag_run=%s line=%d error=%r", self.dag_run, number, str(error))
        return records

    def is_settled(self, tracking_uri: str) -> bool:
        """Whether the server has all records and the run has ended, or another process is delivering right now.

        Nothing is parsed, because a store may hold the spools of hundreds of runs.
        """
        if self.store.blobs.local_root is not None:
            lines = (self.store.blobs.read(self._file) or b"").splitlines()
            number, last = len(lines), lines[-1] if lines else b""
        else:
            paths = self.store.blobs.find(f"lineage/{self.dag_run}")
            number, last = len(paths), (self.store.blobs.read(paths[-1]) or b"") if paths else b""
        if number == 0 or (b'"run_finished"' in last and self.num_delivered(tracking_uri) >= number):
            return True
        with self.exclusive() as mine:
            return not mine

    def num_delivered(self, tracking_uri: str) -> int:
        """How many records the server at `tracking_uri` already has."""
        data = self.store.blobs.read(self._marker(tracking_uri))
        try:
            return int(json.loads(data)["num_delivered"]) if data else 0
        except (ValueError, KeyError, TypeError):
            return 0  # delivery is idempotent: a lost marker costs time, never a duplicate

    def mark_delivered(self, tracking_uri: str, num_delivered: int) -> None:
        """Note that the server at `tracking_uri` has the first `num_delivered` records."""
        data = json.dumps({"num_delivered": num_delivered}).encode()
        self.store.blobs.write(self._marker(tracking_uri), data)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[bool]:
        """True where this process alone may deliver the spool now. Object stores have no locks: always True there,
        and delivery removes the duplicate runs that two deliverers at once may leave."""
        root = self.store.blobs.local_root
        if root is None:
            yield True
            return
        path = root / "lineage" / f"{self.dag_run}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @property
    def _file(self) -> str:
        return f"lineage/{self.dag_run}.jsonl"

    def _marker(self, tracking_uri: str) -> str:
        root = self.store.blobs.local_root
        place = tracking_uri if root is None else tracking_uri.replace(str(root), "")  # a copied store has its database
        server = hashlib.sha256(place.encode()).hexdigest()[:12]  # the address itself may hold a password
        return f"lineage/{self.dag_run}.delivered-{server}"


def spools(store: Store) -> list[Spool]:
    """Every spool of a store, oldest first (names begin with the time)."""
    if store.blobs.local_root is None:
        runs = store.blobs.folders("lineage")
    else:
        paths = store.blobs.find("lineage")
        runs = [Path(path).stem for path in paths if path.endswith(".jsonl") and path.count("/") == 1]
    return [Spool(store, run) for run in sorted(runs)]


def running_series(records: list[LineageRecord]) -> list[LineageRecord]:
    """The starts of those nodes that have a live series and have not ended."""
    running: dict[str, LineageRecord] = {}
    for record in records:
        if record.type == "node_started" and record.live_series:
            running[record.run_key] = record
        elif record.type in ("node_finished", "node_failed", "node_blocked"):
            running.pop(record.run_key, None)
    return list(running.values())
