"""Rows by ranges of keys: every row once, in key order, in the range of its key, whatever parts it was read in."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.experiment import SourceConfig, load_experiment
from pipelines.flow.audit.sample_history import trace_sample
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import plan_download
from pipelines.s1_download.read import READ, ReadConfig, read_config
from pipelines.s1_download.sort import SORT, SortConfig
from pipelines.why.trace import manifests_in_order, trace_rows
from tests.support.flow.helpers import run_all
from x2vlm.data.cards import load_card
from x2vlm.errors import ConfigError

RANGES = 300  # three segments, of which the last has 44 ranges


def read_and_sorted(store: Store, path: Path, bytes_per_part: int) -> dict[str, list[dict[str, str]]]:
    """The rows of every file that `sort` wrote, by file name, in the order in which a download reads them."""
    config = ReadConfig(
        reader="laion",
        source="toy",
        card="toy",
        files={"rows": path.name},
        key_ranges=RANGES,
        bytes_per_part=bytes_per_part,
    )
    read = Node("read/toy", READ, config, {"card": (), "files": (SourceFile(str(path), "toy"),)})
    sort = Node("sort/toy", SORT, SortConfig(key_ranges=RANGES), {"rows": ("read/toy",)})
    result = run_all(Graph([read, sort]), store, "toy")
    manifest = result.nodes["sort/toy"].manifest
    assert manifest is not None
    parts = plan_download(DownloadConfig(), {"rows": (store.as_input(manifest),)})
    files = [part.reads[0].file for part in parts]
    return {file.path: pq.read_table(Path(file.uri.removeprefix("file://"))).to_pylist() for file in files}


def write(path: Path, count: int) -> None:
    rows = {"URL": [f"http://x/{n}.jpg" for n in range(count)], "TEXT": [f"text {n}" for n in range(count)]}
    pq.write_table(pa.table(rows), path, row_group_size=40)


def test_every_row_is_once_in_the_range_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write(path, 400)
    ranges = read_and_sorted(Store(str(tmp_path / "store")), path, 3000)
    rows = [row for table in ranges.values() for row in table]
    assert sorted(int(row["source_row"]) for row in rows) == list(range(400))
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    for name, table in ranges.items():
        assert {f"rows-{(int(row['key'][:16], 16) * RANGES) >> 64:07d}.parquet" for row in table} == {name}
    whole = Store(str(tmp_path / "other"))
    assert read_and_sorted(whole, path, 1 << 20) == ranges
    for query in ("toy:41", "http://x/41.jpg"):
        (trace,) = trace_rows(whole, "toy", query)
        assert [(step.node, step.verdict) for step in trace.steps] == [("sort/toy", "kept")]
    assert {trace.node for trace in trace_sample(whole, manifests_in_order(whole, "toy"), rows[0]["key"])} == {
        *("read/toy", "sort/toy")
    }


def test_an_added_row_changes_the_table_of_its_range_alone(tmp_path: Path) -> None:
    path, store = tmp_path / "rows.parquet", Store(str(tmp_path / "store"))
    write(path, 300)
    before = read_and_sorted(store, path, 1 << 20)
    write(path, 301)
    after = read_and_sorted(store, path, 1 << 20)
    assert len([name for name in after if after[name] != before.get(name)]) == 1


def test_ranges_are_for_lists_of_images_and_instead_of_rows_per_part(project_root: Path) -> None:
    with pytest.raises(ValueError, match="both say how rows are cut"):
        SourceConfig(card="sample/laion", key_ranges=4, rows_per_part=10_000)
    card = load_card(project_root / "datasets" / "sample" / "webvid.yaml")
    with pytest.raises(ConfigError, match="card webvid: `key_ranges` is for lists of images on the web; clips"):
        read_config(card, key_ranges=4)


def test_the_graph_sorts_between_read_and_download_and_counts_domains_in_parts(project_root: Path) -> None:
    experiment = load_experiment("sample")
    source = SourceConfig(card="sample/laion", key_ranges=RANGES)
    graph = build_graph(experiment.model_copy(update={"sources": {**experiment.sources, "laion": source}}))
    assert graph["read/laion"].config.model_dump()["key_ranges"] == RANGES
    found = {key: graph[key].upstream() for key in graph if key.endswith("/laion")}
    assert found["sort/laion"] == ["read/laion"]
    assert found["download/laion"] == ["sort/laion"]
    assert found["domain_counts/laion"] == ["download/laion"]
    assert found["domains/laion"] == ["domain_counts/laion"]
    assert not {"sort/cc3m", "domain_counts/cc3m"} & set(graph)
