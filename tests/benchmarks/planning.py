"""What the driver costs at many parts: a plan of finished nodes, its memory, and each part of a node that runs.

    python -m tests.benchmarks.planning --parts 130000 [--half]

One source with so many parts goes through the curation nodes of an experiment, from read to pack, but for the nodes
that compare all rows (deduplication, decontamination). Nothing is run: the
records of parts are made up (files, counts and summaries as large as the stages write them; each partition part has
rows of the two or three shards that a range of keys has), their folders hold an empty `part.json`, and manifests are
written by the store's own code. Then, each in a process of its own:

* plan: seconds, CPU seconds and peak memory of a plan in which every node is finished, and of a run of it; with --half
  also for half as many parts.
* drive: CPU seconds of the driver for each part of a node that runs, with a runner that pickles the task as Ray does
  and gives back a made-up record, from the first submit to the written manifest; and the largest pickle.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa

from pipelines.experiment import load_experiment
from pipelines.flow.live import Listener, Report, no_report
from pipelines.flow.run import planner
from pipelines.flow.run.executor import run
from pipelines.flow.run.finishing import make_manifest, reused
from pipelines.flow.run.part_task import PartOutcome, reads_of
from pipelines.flow.run.planner import plan, work_of
from pipelines.flow.segments import SCHEMA, encode, segments_name
from pipelines.flow.stage import Graph, Node, Part, Stage, part_fingerprint
from pipelines.flow.store.artifact import CountRecord, FileRecord, PartRecord, SealedManifest
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store, make_ref
from pipelines.graph import build_graph
from pipelines.s4_materialize.slices import ROWS
from tests.support.experiments import experiment_file

ROWS_PER_PART = 10_000
STAGES = ("read", "download", "domains", "filter", "score", "partition", "pack")
HISTOGRAM = {"image": {kind: list(range(200)) for kind in ("real", "shuffled")}}
METRICS = {"rows_per_second": 12.345678, "bytes_per_second": 123456.789, "success_rate": 0.81}
SUMMARIES: Mapping[str, dict[str, Any]] = {
    "download": {
        **{"num_distinct_media": 8100, "media_bytes": 1 << 28, "fetched_bytes": 1 << 28, "fetch_seconds": 812.25},
        **{"metrics": METRICS, "hash_checks": {"nothing_came": 1900, "unknown": 8100}, "licences": {"?": 8100}},
        "dropped": {"http_404": 900, "timeout": 700, "decode_failed": 300},
    },
    "filter": {"boxes": {}, "region_texts": {}, "rules": {"row": {"min_short_edge": {"judged": 8100, "dropped": 100}}}},
    "score": {"weights_sha256": "ab" * 32, "scored": 8000, "missing": {"no_caption": 3}, "histograms": HISTOGRAM},
    "partition": {"grains": {"images": 8000, "captions": 8000}, "added": {"captions": 0, "concepts": 0}},
    "pack": {"grains": {"images": 8000, "captions": 8000}, "rows_by_texts": [["image", "laion", [[1, 0, 0, 8000]]]]},
}
FILES: Mapping[str, tuple[str, ...]] = {
    "download": ("domains.parquet", "drops.parquet", "ledger.parquet", "media.parquet", "media.tar", "rows.parquet"),
    "domains": ("domains.parquet", "flagged.parquet", "repeated.parquet"),
    "filter": ("drops.parquet", "rows.parquet"),
    "score": ("fingerprints.parquet", "scores.parquet", "variants.parquet"),
    "pack": ("drops.parquet", "shard.index", "shard.tar"),
}


def listing_of(number: int, num_parts: int) -> bytes:
    """The segments of a partition part whose rows come from a range of keys, and so lie in few shards."""
    num_shards = max(1, num_parts * 10 // 13)
    first, last = number * num_shards // num_parts, ((number + 1) * num_shards) // num_parts
    digest = hashlib.sha256(f"{number}".encode()).digest()
    groups = [{"name": f"{shard:05d}", "sha256": digest, "rows": 4000} for shard in range(first, last + 1)]
    segment = {"name": "slice", "offset": 0, "bytes": 1 << 20, "sha256": digest, "rows": 8000, "groups": groups}
    return encode(pa.Table.from_pylist([segment], schema=SCHEMA))


def made_up_record(stage: Stage, fingerprint: str, part: Part, number: int, num_parts: int) -> PartRecord:
    """The record of a part that was never run, as large as a real one."""
    paths = list(FILES.get(stage.name, ()))
    if stage.name == "read":
        paths = [f"rows-{file:05d}.parquet" for file in range(num_parts)]
    if stage.name == "partition":
        paths = ["drops.parquet", ROWS]
    files = [
        FileRecord(
            path=path, bytes=123_456, rows=8000, sha256=hashlib.sha256(f"{fingerprint}{path}".encode()).hexdigest()
        )
        for path in paths
    ]
    if stage.name == "partition":
        data = listing_of(number, num_parts)
        digest = hashlib.sha256(data).hexdigest()
        files.append(FileRecord(path=segments_name(ROWS), bytes=len(data), rows=1, sha256=digest))
    counts = {
        "rows": CountRecord(num_in=10_000, num_out=8100, dropped={"http_404": 900, "timeout": 700, "other": 300}),
        "captions": CountRecord(num_in=10_000, num_out=8100, dropped={"row_dropped": 1900}),
        "concepts": CountRecord(num_in=0, num_out=0),
    }
    return PartRecord(
        stage=stage.name,
        version=stage.version,
        fingerprint=fingerprint,
        spec=dict(part.spec),
        reads=reads_of(part),
        files=files,
        counts=counts,
        summary=SUMMARIES.get(stage.name, {}),
        seconds=800.125,
    )


def curation_graph(folder: Path) -> Graph:
    """The curation nodes of one image source whose parts are as many as its rows make them.

    Those that compare all rows are left out: what their plans read are listings of segments that a benchmark cannot
    make up.
    """
    num_parts = int((folder / "parts").read_text())
    path = experiment_file(
        folder,
        sources={
            "laion": {"card": "sample/laion"},
            "coco_heldout": {"card": "sample/coco_heldout", "role": "held_out"},
        },
        decontaminate=None,
        partition={"num_shards": max(1, num_parts * 10 // 13)},
        evaluate={},
    )
    graph = build_graph(load_experiment(str(path), str(folder / "store")))
    return Graph([node for node in graph.values() if node.stage.name in STAGES])


class _Records(Mapping[str, PartRecord]):
    """Made-up records by fingerprint."""

    def __init__(self, work: planner.NodeWork, num_parts: int) -> None:
        self._work, self._num_parts = work, num_parts
        self._places = {fingerprint: place for place, fingerprint in enumerate(work.fingerprints)}

    def __getitem__(self, fingerprint: str) -> PartRecord:
        place = self._places[fingerprint]
        return made_up_record(self._work.node.stage, fingerprint, self._work.parts[place], place, self._num_parts)

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def finish_all(graph: Graph, store: Store, num_parts: int) -> None:
    """Manifests, references and part folders of all nodes, as if they had run."""
    finished: dict[str, SealedManifest] = {}
    sources = SourceHashes(store)
    for node in graph.values():
        started = time.monotonic()
        work = work_of(node, store, {up: finished[up] for up in node.upstream()}, sources)
        own = num_parts if "heldout" not in node.key else 1
        records = _Records(work, own)
        places = {fingerprint: place for place, fingerprint in enumerate(work.fingerprints)}
        for fingerprint in work.fingerprints:
            folder = Path(store.uri_of(part_folder(node.stage.name, fingerprint)))
            folder.mkdir(parents=True)
            (folder / "part.json").touch()
            if node.stage.name == "partition":
                (folder / segments_name(ROWS)).write_bytes(listing_of(places[fingerprint], own))
        manifest, path, digest = store.write_manifest(make_manifest(work, records, {}))
        store.write_ref(make_ref("planning", node, manifest, path, digest))
        finished[node.key] = SealedManifest(manifest, path, digest)
        sizes = [file.stat().st_size for file in Path(store.uri_of(path)).parent.glob(f"{work.fingerprint}*")]
        count = len(work.parts)
        print(
            f"  made {node.key:28} {count:7} parts, manifest {sum(sizes) / 1e6:7.2f} MB, "
            f"{sum(sizes) / count:9.0f} B a part, {time.monotonic() - started:6.1f} s",
            flush=True,
        )


def measure_plan(folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a plan in which nothing is due, and of a run of it."""
    graph, store = curation_graph(folder), Store(folder / "store")
    by_node: dict[str, float] = {}
    original = planner.work_of

    def timed(node: Node, *args: Any, **kwargs: Any) -> planner.NodeWork:
        began = time.process_time()
        try:
            return original(node, *args, **kwargs)
        finally:
            by_node[node.key] = round(time.process_time() - began, 2)

    planner.work_of = timed
    started, used = time.monotonic(), time.process_time()
    planned = plan(graph, store, "planning")
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - used
    assert planned.is_noop, planner.explain(planned)
    assert reused(planned, store) is not None
    rerun = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "parts": max(len(node.parts) for node in planned.nodes),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "no_op_seconds": round(rerun, 2),
        "peak_GB": round(peak / 1e9, 2),
        "cpu_seconds_by_node": by_node,
    }


class PicklingRunner:
    """Pickles each task as Ray would and answers with a made-up record."""

    def __init__(self, num_parts: int) -> None:
        self.num_parts, self.largest, self.total = num_parts, 0, 0
        self._results: dict[int, PartOutcome] = {}
        self._number = 0

    def submit(self, node: Node, function: Callable[..., Any], *args: Any) -> Hashable:
        size = len(cloudpickle.dumps((function, args)))
        self.largest, self.total = max(self.largest, size), self.total + size
        _, stage, config, part, *_ = args
        self._number += 1
        record = made_up_record(stage, part_fingerprint(stage, config, part), part, self._number, self.num_parts)
        self._results[self._number] = PartOutcome(record)
        return self._number

    def wait(self, handles: Sequence[Hashable]) -> Sequence[Hashable]:
        return handles[:8]

    def result(self, handle: Hashable) -> Any:
        assert isinstance(handle, int)
        return self._results.pop(handle)

    def listen(self, listener: Listener) -> None:
        return None

    def reporter(self, node: Node, part: str) -> Report:
        return no_report

    def close(self) -> None:
        return None


def measure_drive(folder: Path, stage: str) -> dict[str, Any]:
    """Seconds of the driver for each part of the node of `stage` when it is run again."""
    graph, store = curation_graph(folder), Store(folder / "store")
    key = next(node.key for node in graph.values() if node.stage.name == stage and "heldout" not in node.key)
    planned = plan(graph, store, "planning", [key], force=[key])
    num_parts = len(planned[key].parts)
    runner = PicklingRunner(num_parts)
    before = time.process_time()
    run(graph, planned, store, runner)
    seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "node": key,
        "parts": num_parts,
        "ms_a_part": round(1e3 * seconds / num_parts, 3),
        "largest_pickle_bytes": runner.largest,
        "mean_pickle_bytes": runner.total // num_parts,
        "peak_GB": round(peak / 1e9, 2),
    }


def child(*words: str) -> dict[str, Any]:
    """What this module measures in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.planning", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=130_000)
    parser.add_argument("--half", action="store_true", help="also measure half as many parts, and the growth")
    parser.add_argument("--drive", nargs="*", default=["filter", "pack"], help="stages whose parts are driven")
    parser.add_argument("--measure", choices=["plan", "drive", "make"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "make":
        make(options.folder, options.parts)
    elif options.measure == "plan":
        print(json.dumps(measure_plan(options.folder)))
    elif options.measure == "drive":
        print(json.dumps(measure_drive(options.folder, options.drive[0])))
    else:
        measure(options)


def make(folder: Path, num_parts: int) -> None:
    """A store of finished nodes below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parts").write_text(str(num_parts))
    print(f"store of {num_parts} parts a node", flush=True)
    finish_all(curation_graph(folder), Store(folder / "store"), num_parts)


def measure(options: argparse.Namespace) -> None:
    """Make the stores, measure, and print."""
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="x2vlm-planning-") as temporary:
        for num_parts in [options.parts // 2] * options.half + [options.parts]:
            folder = Path(temporary) / str(num_parts)
            make(folder, num_parts)
            found = child("--measure", "plan", "--folder", str(folder))
            seconds[num_parts] = found["cpu_seconds"]
            print(json.dumps(found, indent=2), flush=True)
            for stage in options.drive:
                print(json.dumps(child("--measure", "drive", "--folder", str(folder), "--drive", stage)), flush=True)
    if len(seconds) == 2:
        small, large = sorted(seconds)
        print(f"{large} parts take {seconds[large] / seconds[small]:.2f} times the CPU seconds of {small}")


if __name__ == "__main__":
    main()
