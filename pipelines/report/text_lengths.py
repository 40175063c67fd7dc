"""Lengths of texts in tokens: measured on packed shards if there are any, else assumed."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.experiment import Experiment, resolve
from pipelines.flow.stage import InputPart
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from x2vlm.data.loading.config import ExampleConfig
from x2vlm.data.shards.media_files import index_name, is_media_file
from x2vlm.data.text.captions import pre_caption
from x2vlm.data.text.texts import concept_text
from x2vlm.errors import InvalidSample
from x2vlm.samples import Sample

# Mean tokens of a row with [CLS] and [SEP]: captions, and labels of objects and regions. They have not been
# measured on the data of the paper.
ASSUMED = {"image": 14.0, "video": 14.0, "region": 6.0}
MAX_SHARDS, MAX_TEXTS = 4, 4_000


@dataclass(frozen=True)
class TextLengths:
    """Mean tokens of a row by kind of stream, and their origin."""

    mean: dict[str, float]
    source: str


def text_lengths(experiment: Experiment, node: str, examples: ExampleConfig, store: Store | None) -> TextLengths:
    """Lengths in the shards of `node` ("pack/<name>"), as training truncates them; assumed ones if there are none yet.

    Reads the indexes of up to 4 shards, spread over all, and up to 4,000 texts of each kind.
    """
    ref = None if store is None else store.read_ref(experiment.name, node)
    stored = None if store is None or ref is None else store.read_manifest(ref.manifest_path)
    if store is None or stored is None:
        return TextLengths(dict(ASSUMED), "assumed, not measured: no shards are packed yet")
    from x2vlm.data.text.tokenizer import load_tokenizer  # not for a plan without shards

    tokenizer = load_tokenizer(resolve(experiment.vocabulary))
    numbers: dict[str, list[int]] = {kind: [] for kind in ASSUMED}
    for sample in _some_samples(store, store.as_input(stored[0]).parts):
        for kind, texts in _texts(sample, examples).items():
            if len(numbers[kind]) < MAX_TEXTS:
                numbers[kind] += [len(tokenizer.encode(text, examples.max_tokens)) for text in texts]
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
            media = next(file.path for file in part.files if is_media_file(file.path))
            index = StoreReader(store, Path(links), part.name).local_path(part.file(index_name(media)))
            yield from ShardReader(index, index).samples()  # samples are all in the index; no payload is opened


def _texts(sample: Sample, examples: ExampleConfig) -> dict[str, list[str]]:
    """The cleaned texts of a sample for each kind of stream.

    For a region stream: one caption, if there is one, and concepts up to the most that an image may have.
    """
    captions = _cleaned([caption.text for caption in sample.captions], examples.max_tokens)
    if sample.kind == "video":
        return {"video": captions}
    concepts = _cleaned([concept_text(concept) for concept in sample.concepts], examples.max_tokens)
    rows = [*captions[:1], *concepts][: examples.regions.max_regions] if concepts else []
    return {"image": captions, "region": rows}


def _cleaned(texts: Sequence[str], max_words: int) -> list[str]:
    cleaned = []
    for text in texts:
        try:
            cleaned.append(pre_caption(text, max_words))
        except InvalidSample:
            continue  # training does not use it either
    return cleaned
