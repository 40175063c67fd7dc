"""Ten thousand finished parts: planning asks the store a handful of questions, and a few seconds suffice."""

import resource
import time
from pathlib import Path

import pytest

from pipelines.flow.run.executor import run
from pipelines.flow.run.finishing import make_manifest
from pipelines.flow.run.part_task import reads_of
from pipelines.flow.run.planner import plan, work_of
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Count, Graph, Node, Part, PartResult, Read, SourceFile, Stage
from pipelines.flow.store.artifact import CountRecord, FileRecord, PartRecord
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store, make_ref
from tests.support.flow import toy
from tests.support.flow.helpers import counting
from x2vlm.config import FrozenConfig


class ManyConfig(FrozenConfig):
    num_parts: int = 10
    threshold: float = 0.25


def plan_many(config: ManyConfig, inputs) -> list[Part]:
    file = inputs["files"][0].parts[0].files[0]
    return [Part(f"{n:05d}", reads=(Read("files", file),), spec={"number": n}) for n in range(config.num_parts)]


def run_many(config, inputs, part, out) -> PartResult:
    (out.path / "a.txt").write_text(part.name)
    return PartResult({"rows": Count(1, 1)})


MANY = Stage("many", 1, ManyConfig, ("files",), plan_many, run_many)


def finished_graph(tmp_path: Path, num_parts: int) -> tuple[Graph, Store]:
    """A finished node of so many parts, written without running them: only records, as a plan reads only those."""
    store = Store(tmp_path / "store")
    source = SourceFile(str(toy.write_source(tmp_path, "a", ["x"])), card="a")
    graph = Graph([Node("many/a", MANY, ManyConfig(num_parts=num_parts), {"files": (source,)})])
    work = work_of(graph["many/a"], store, {}, SourceHashes(store))
    records = {}
    for part, fingerprint in zip(work.parts, work.fingerprints, strict=True):
        records[fingerprint] = PartRecord(
            stage="many",
            version=1,
            fingerprint=fingerprint,
            spec=dict(part.spec),
            reads=reads_of(part),
            files=[FileRecord(path=f"{name}.parquet", bytes=9, sha256="ab" * 32, rows=1) for name in ("rows", "drops")],
            counts={unit: CountRecord(num_in=9, num_out=8, dropped={"short": 1}) for unit in ("rows", "concepts")},
        )
        folder = Path(store.uri_of(part_folder("many", fingerprint)))
        folder.mkdir(parents=True)
        (folder / "part.json").touch()
    manifest, path, digest = store.write_manifest(make_manifest(work, records, {}))
    store.write_ref(make_ref("exp", graph["many/a"], manifest, path, digest))
    return graph, store


def test_the_number_of_reads_does_not_grow_with_the_parts(tmp_path: Path):
    found = []
    for num_parts in (10, 1000):
        graph, store = finished_graph(tmp_path / str(num_parts), num_parts)
        store, counts = counting(store)
        planned = plan(graph, store, "exp")
        assert planned.is_noop
        assert planned["many/a"].num_done == num_parts
        found.append(dict(counts))
        assert run(graph, planned, store, InlineRunner()).is_noop
        assert counts["write"] + counts["create"] < 10  # the lease
    assert found == [{"read": 2}, {"read": 2}]  # the manifest, and the remembered hashes of sources


@pytest.mark.slow
def test_planning_ten_thousand_finished_parts_takes_seconds(tmp_path: Path):
    graph, store = finished_graph(tmp_path, 10_000)
    started = time.monotonic()
    assert plan(graph, store, "exp").is_noop
    seconds = time.monotonic() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert (seconds < 5, peak_bytes < 500e6) == (True, True), f"{seconds:.1f} s, {peak_bytes / 1e6:.0f} MB"
