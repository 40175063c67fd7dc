"""read, download and filter of one set of files by the engine, in this process."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.flow.run.executor import RunResult, run
from pipelines.flow.run.planner import Plan, plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.store import Store
from pipelines.input_files import card_files, set_root
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD
from pipelines.s1_download.read import READ, read_config
from pipelines.s2_filter import FILTER, FilterConfig
from x2vlm.data.cards import Card
from x2vlm.samples import Sample, samples_of

EXPERIMENT = "sets"


def make_card(reader: str, root: str, path: str, **fields: Any) -> Card:
    """The card of a set below `root`."""
    values = {"id": "own", "title": "A set", "licence": "CC0-1.0", "availability": "open", "grains": ["image"]}
    return Card.model_validate({**values, "reader": reader, "root": root, "files": {"files": {"path": path}}, **fields})


@dataclass
class SetRun:
    """What one run left in the store."""

    result: RunResult
    plan: Plan
    store: Store

    def manifest(self, node: str) -> Manifest:
        ref = self.store.read_ref(EXPERIMENT, node)
        assert ref is not None
        read = self.store.read_manifest(ref.manifest_path)
        assert read is not None
        return read[0]

    def tables(self, node: str, prefix: str) -> list[dict[str, Any]]:
        """The rows of all files of an artifact whose names begin like that, by part."""
        found = []
        manifest = self.manifest(node)
        for part in manifest.parts:
            for file in part.record.files:
                if file.path.startswith(prefix) and file.path.endswith(".parquet"):
                    path = local_path_of(self.store.file_uri(part.record, file))
                    assert path is not None
                    found += pq.read_table(path).to_pylist()
        return found

    def samples(self, node: str = "filter/own") -> list[Sample]:
        found = []
        for part in self.manifest(node).parts:
            for file in part.record.files:
                if file.path.startswith("rows") and file.path.endswith(".parquet"):
                    path = local_path_of(self.store.file_uri(part.record, file))
                    found += samples_of(pq.read_table(path))
        return found

    def dropped(self, node: str) -> dict[str, int]:
        """Rows dropped by rule, after a check that all rows are accounted for."""
        counts = Counter[str]()
        num_in = num_out = 0
        for part in self.manifest(node).parts:
            count = part.record.counts["rows"]
            num_in, num_out = num_in + count.num_in, num_out + count.num_out
            counts.update(count.dropped)
        assert num_in == num_out + counts.total()
        return dict(counts)


def set_graph(folder: Path, card: Card, rows_per_file: int = 10_000, **download: Any) -> Graph:
    """The three nodes. The card's file in `folder` only has to be there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.id}.yaml"
    if not path.exists():
        path.write_text(card.model_dump_json(), encoding="utf-8")
    config = DownloadConfig.model_validate({"set_root": set_root(card, None), "retries": 0, **download})
    name = card.id
    return Graph(
        [
            Node(
                f"read/{name}",
                READ,
                read_config(card, rows_per_file=rows_per_file),
                {"card": (SourceFile(str(path), card.id),), "files": card_files(card, None)},
            ),
            Node(f"download/{name}", DOWNLOAD, config, {"rows": (f"read/{name}",)}),
            Node(f"filter/{name}", FILTER, FilterConfig(min_short_edge=8), {"rows": (f"download/{name}",)}),
        ]
    )


def run_set(folder: Path, card: Card, **values: Any) -> SetRun:
    """Plan and run read, download and filter; stores of one `folder` are one store."""
    graph, store = set_graph(folder / "card", card, **values), Store(str(folder / "store"))
    planned = plan(graph, store, EXPERIMENT)
    return SetRun(run(graph, planned, store, InlineRunner()), planned, store)
