"""The time of `why` to trace a row of a large corpus, and to build its index.

    python -m tests.benchmarks.why --parts 1000 --rows 10000 [--out FOLDER]

A store of generated rows, written by the engine: read, a filter that drops every tenth row, and a search over all parts
that decides about every hundredth row of each. Rows have the key, the URL and a caption; nothing else of a sample
is read. Prints CPU and wall seconds: of the first question, which builds the index, and of later ones.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.stage import Count, Graph, Inputs, Node, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.flow.store.store import Store
from pipelines.s4_materialize.decisions import OWNED_SCHEMA, write_decisions
from pipelines.why.trace import trace_rows
from tests.support.flow.helpers import run_all
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError
from x2vlm.samples import Drop, drop_table, sample_key, write_table

SOURCE = "made_up"


class Size(FrozenConfig):
    """A corpus."""

    source: str
    parts: int = 10
    rows: int = 1000  # of a part


def url_of(number: int) -> str:
    return f"http://host{number % 997}.invalid/{number}.jpg"


def plan_read(config: Size, inputs: Inputs) -> list[Part]:
    return [Part(f"{number:05d}", spec={"number": number}) for number in range(config.parts)]


def read_part(config: Size, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    numbers = range(part.spec["number"] * config.rows, (part.spec["number"] + 1) * config.rows)
    columns = {
        "key": [sample_key(SOURCE, str(number)) for number in numbers],
        "source": [SOURCE] * config.rows,
        "source_row": [str(number) for number in numbers],
        "url": [url_of(number) for number in numbers],
        "kind": ["image"] * config.rows,
    }
    write_table(pa.table(columns), out.path / "rows.parquet")
    return PartResult({"rows": Count(config.rows, config.rows)}, {"rows.parquet": config.rows})


def plan_filter(config: Size, inputs: Inputs) -> list[Part]:
    return [Part(part.name, (Read("rows", part.file("rows.parquet")),)) for part in inputs["rows"][0].parts]


def filter_part(config: Size, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    rows = pq.read_table(inputs.local_path(part.reads[0].file))
    is_dropped = np.arange(rows.num_rows) % 10 == 0
    names = rows.select(["key", "source", "source_row"]).filter(pa.array(is_dropped)).to_pylist()
    drops = [Drop(**name, stage="filter", rule="min_short_edge", value=100.0, threshold=224.0) for name in names]
    kept = rows.filter(pa.array(~is_dropped))
    write_table(kept, out.path / "rows.parquet")
    write_table(drop_table(drops), out.path / "drops.parquet")
    return PartResult({"rows": Count(rows.num_rows, kept.num_rows, {"min_short_edge": len(drops)})})


def plan_search(config: Size, inputs: Inputs) -> list[Part]:
    parts = inputs["rows"][0].parts
    owners = [f"000-{part.name}" for part in parts]
    return [Part("all", tuple(Read("rows", part.file("rows.parquet")) for part in parts), {"owners": owners})]


def search_part(config: Size, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    decisions = []
    for owner, read in zip(part.spec["owners"], part.reads, strict=True):
        keys = pq.read_table(inputs.local_path(read.file), columns=["key"])["key"]
        facts = {"rule": "duplicate", "value": 3.0, "threshold": 6.0, "reason": "shows what another row shows"}
        decisions += [{"key": key, "owner": owner, **facts} for key in keys[::100].to_pylist()]
    write_decisions(out.path, pa.Table.from_pylist(decisions, schema=OWNED_SCHEMA))
    return PartResult({"rows": Count(len(decisions), len(decisions))}, summary={"owners": part.spec["owners"]})


def graph_of(size: Size) -> Graph:
    search = {"rows": (f"filter/{SOURCE}",)}
    return Graph(
        [
            Node(f"read/{SOURCE}", Stage("read", 1, Size, (), plan_read, read_part), size, {}),
            Node(
                f"filter/{SOURCE}",
                Stage("filter", 1, Size, ("rows",), plan_filter, filter_part),
                size,
                {"rows": (f"read/{SOURCE}",)},
            ),
            Node("deduplicate/all", Stage("deduplicate", 1, Size, ("rows",), plan_search, search_part), size, search),
        ]
    )


def measured(action: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `action`, and its cost."""
    cpu, wall = time.process_time(), time.monotonic()
    found = action()
    return found, f"{time.process_time() - cpu:7.3f} CPU s {time.monotonic() - wall:7.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a part")
    parser.add_argument("--out", type=Path, help="a folder for the store; default: a temporary one")
    options = parser.parse_args()
    size = Size(source=SOURCE, parts=options.parts, rows=options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(str(options.out or scratch))
        _, cost = measured(lambda: run_all(graph_of(size), store, "bench"))
        print(f"{'store of ' + format(size.parts * size.rows, ',') + ' rows written':34} {cost}")
        last = size.parts * size.rows - 1
        decided = (size.parts // 2) * size.rows + 1  # the first that the filter keeps in its part
        for name, query in (
            ("first question (builds the index)", sample_key(SOURCE, str(last))),
            ("by key", sample_key(SOURCE, str(last))),
            ("by row", f"{SOURCE}:{decided}"),
            ("by address", url_of(last // 3)),
            ("of a row that the filter dropped", f"{SOURCE}:{last // 20 * 10}"),
        ):
            (story,), cost = measured(lambda query=query: trace_rows(store, "bench", query))
            print(f"{name:34} {cost}   {story.steps[-1]}")
        _, cost = measured(lambda: _not_found(store))
        print(f"{'of a row that is nowhere':34} {cost}")


def _not_found(store: Store) -> None:
    try:
        trace_rows(store, "bench", "ab" * 16)
    except ConfigError:
        return
    raise AssertionError("a key was found that was never written")


if __name__ == "__main__":
    main()
