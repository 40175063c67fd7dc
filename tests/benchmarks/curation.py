"""Recall and precision of every curation rule on a world with known ground truth, from read to partition.

    python -m tests.benchmarks.curation --scenes 20000 [--workers 2] [--out FOLDER]

A planted defect counts as found if its row (caption, concept) is dropped in the stage and by the rule of the
truth; other drops count against precision. Duplicates and leaks are judged by scenes: two rows may be duplicates, and a
row a leak, only if they show the same scene. No model of shapes is needed:
mismatched captions are left to `tests/corpora/world/test_world_clip.py`.
"""

import argparse
import re
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import SOURCES, WorldConfig
from pipelines.experiment import load_experiment
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.ray_runner import RayRunner
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    *(
        "read",
        "download",
        "domains",
        "filter",
        "score",
        "evidence",
        "near",
        "components",
        "exact",
        "test_index",
        "leaks",
    ),
    *("test_index", "leaks", "decontaminate", "stars", "deduplicate", "partition"),
)
RULE_STAGES = ("read", "download", "filter")
ORIGIN = re.compile(r"(\w+) of scene (\d+)")
# Kinds of copies that a method other than the embedding should find.
FOUND_BY = {"exact": "sha256", "reencoded": "phash", "half_size": "phash", "cropped": "phash", "flipped": "mirrored"}


@dataclass
class Report:
    """Per rule or kind of copy: planted, found; and drops that were not planted."""

    planted: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # dropped, and not planted
    missed: list[str] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        head = f"{self.rows} rows in {self.seconds:.0f} s; dropped without being planted: {len(self.wrong)}"
        table = [f"{name:42} {self.found[name]:7} of {self.planted[name]:7}" for name in sorted(self.planted)]
        return [head, *table, *self.wrong[:20], *(f"missed: {one}" for one in self.missed[:20])]


def curate(world: Path, folder: Path, num_cpus: int = 0) -> Store:
    """The store after every stage up to `partition` has run on a world, on a local Ray of `num_cpus` or in-process."""
    values = yaml.safe_load(
        (ROOT / "pipelines/experiments/world.yaml").read_text().replace("../runs/world/", f"{world}/")
    )
    values |= {"partition": {"num_shards": 8, "min_clip_score": None}, "deduplicate": {}}
    (folder / "world.yaml").write_text(yaml.safe_dump(values))
    experiment = load_experiment(str(folder / "world.yaml"), str(folder / "store"))
    graph, store = build_graph(experiment), Store(str(folder / "store"))
    planned = plan(graph, store, "world", [f"{stage}/*" for stage in STAGES])
    runner = RayRunner(num_cpus=num_cpus, dashboard=False) if num_cpus else InlineRunner()
    try:
        run(graph, planned, store, runner, lambda event: None, {})
    finally:
        runner.close()
    return store


def judge(world: Path, store: Store) -> Report:
    """The decisions of the stages, against the truth."""
    report = Report()
    truth = pq.read_table(world / "truth.parquet").to_pylist()
    foreign = {(one["source"], one["row_key"]) for one in truth if one["expected_rule"] == "language"}
    found_drops = _drops(store)
    report.rows = sum(one["unit"] == "row" for one in truth)
    expected = set()
    for one in truth:
        if one["unit"] == "media" or one["expected_stage"] not in RULE_STAGES or one["expected_rule"] == "row_dropped":
            continue
        if one["expected_stage"] == "filter" and (one["source"], one["row_key"]) in foreign:
            continue  # needs a language detector
        verdict = (one["source"], one["row_key"], one["unit"], one["item"], one["expected_stage"], one["expected_rule"])
        expected.add(verdict)
        name = f"{one['expected_stage']}: {one['unit']} {one['expected_rule']}"
        report.planted[name] += 1
        if verdict in found_drops:
            report.found[name] += 1
        else:
            report.missed.append(str(verdict))
    report.wrong += [str(verdict) for verdict in sorted(found_drops - expected) if verdict[5] != "row_dropped"]
    _judge_copies(report, truth, store)
    return report


def _drops(store: Store) -> set[tuple[str, ...]]:
    names = ("source_row", "unit", "item", "stage", "rule")
    found = set()
    for source in SOURCES:
        for stage in RULE_STAGES:
            for row in _rows(store, f"{stage}/{source}", "drops.parquet"):
                found.add((source, *(row[name] for name in names)))
    return found


def _judge_copies(report: Report, truth: list[dict], store: Store) -> None:
    """Duplicates and leaks: rows of the same scene are copies."""
    shows: dict[tuple[str, str], int] = {}
    copies: list[tuple[dict, str, int]] = []
    for one in truth:
        if one["unit"] == "row":
            match = ORIGIN.match(one["detail"]) if one["planted"] in ("duplicate", "test_leak") else None
            shows[one["source"], one["row_key"]] = int(match[2]) if match else one["scene"]
            if match:
                copies.append((one, match[1], int(match[2])))
    evidence = {
        row["key"]: (row["source"], row["source_row"])
        for source in SOURCES
        for row in _rows(store, f"filter/{source}", "rows.parquet", ("key", "source", "source_row"))
    }
    clusters = defaultdict(list)
    for row in _rows(store, "stars/world", "clusters.parquet"):
        clusters[row["keeper"]].append(row["key"])
    together: dict[tuple[str, str], set[int]] = defaultdict(set)
    for keys in clusters.values():
        scenes = {shows[evidence[key]] for key in keys}
        if len(scenes) > 1:
            report.wrong.append(f"cluster of different scenes: {sorted(evidence[key] for key in keys)}")
        for key in keys:
            together[evidence[key]] |= scenes
    leaks = defaultdict(set)
    for row in _rows(store, "decontaminate/world", "leaks.parquet"):
        leaks[evidence[row["key"]]].add((int(row["eval_id"]), row["method"]))
    alive = Counter(shows[row] for row in evidence.values())
    for one, kind, origin in copies:
        row = (one["source"], one["row_key"])
        if row not in evidence.values() and row not in together and row not in leaks:
            continue  # dropped before the search, e.g. too small
        is_leak = one["planted"] == "test_leak"
        if not is_leak and alive[origin] < 2:
            continue  # the original was dropped
        name = f"{'leak' if is_leak else 'duplicate'}: {kind}"
        report.planted[name] += 1
        hit = bool(leaks.get(row)) if is_leak else origin in together.get(row, ())
        report.found[name] += hit
    planted_leaks = {(one["source"], one["row_key"]) for one, _, _ in copies if one["planted"] == "test_leak"}
    report.wrong += [f"called a leak: {row}" for row in sorted(leaks) if row not in planted_leaks]


def _rows(store: Store, node: str, name: str, columns: tuple[str, ...] | None = None) -> list[dict]:
    ref = store.read_ref("world", node)
    stored = store.read_manifest(ref.manifest_path) if ref else None
    assert stored is not None, node
    rows = []
    for part in stored[0].parts:
        for file in part.record.files:
            if file.path == name:
                path = store.file_uri(part.record, file).removeprefix("file://")
                rows += pq.read_table(path, columns=list(columns) if columns else None).to_pylist()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="an empty folder; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        build_world(WorldConfig(seed=options.seed, scenes=options.scenes), folder / "world", options.workers)
        print(f"world made in {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        report = judge(folder / "world", curate(folder / "world", folder, options.workers))
        report.seconds = time.monotonic() - began
        print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
