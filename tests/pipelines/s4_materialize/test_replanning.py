"""Curation under the engine: which parts run again when a decision changes, in whatever order they run."""

import shutil
from pathlib import Path

import pytest

from pipelines.deciding_nodes import duplicate_nodes
from pipelines.export.export import export_shards
from pipelines.flow.run.executor import RunResult
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import (
    Count,
    Graph,
    Inputs,
    Node,
    Part,
    PartReader,
    PartResult,
    PartWriter,
    Read,
    SourceFile,
    Stage,
)
from pipelines.flow.store.store import Store
from pipelines.s4_materialize import PACK, PARTITION, PackConfig, PartitionConfig
from pipelines.s4_materialize.deduplicate import DeduplicateConfig
from pipelines.s4_materialize.slices import shard_of
from pipelines.s4_materialize.thresholds import ScoreThresholds
from tests.support.flow.helpers import actions, roots, run_all
from tests.support.stages.curated import Parts, build, clip, encoded, row, scene
from x2vlm.config import FrozenConfig
from x2vlm.errors import StageFailed
from x2vlm.samples import sample_key

SOURCES = ("coco", "web", "clips")


def plan_given(config: FrozenConfig, inputs: Inputs) -> list[Part]:
    return [Part("00000", tuple(Read("files", part.files[0]) for one in inputs["files"] for part in one.parts))]


def give(config: FrozenConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    for read in part.reads:
        shutil.copyfile(inputs.local_path(read.file), out.path / read.file.path)
    return PartResult({"rows": Count(1, 1)})


def given(folder: Path, stage: str, source: str) -> Node:
    """A node that hands on files as they are, in the place of filter, score or download."""
    kind = {"filter": "rows", "score": "scores", "download": "media"}[stage]
    files = sorted((folder / source / "0" / kind).iterdir())
    node_stage = Stage(stage, 1, FrozenConfig, ("files",), plan_given, give)
    return Node(
        f"{stage}/{source}", node_stage, FrozenConfig(), {"files": tuple(SourceFile(str(f), source) for f in files)}
    )


def corpus() -> dict[str, Parts]:
    web = [row("web", str(n), encoded(scene(n)), [f"picture {n}"]) for n in range(10)]
    clips = [row("clips", str(n), clip(100 + n, 200 + n), ["a clip"], score=0.3 + n / 100) for n in range(5)]
    return {"coco": [[row("coco", "3", encoded(scene(3), quality=50), ["mine"])]], "web": [web], "clips": [clips]}


def graph_of(
    folder: Path,
    min_clip_score: float,
    pack: PackConfig | None = None,
    more: tuple[Node, ...] = (),
    **deduplicate: object,
) -> Graph:
    read = {"rows": tuple(f"filter/{one}" for one in SOURCES), "scores": tuple(f"score/{one}" for one in SOURCES)}
    own = DeduplicateConfig.model_validate(
        {"thresholds": ScoreThresholds(min_clip_score=min_clip_score), "merge_captions": True, **deduplicate}
    )
    partition = PartitionConfig(num_shards=8, min_clip_score=min_clip_score)
    media = tuple(f"download/{one}" for one in SOURCES)
    return Graph(
        [
            *(given(folder, stage, source) for stage in ("filter", "score", "download") for source in SOURCES),
            *duplicate_nodes("toy", own, read),
            Node("partition/toy", PARTITION, partition, {**read, "media": media, "decisions": ("deduplicate/toy",)}),
            Node("pack/toy", PACK, pack or PackConfig(), {"buckets": ("partition/toy",), "media": media}),
            *more,
        ]
    )


def fingerprints(result: RunResult, node: str) -> dict[str, str]:
    return {part.name: part.record.fingerprint for part in result.nodes[node].manifest.parts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build(folder, corpus())
    return folder


def test_another_threshold_scores_nothing_and_packs_what_loses_a_row(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    before = run_all(graph_of(folder, 0.25), store)
    stricter = graph_of(folder, 0.305)  # clips:0 scored 0.3
    planned = plan(stricter, store, "exp")
    assert actions(planned) == {
        **{f"{stage}/{source}": "REUSE" for stage in ("filter", "score", "download") for source in SOURCES},
        **{f"{stage}/toy": "REUSE" for stage in ("evidence", "near", "components", "exact")},
        **{f"{stage}/toy": "RUN" for stage in ("stars", "deduplicate", "partition", "pack")},
    }
    after = run_all(stricter, store)
    lost = f"{shard_of(sample_key('clips', '0'), 8):05d}"
    old, new = (fingerprints(result, "pack/toy") for result in (before, after))
    assert {name for name in old if new.get(name) != old[name]} == {lost}
    assert set(new) <= set(old)
    assert len(old) >= 5  # else one changed shard would say little
    assert after.nodes["pack/toy"].manifest.counts["rows"].num_out == 14


def test_a_decision_about_one_source_leaves_the_parts_of_the_others_alone(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    before = run_all(graph_of(folder, 0.25), store)
    after = run_all(graph_of(folder, 0.25, max_rows_per_caption=2), store)  # three of five clips go
    old, new = (fingerprints(result, "partition/toy") for result in (before, after))
    assert {name for name in old if new[name] != old[name]} == {"002-00000"}
    assert after.nodes["partition/toy"].manifest.counts["rows"].dropped == {"duplicate": 1, "repeated_caption": 3}
    said = [sample_key("clips", str(n)) for n in range(5)]
    shards = {f"{shard_of(key, 8):05d}" for key in sorted(said)[2:]}
    old, new = (fingerprints(result, "pack/toy") for result in (before, after))
    assert {name for name in old if new.get(name) != old[name]} == shards


def test_a_phase_that_reads_some_of_the_sources_reads_decisions_about_these(folder: Path, tmp_path: Path) -> None:
    """Parts of all sources are called alike, so that only the place of the source tells their decisions apart."""
    slots = {
        **{"rows": ("filter/clips",), "scores": ("score/clips",), "media": ("download/clips",)},
        "decisions": ("deduplicate/toy",),
    }
    nodes = tuple(
        Node(f"partition/{name}", PARTITION, PartitionConfig(num_shards=8, decided_as=places), slots)
        for name, places in (("clips", (2,)), ("coco", (0,)))
    )
    store = Store(str(tmp_path / "store"))
    done = run_all(graph_of(folder, 0.25, more=nodes[:1], max_rows_per_caption=2), store)
    assert done.nodes["partition/clips"].manifest.counts["rows"].dropped == {"repeated_caption": 3}
    with pytest.raises(StageFailed, match="is not among the 5 rows about which its decision was written"):
        run_all(graph_of(folder, 0.25, more=nodes[1:], max_rows_per_caption=2), store)
    wrong = Node("partition/two", PARTITION, PartitionConfig(num_shards=8, decided_as=(0, 1)), slots)
    with pytest.raises(StageFailed, match="decided_as has 2 numbers for 1 sources"):
        run_all(graph_of(folder, 0.25, more=(wrong,)), store)


def test_roots_do_not_depend_on_the_order_in_which_parts_run(folder: Path, tmp_path: Path) -> None:
    graph = graph_of(folder, 0.25)
    expected = roots(run_all(graph, Store(str(tmp_path / "plain"))))
    for seed in range(2):
        result = run_all(graph, Store(str(tmp_path / str(seed))), runner=InlineRunner(shuffle_seed=seed))
        assert roots(result) == expected


def test_shards_of_both_kinds_are_exported_alike(folder: Path, tmp_path: Path) -> None:
    exports = []
    for number, config in enumerate((PackConfig(), PackConfig(format="parquet"))):
        store = Store(str(tmp_path / f"store{number}"))
        run_all(graph_of(folder, 0.25, config), store, "toy")
        out = tmp_path / f"export{number}"
        summary = export_shards(store, "toy", out, "xvlm")
        assert summary["samples"] == 15
        exports.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.jsonl")})
    assert exports[0] == exports[1] != {}
