"""`jobs/new_source.py` in this process, and the first stages of what it wrote."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.experiment import load_experiment
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.new_source.arguments import add_arguments
from pipelines.new_source.command import new_source
from x2vlm.command_line import JobParser


def look(out: Path, data: str | Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What the command prints, and the same as data; its files go to `out`."""
    parser = JobParser(None)
    add_arguments(parser)
    return new_source(parser.parse([str(data), "--out", str(out), *arguments]))


def rows_of(store: Path, written: dict[str, Any], *stages: str) -> list[dict[str, Any]]:
    """The rows after `read` and `stages` of the written experiment, by row key."""
    graph = build_graph(load_experiment(written["experiment"]))
    wanted = [f"{stage}/{written['name']}" for stage in ("read", *stages)]
    opened = Store(str(store))
    run(graph, plan(graph, opened, written["name"], wanted), opened, InlineRunner(), lambda event: None, {})
    files = (store / "parts" / wanted[-1].partition("/")[0]).glob("*/*/rows*.parquet")
    return sorted((row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["source_row"])
