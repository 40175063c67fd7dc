"""A store with what curation writes about made-up rows: real filter, deduplicate and partition, scores from the key."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.deciding_nodes import duplicate_nodes
from pipelines.experiment import Experiment, SourceConfig
from pipelines.flow.run.executor import RunResult
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
from pipelines.s1_download.domains import DomainsConfig
from pipelines.s1_download.retry import round_names
from pipelines.s2_filter import FILTER, FILTER_DOMAINS, FilterConfig
from pipelines.s3_score.stage import FINGERPRINT_SCHEMA, SCORE_SCHEMA
from pipelines.s4_materialize import PARTITION, PartitionConfig
from pipelines.s4_materialize.deduplicate import DeduplicateConfig
from pipelines.s4_materialize.thresholds import ScoreThresholds
from tests.support.flow.helpers import run_all
from x2vlm.config import FrozenConfig
from x2vlm.data.shards.packs import INDEX_NAME, PACK_SCHEMA
from x2vlm.samples import Caption, Media, Sample, sample_key, sample_table, write_table


class Given(FrozenConfig):
    source: str


def plan_given(config: Given, inputs: Inputs) -> list[Part]:
    files = [part.files[0] for one in inputs["files"] for part in one.parts]
    return [Part(f"{number:05d}", (Read("files", file),)) for number, file in enumerate(files)]


def give(config: Given, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    file = part.reads[0].file
    name = "flagged.parquet" if file.path.startswith("flagged") else "rows.parquet"
    shutil.copyfile(inputs.local_path(file), out.path / name)
    rows = pq.read_metadata(out.path / name).num_rows
    if name == "rows.parquet":
        media = [row["media"]["sha256"] for row in pq.read_table(out.path / name, columns=["media"]).to_pylist()]
        index = {"offset": 0, "bytes": 1, "format": "jpeg", "member": ""}
        entries = [{"sha256": sha256, "payload_sha256": sha256, **index} for sha256 in media]
        write_table(pa.Table.from_pylist(entries, schema=PACK_SCHEMA), out.path / INDEX_NAME)
    return PartResult({"rows": Count(rows, rows)}, {name: rows})


def plan_scores(config: FrozenConfig, inputs: Inputs) -> list[Part]:
    return [Part(part.name, (Read("rows", part.file("rows.parquet")),)) for part in inputs["rows"][0].parts]


def score(config: FrozenConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Scores and fingerprints that follow from the key and the media; every eleventh row did not decode."""
    rows = pq.read_table(inputs.local_path(part.reads[0].file)).to_pylist()
    scores, prints = [], []
    for row in rows:
        score = int(row["key"][:8], 16) / 16**8
        broken = int(row["key"][8:12], 16) % 11 == 0
        numbers = {"clip_score": score, "clip_score_max": min(1.0, score + 0.1), "clip_score_middle": score * score}
        scores.append(
            {"key": row["key"], "missing": "decode_failed"} if broken else {"key": row["key"], "missing": "", **numbers}
        )
        prints.append({"key": row["key"], "pixel_sha256": None if broken else row["media"]["sha256"]})
    write_table(pa.Table.from_pylist(scores, schema=SCORE_SCHEMA), out.path / "scores.parquet")
    write_table(pa.Table.from_pylist(prints, schema=FINGERPRINT_SCHEMA), out.path / "fingerprints.parquet")
    return PartResult({"rows": Count(len(rows), len(rows))}, {"scores.parquet": len(rows)})


GIVE = {name: Stage(name, 1, Given, ("files",), plan_given, give) for name in ("read", "download", "domains")}
SCORE = Stage("score", 1, FrozenConfig, ("rows",), plan_scores, score)


def sample(source: str, number: int, media: str = "") -> Sample:
    """Row `number`: of every third the media are a clip; sizes and shapes run through all that rules tell apart."""
    kind = "video" if number % 3 == 0 else "image"
    width, height = 180 + 37 * (number % 9), 200 + 53 * (number % 7)
    shown = hashlib.sha256((media or f"{source}{number}").encode()).hexdigest()
    return Sample(
        key=sample_key(source, str(number)),
        source=source,
        source_row=str(number),
        split="train",
        kind=kind,
        url=f"http://host{number % 4}.invalid/{source}/{number}",
        captions=(Caption(f"a thing called {number} of many words"),),
        media=Media(
            kind,
            shown,
            1,
            width,
            height,
            "frames" if kind == "video" else "jpeg",
        ),
    )


def write_parts(folder: Path, parts: Sequence[Sequence[Sample]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"rows-{number:05d}.parquet" for number in range(len(parts))]
    for path, samples in zip(paths, parts, strict=True):
        write_table(sample_table(samples), path)
    return paths


def experiment_of(
    partition: PartitionConfig, rules: FilterConfig | None = None, rounds: int = 1, drops: bool = False
) -> Experiment:
    return Experiment(
        name="toy",
        sources={"web": SourceConfig(card="sample/cc3m"), "other": SourceConfig(card="sample/laion")},
        filter=rules or FilterConfig(),
        partition=partition,
        retries=(("dns",),) * (rounds - 1),
        domains=DomainsConfig(flagged_domains="drop" if drops else "report"),
        vocabulary="datasets/sample/vocab.txt",
    )


def graph_of(folder: Path, experiment: Experiment, deduplicate: DeduplicateConfig | None = None) -> Graph:
    """The graph of `experiment` over the files below `folder` (`<source>/<round>/rows-*.parquet`, flagged.parquet)."""
    nodes: list[Node] = []
    branches = []
    drops = experiment.domains.flagged_domains == "drop"
    for source in experiment.sources:
        own = round_names(source, len(experiment.retries))
        branches += own
        files = {branch: sorted((folder / branch).glob("rows-*.parquet")) for branch in own}
        nodes.append(_given("read", source, source, [path for branch in own for path in files[branch]]))
        nodes += [_given("download", branch, source, files[branch]) for branch in own]
        flagged = {}
        if drops:
            nodes.append(_given("domains", source, source, [folder / "flagged.parquet"]))
            flagged = {"flagged": (f"domains/{source}",)}
        for branch in own:
            read = {"rows": (f"download/{branch}",), **flagged}
            nodes.append(Node(f"filter/{branch}", FILTER_DOMAINS if drops else FILTER, experiment.filter, read))
            nodes.append(Node(f"score/{branch}", SCORE, FrozenConfig(), {"rows": (f"filter/{branch}",)}))
    read = {"rows": tuple(f"filter/{one}" for one in branches), "scores": tuple(f"score/{one}" for one in branches)}
    decisions: tuple[str, ...] = ()
    if deduplicate is not None:
        thresholds = {name: getattr(experiment.partition, name) for name in ScoreThresholds.model_fields}
        config = deduplicate.model_copy(update={"thresholds": ScoreThresholds(**thresholds)})
        nodes += duplicate_nodes("toy", config, read)
        decisions = ("deduplicate/toy",)
    inputs = {**read, "media": tuple(f"download/{one}" for one in branches), "decisions": decisions}
    nodes.append(Node("partition/toy", PARTITION, experiment.partition, inputs))
    return Graph(nodes)


def _given(stage: str, branch: str, source: str, paths: Sequence[Path]) -> Node:
    files = tuple(SourceFile(str(path), branch) for path in paths)
    return Node(f"{stage}/{branch}", GIVE[stage], Given(source=source), {"files": files})


def write_corpus(folder: Path, corpus: Mapping[str, Sequence[Sequence[Sample]]]) -> None:
    """The rows of every branch ("web", "web.retry1") and part."""
    for branch, parts in corpus.items():
        write_parts(folder / branch, parts)


def filled(
    store: Store, folder: Path, experiment: Experiment, deduplicate: DeduplicateConfig | None = None
) -> RunResult:
    return run_all(graph_of(folder, experiment, deduplicate), store, "toy")
