"""Lengths of texts in tokens: measured on packed shards if there are any, else assumed."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.experiment import Experiment, resolve
from pipelines.flow.stage import InputPart
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from x2vlm.data.loading.config import ExampleConfig
from x2vlm.data.shards.media_files import index_name, is_media_file
from x2vlm.data.text.texts import concept_text
from x2vlm.samples import Grain, Sample

if TYPE_CHECKING:  # a plan without shards need not import the library of tokenizers
    from x2vlm.data.text.encoding import TextEncoder

# Mean tokens of a row with [CLS] and [SEP]: captions, and labels of objects and regions. Nobody has measured them on
# the data of the paper.
ASSUMED = {"image": 14.0, "video": 14.0, "region": 6.0}
MAX_SHARDS, MAX_TEXTS = 4, 4_000


@dataclass(frozen=True)
class TextLengths:
    """Mean tokens of a row by kind of stream, and their origin."""

    mean: dict[str, float]
    source: str


def text_lengths(
    experiment: Experiment,
    node: str,
    examples: ExampleConfig,
    store: Store | None,
    phrases: Mapping[str, int] | None = None,
) -> TextLengths:
    """Lengths in the shards of `node` ("pack/<name>"), as training truncates them; assumed ones if there are none yet.

    Reads the indexes of up to 4 shards, spread over all, and up to 4,000 texts of each kind. `phrases`: how many region
    phrases of an image are captions, by source (`StreamConfig.region_captions`).
    """
    ref = None if store is None else store.read_ref(experiment.name, node)
    stored = None if store is None or ref is None else store.read_manifest(ref.manifest_path)
    if store is None or stored is None:
        return TextLengths(dict(ASSUMED), "assumed, not measured: no shards are packed yet")
    from x2vlm.data.text.encoding import TextEncoder
    from x2vlm.data.text.tokenizer import load_tokenizer

    encoder = TextEncoder(load_tokenizer(resolve(experiment.vocabulary)), examples.max_tokens)
    numbers: dict[str, list[int]] = {kind: [] for kind in ASSUMED}
    for sample in _some_samples(store, store.as_input(stored[0]).parts):
        most_phrases = (phrases or {}).get(sample.source, 0)
        for kind, texts in _texts(sample, encoder, examples.regions.max_regions, most_phrases).items():
            if len(numbers[kind]) < MAX_TEXTS:
                numbers[kind] += [len(encoder.encode_clean(text)) for text in texts]
    mean = {kind: sum(found) / len(found) if found else ASSUMED[kind] for kind, found in numbers.items()}
    counted = ", ".join(f"{len(found)} {kind}" for kind, found in numbers.items() if found)
    assumed = ", ".join(kind for kind, found in numbers.items() if not found)
    return TextLengths(
        mean,
        f"measured on texts of the packed shards: {counted or 'none'}" + (f"; {assumed} assumed" if assumed else ""),
    )


def _some_samples(store: Store, parts: Sequence[InputPart]) -> Iterator[Sample]:
    from x2vlm.data.shards.shard import ShardReader

    for part in parts[:: max(1, -(-len(parts) // MAX_SHARDS))]:
        with tempfile.TemporaryDirectory(prefix="x2vlm-lengths-") as links:
            files = {file.path: file for file in part.files}
            index_file = files.get(index_name(next(filter(is_media_file, files))))
            if index_file is None:
                continue  # of an earlier release, which named indexes otherwise: it will be packed again
            index = StoreReader(store, Path(links), part.name).local_path(index_file)
            yield from ShardReader(index, index).samples()  # samples are all in the index; no payload is opened


def _texts(sample: Sample, encoder: "TextEncoder", max_regions: int, most_phrases: int = 0) -> dict[str, list[str]]:
    """The cleaned texts that a sample brings to each kind of stream.

    For a region stream: one caption, if there is one, and concepts up to the most that an image may have.
    """
    captions = encoder.clean(caption.text for caption in sample.captions)
    if sample.kind == "video":
        return {"video": captions}
    concepts = encoder.clean(concept_text(concept) for concept in sample.concepts)
    rows = [*captions[:1], *concepts][:max_regions] if concepts else []
    regions = [concept_text(concept) for concept in sample.concepts if concept.grain == Grain.REGION]
    return {"image": [*captions, *encoder.clean(regions[:most_phrases])], "region": rows}
