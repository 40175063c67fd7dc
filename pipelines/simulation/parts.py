"""A runner whose parts do no work: each asks the store what a worker would ask, and commits made-up files."""

import hashlib
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pydantic

from pipelines.flow.live import Listener, Report, no_report
from pipelines.flow.run.part_task import PartOutcome, reads_of
from pipelines.flow.segments import SEGMENTS, segments_with
from pipelines.flow.stage import InputFile, Node, Part, Stage, part_fingerprint
from pipelines.flow.store.artifact import CountRecord, FileRecord, PartRecord
from pipelines.flow.store.commit import commit_record
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.scratch import ScratchWriter
from pipelines.flow.store.store import Store
from pipelines.simulation.listings import digests
from pipelines.simulation.outputs import Made, Outputs
from pipelines.simulation.scenario import UPSTREAM

# Stages whose parts read their lookups whole; others take what they need out of them.
READ_LOOKUPS = frozenset({"score"})


class SimulatedRunner:
    """Runs made-up parts in this process. What they cost is kept apart from what the driver does around them: `seconds`
    of CPU, and `requests` by node."""

    def __init__(self, store: Store, outputs: Outputs) -> None:
        self.seconds = 0.0
        self.requests: dict[str, Counter[str]] = defaultdict(Counter)
        self.all_requests: Counter[str] = Counter()
        self.pickled_bytes: Counter[str] = Counter()
        self.largest_pickle: Counter[str] = Counter()
        self._store, self._outputs = store, outputs
        self._waiting: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self._number = 0
        self._folder = Path(tempfile.mkdtemp(prefix="x2vlm-simulation-"))

    def submit(self, node: Node, function: Callable[..., Any], *args: Any) -> Hashable:
        """Pickle the task, as Ray does."""
        size = len(cloudpickle.dumps((function, args)))
        self.pickled_bytes[node.key] += size
        self.largest_pickle[node.key] = max(self.largest_pickle[node.key], size)
        self._number += 1
        self._waiting[self._number] = (node.key, args)
        return self._number

    def wait(self, handles: Sequence[Hashable]) -> Sequence[Hashable]:
        return handles[:8]

    def result(self, handle: Hashable) -> Any:
        assert isinstance(handle, int)
        key, (_, stage, config, part, *_) = self._waiting.pop(handle)
        fs = self._store.blobs.fs
        before, started = Counter(fs.requests), time.process_time() - fs.seconds
        record = self._run(stage, config, part)
        self.seconds += time.process_time() - fs.seconds - started
        asked = Counter(fs.requests) - before
        self.requests[key] += asked
        self.all_requests += asked
        return PartOutcome(record)

    def listen(self, listener: Listener) -> None:
        """Nothing is reported."""

    def reporter(self, node: Node, part: str) -> Report:
        return no_report

    def close(self) -> None:
        self._waiting.clear()
        (self._folder / "out").rmdir()
        self._folder.rmdir()

    def _run(self, stage: Stage, config: pydantic.BaseModel, part: Part) -> PartRecord:
        fingerprint = part_fingerprint(stage, config, part)
        if (existing := self._store.read_part(stage.name, fingerprint)) is not None:
            return existing
        self._read(stage, part)
        made = self._outputs.of(stage, config, part)
        return self._commit(stage, part, fingerprint, made)

    def _read(self, stage: Stage, part: Part) -> None:
        """Ask for every file and segment once, as a worker whose cache has none of them."""
        reader = StoreReader(self._store, self._folder)
        files = [read.file for read in part.reads]
        if stage.name in READ_LOOKUPS:
            files += [lookup.file for lookup in part.lookups]
        artifacts = [reader.artifact(lookup.artifact) for lookup in part.lookup_artifacts]
        for file in dict.fromkeys(files):
            if SEGMENTS in file.detail:
                for _, segment in segments_with(file, artifacts[0]):
                    self._ask(segment)
            else:
                self._ask(file)

    def _ask(self, file: InputFile) -> None:
        blobs = self._store.blobs
        path = file.uri if file.uri.startswith(UPSTREAM) else blobs.path_of(file.uri.removeprefix(f"{blobs.uri}/"))
        if file.start is not None:
            blobs.objects.read_range(path, file.start, file.bytes)
            return
        for _ in blobs.objects.stream(path, file.bytes):
            pass

    def _commit(self, stage: Stage, part: Part, fingerprint: str, made: Made) -> PartRecord:
        """By the store's own code, of files without content but for listings."""
        writer = ScratchWriter(self._store.blobs, stage.name, fingerprint, self._folder)
        writer.path.mkdir(exist_ok=True)
        names = sorted(made.files, key=lambda file: file.path)
        hashes = digests(fingerprint, len(names)).to_pylist()
        files = []
        for file, digest in zip(names, hashes, strict=True):
            size = file.size if file.data is None else len(file.data)
            with (writer.path / file.path).open("wb") as stream:
                stream.truncate(size)
                if file.data is not None:
                    stream.write(file.data)
                    digest = hashlib.sha256(file.data).digest()
            files.append(FileRecord(path=file.path, bytes=size, rows=file.rows, sha256=digest.hex()))
        record = PartRecord(
            stage=stage.name,
            version=stage.version,
            fingerprint=fingerprint,
            spec=dict(part.spec),
            reads=reads_of(part),
            files=files,
            counts={unit: CountRecord.of(count) for unit, count in sorted(made.counts.items())},
            summary=dict(made.summary),
            seconds=800.125,
        )
        committed = commit_record(self._store.blobs, self._store.fault, writer, record)
        for file in names:
            (writer.path / file.path).unlink()
        return committed
