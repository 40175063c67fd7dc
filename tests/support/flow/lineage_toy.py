"""A small graph with all that lineage must tell of: upstream files, drops, a model with a curve, an evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.run import executor, planner
from pipelines.flow.run.events import OnEvent
from pipelines.flow.run.executor import RunResult
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
from x2vlm.config import FrozenConfig

EXPERIMENT = "toy"
NUM_STEPS = 4
PROVENANCE = {"git_sha": "0" * 40, "git_dirty": False, "ray_job_id": "01000000", "submission_id": "raysubmit_1"}


class ReadConfig(FrozenConfig):
    limit: int = 100


class FilterConfig(FrozenConfig):
    min_chars: int = 6
    rules: tuple[str, ...] = ()


class TrainConfig(FrozenConfig):
    rate: float = 0.1


class EvaluateConfig(FrozenConfig):
    task: str = "retrieval"


def key_of(text: str) -> str:
    """32 hex digits that name a line."""
    return text.encode().hex().ljust(32, "0")[:32]


def _everything(config: FrozenConfig, inputs: Inputs) -> list[Part]:
    files = [
        Read(slot, file)
        for slot, items in inputs.items()
        for item in items
        for part in item.parts
        for file in part.files
    ]
    return [Part("all", reads=tuple(read for read in files if "drops" not in read.file.path))]


def _part_per_file(config: FrozenConfig, inputs: Inputs) -> list[Part]:
    files = [file for item in inputs["rows"] for part in item.parts for file in part.files if "drops" not in file.path]
    return [Part(f"{number:05d}", reads=(Read("rows", file),)) for number, file in enumerate(files)]


def _read(config: ReadConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    lines = [line for read in part.reads for line in inputs.local_path(read.file).read_text().splitlines()]
    half = (len(lines) + 1) // 2
    for number, chunk in enumerate((lines[:half], lines[half:])):
        keys = [key_of(line) for line in chunk]
        table = pa.table({"key": keys, "url": [f"http://x/{line}" for line in chunk], "text": chunk})
        pq.write_table(table, out.path / f"rows-{number:05d}.parquet")
    return PartResult({"rows": Count(len(lines), len(lines))})


def _filter(config: FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    rows = pq.read_table(inputs.local_path(part.reads[0].file)).to_pylist()
    kept = [row for row in rows if len(row["text"]) >= config.min_chars]
    drops = [
        {"key": row["key"], "rule": "too_short", "value": float(len(row["text"]))} for row in rows if row not in kept
    ]
    schema = pa.schema([("key", pa.string()), ("url", pa.string()), ("text", pa.string())])
    pq.write_table(pa.Table.from_pylist(kept, schema=schema), out.path / "rows.parquet")
    drop_schema = pa.schema([("key", pa.string()), ("rule", pa.string()), ("value", pa.float64())])
    pq.write_table(pa.Table.from_pylist(drops, schema=drop_schema), out.path / "drops.parquet")
    return PartResult({"rows": Count(len(rows), len(kept), {"too_short": len(drops)} if drops else {})})


def _train(config: TrainConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    keys = [
        key
        for read in part.reads
        if read.slot == "shards"
        for key in pq.read_table(inputs.local_path(read.file)).column("key").to_pylist()
    ]
    (out.path / "model.bin").write_bytes(b"weights" * 20)
    lines = [{"step": step, "loss": 1.0 / (step + 1), "rate": config.rate} for step in range(NUM_STEPS)]
    # A training that crashed after step 1 and went on writes that step twice.
    text = "".join(json.dumps(line) + "\n" for line in [*lines[:2], lines[1], *lines[2:]])
    (out.path / "metrics.jsonl").write_text(text)
    steps = [index % NUM_STEPS for index in range(len(keys))]
    pq.write_table(pa.table({"step": steps, "stream": ["main"] * len(keys), "key": keys}), out.path / "samples.parquet")
    summary = {
        "metrics": {"final loss": 0.25},
        "metric_series": "metrics.jsonl",
        "model": {"name": "toy/model", "type": "x2vlm-pretrain"},
    }
    return PartResult({"rows": Count(NUM_STEPS, NUM_STEPS)}, summary=summary)


def _evaluate(config: EvaluateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    rows = sum(pq.read_table(inputs.local_path(read.file)).num_rows for read in part.reads if read.slot == "rows")
    metrics = {f"{config.task}/tr_r1": 0.5, f"{config.task}/n": float(rows)}
    (out.path / "result.json").write_text(json.dumps(metrics))
    return PartResult({"rows": Count(rows, rows)}, summary={"metrics": metrics})


READ = Stage("read", 1, ReadConfig, ("card", "files"), _everything, _read)
FILTER = Stage("filter", 1, FilterConfig, ("rows",), _part_per_file, _filter)
PRETRAIN = Stage("pretrain", 1, TrainConfig, ("shards", "vocabulary"), _everything, _train)
EVALUATE = Stage("evaluate", 1, EvaluateConfig, ("model", "rows"), _everything, _evaluate)


def lineage_graph(folder: Path, min_chars: int = 6) -> Graph:
    """read/a -> filter/a -> pretrain/base -> evaluate/base, with upstream files made in `folder` if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"a.yaml": "id: a\n", "a-0.txt": "".join(f"line {n}\n" for n in range(12)), "vocab.txt": "[PAD]\n[UNK]\n"}
    for name, text in texts.items():
        if not (folder / name).exists():
            (folder / name).write_text(text)
    card, rows, vocabulary = (SourceFile(str(folder / name), card=name.split(".")[0].split("-")[0]) for name in texts)
    return Graph(
        [
            Node("read/a", READ, ReadConfig(), {"card": (card,), "files": (rows,)}),
            Node("filter/a", FILTER, FilterConfig(min_chars=min_chars), {"rows": ("read/a",)}),
            Node("pretrain/base", PRETRAIN, TrainConfig(), {"shards": ("filter/a",), "vocabulary": (vocabulary,)}),
            Node("evaluate/base", EVALUATE, EvaluateConfig(), {"model": ("pretrain/base",), "rows": ("filter/a",)}),
        ]
    )


def run_graph(
    graph: Graph,
    store: Store,
    on_event: OnEvent,
    experiment: str = EXPERIMENT,
    force: tuple[str, ...] = (),
    provenance: Mapping[str, object] = PROVENANCE,
) -> RunResult:
    """Plan and run everything here and now."""
    plan = planner.plan(graph, store, experiment, force=force)
    return executor.run(graph, plan, store, InlineRunner(), on_event, provenance)
