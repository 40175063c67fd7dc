"""The graph of an experiment as it would be with so many rows, over upstream files that nobody has."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines.experiment import Experiment
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.sources import CACHE_PATH
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.input_files import card_file
from pipelines.simulation import rates
from pipelines.simulation.object_store import PROTOCOL
from x2vlm.data.cards import load_card
from x2vlm.data.readers import SLICED
from x2vlm.errors import ConfigError
from x2vlm.samples import Grain

UPSTREAM = f"{PROTOCOL}://upstream"
OTHER_ROWS = 10_000  # of every source but the large one
SHIPPED_CLIP = "datasets/sample/models/tiny_clip"
EVALUATING = ("task_data", "finetune", "evaluate")
NOT_CURATION = ("pretrain", *EVALUATING)


@dataclass(frozen=True)
class Scenario:
    """An experiment of which one source has `parts` parts of `rows_per_part` rows, and every other one part.

    `parts_in_all` is what the asked rows come to: `num_shards` of the experiment are for those, and fewer parts have
    fewer shards.
    """

    experiment: Experiment
    source: str
    parts: int
    rows_per_part: int
    parts_in_all: int
    sorted_by_key: bool = True
    seed: int = 0  # of all hashes that are made up

    @property
    def rows(self) -> int:
        """Of the large source."""
        return self.parts * self.rows_per_part

    @property
    def num_shards(self) -> int:
        return max(1, round(self.experiment.partition.num_shards * self.parts / self.parts_in_all))

    @property
    def rows_of_cards(self) -> Mapping[str, int]:
        """Rows of every source, by the id of its card."""
        ids = {name: load_card(card_file(source.card)).id for name, source in self.experiment.sources.items()}
        return {card: self.rows if name == self.source else OTHER_ROWS for name, card in ids.items()}

    def key_ranges(self, graph: Graph) -> Mapping[str, int]:
        """Ranges of keys of the large source, by the number that begins the names of its parts in `partition`."""
        (partition,) = (node for node in graph.values() if node.stage.name == "partition")
        number = partition.inputs["rows"].index(f"filter/{self.source}")
        return {f"{number:03d}": self.parts} if self.sorted_by_key else {}

    def graph(self) -> Graph:
        """The curation nodes of the experiment, up to shards of all its sources: phases would share most of them."""
        sources = {
            name: source.model_copy(update={"key_ranges": None, "rows_per_part": OTHER_ROWS})
            for name, source in self.experiment.sources.items()
        }
        ranges = self.parts if self.sorted_by_key else None
        large = {"key_ranges": ranges, "rows_per_part": self.rows_per_part}
        sources[self.source] = sources[self.source].model_copy(update=large)
        experiment = self.experiment.model_copy(
            update={
                "sources": sources,
                "clip_model": SHIPPED_CLIP,
                "evaluate": {},
                "runtime": {k: v for k, v in self.experiment.runtime.items() if k not in EVALUATING},
                "partition": self.experiment.partition.model_copy(update={"num_shards": self.num_shards}),
                "pretrain": self.experiment.pretrain.model_copy(update={"start": None}),
                "phases": {},
            }
        )
        nodes = [node for node in build_graph(experiment).values() if node.stage.name not in NOT_CURATION]
        return Graph([self._upstream_elsewhere(node) for node in nodes])

    def _upstream_elsewhere(self, node: Node) -> Node:
        inputs = {
            slot: tuple(item if isinstance(item, str) else _elsewhere(item) for item in items)
            for slot, items in node.inputs.items()
        }
        return replace(node, inputs=inputs, stage=replace(node.stage, check=None))

    def lay_upstream(self, graph: Graph, store: Store) -> None:
        """Upstream files of the sizes that the rows make them, with hashes that are remembered as if computed."""
        files = {item for node in graph.values() for own in node.sources.values() for item in own}
        of_card = Counter(file.card for file in files if not file.uri.endswith(".yaml"))
        rows_of, lines = self.rows_of_cards, []
        for source in sorted(files, key=lambda file: file.uri):
            rows = rows_of.get(source.card, OTHER_ROWS) // max(1, of_card[source.card])
            size = 1_000 if source.uri.endswith(".yaml") else max(1, rows * rates.UPSTREAM_BYTES)
            store.blobs.fs.add_hole(source.uri, size)
            stamp = str(store.blobs.fs.info(source.uri)["mtime"])
            digest = hashlib.sha256(f"{self.seed} {source.uri} {size}".encode()).hexdigest()
            lines.append(json.dumps({"uri": source.uri, "bytes": size, "stamp": stamp, "sha256": digest}))
        store.blobs.write(CACHE_PATH, "\n".join(lines).encode() + b"\n")


def large_source(experiment: Experiment, name: str | None) -> str:
    """The source that gets the rows: the one called `name`, else the one in ranges of keys, else that list of images
    with most published rows (one that publishes none is taken for the largest). ConfigError if there is none."""
    if name is not None:
        if name not in experiment.sources:
            raise ConfigError(f"--source: no source {name}; the experiment has {', '.join(experiment.sources)}")
        return name
    found: dict[str, tuple[bool, float]] = {}
    for key, source in experiment.sources.items():
        card = load_card(card_file(source.card))
        if source.role == "train" and card.reader in SLICED and Grain.VIDEO not in card.grains:
            published = [file.expected_rows for file in card.files.values()]
            rows = sum(number for number in published if number is not None)
            found[key] = (source.key_ranges is not None, float("inf") if None in published else rows)
    if not found:
        raise ConfigError(
            f"{experiment.name}: no source is a list of images that is read in slices; name one, --source"
        )
    return max(found, key=lambda key: found[key])


def _elsewhere(file: SourceFile) -> SourceFile:
    if file.patterns:
        raise ConfigError(f"card {file.card}: its files are found in a folder, which a simulation does not have")
    where = hashlib.sha256(file.uri.encode()).hexdigest()[:8]
    return SourceFile(f"{UPSTREAM}/{where}/{file.uri.rsplit('/', 1)[-1]}", file.card)
