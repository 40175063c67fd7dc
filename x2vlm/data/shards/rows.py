"""What training reads of the samples of a shard, and nothing else: found in microseconds, held as a few flat arrays.

Decoding a row of the index into a `Sample` takes 0.15 ms, a seventh of what an image costs in all; a `Row` takes 0.01.
A shard of ten thousand images with eight boxes each is 10 MB of arrays here and 40 MB as the whole index.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.kinds import StreamKind
from x2vlm.data.shards.shard import OpenableFile, read_index
from x2vlm.data.text.concept_texts import concept_texts
from x2vlm.data.text.texts import concept_text
from x2vlm.samples import Box, Grain, MediaKind, Sample

GRAIN = "concepts.list.element.grain"
CAPTION = "captions.list.element.language"  # the cheapest leaf of a caption
COLUMNS = (
    "key",
    "source",
    "kind",
    "captions.list.element.text",
    "concepts.list.element.text",
    "concepts.list.element.box",
    "concepts.list.element.attributes",
    "media.sha256",
    "media.width",
    "media.height",
    "payload_offset",
    "payload_bytes",
    "payload_sha256",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A sample as training reads it. `texts` describe the boxes, attributes included; `labels` are without them.

    `variant` is part of the labels of a row's draws: rows of one image with a caption each are cut and masked each in
    their own way.
    """

    key: str
    kind: MediaKind
    media_sha256: str
    width: int  # oriented pixels of the original
    height: int
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    variant: str = ""


def row_of(sample: Sample) -> Row:
    """What training reads of a sample that has its media."""
    assert sample.media is not None
    return Row(
        key=sample.key,
        kind=sample.kind,
        media_sha256=sample.media.sha256,
        width=sample.media.width,
        height=sample.media.height,
        captions=tuple(caption.text for caption in sample.captions),
        labels=tuple(concept.text for concept in sample.concepts),
        texts=tuple(concept_text(concept) for concept in sample.concepts),
        boxes=tuple(concept.box for concept in sample.concepts),
    )


@dataclass(frozen=True, slots=True)
class Location:
    """Where the payload of a sample lies in its shard, and what its sha256 must be."""

    key: str
    offset: int
    bytes: int
    sha256: str


class ShardRows:
    """The rows of one shard's index (key order). CorruptArtifact if it is missing or not an index."""

    def __init__(self, index: OpenableFile) -> None:
        self._index = index
        table = read_index(index, COLUMNS).combine_chunks()
        self._keys, self._sources, self._kinds = (_array(table, name) for name in ("key", "source", "kind"))
        media = _array(table, "media")
        self._sha256 = media.field("sha256")
        self._sizes = np.stack([_numbers(media.field(name)) for name in ("width", "height")], axis=1)
        captions, concepts = _array(table, "captions"), _array(table, "concepts")
        self._caption_ends, self._concept_ends = list_ends(captions), list_ends(concepts)
        self._captions, concepts = captions.flatten().field("text"), concepts.flatten()
        self._labels, self._texts = concepts.field("text"), concept_texts(concepts)
        box = concepts.field("box")
        self._boxes = np.stack([_numbers(box.field(side)) for side in "xywh"], axis=1)
        self._offsets, self._bytes = (_numbers(_array(table, name)) for name in ("payload_offset", "payload_bytes"))
        self._payload_sha256 = _array(table, "payload_sha256")

    def __len__(self) -> int:
        return len(self._keys)

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """The key of every row, ascending, as bytes."""
        return np.array(self._keys.to_pylist(), dtype="S")

    def row(self, number: int) -> Row:
        """The row at position `number` of the index."""
        captions, concepts = _span(self._caption_ends, number), _span(self._concept_ends, number)
        width, height = self._sizes[number].tolist()
        return Row(
            key=self._keys[number].as_py(),
            kind=self._kinds[number].as_py(),
            media_sha256=self._sha256[number].as_py(),
            width=width,
            height=height,
            captions=tuple(self._captions[captions].to_pylist()),
            labels=tuple(self._labels[concepts].to_pylist()),
            texts=tuple(self._texts[concepts].to_pylist()),
            boxes=tuple(Box(*sides) for sides in self._boxes[concepts].tolist()),
        )

    def phrases(self, number: int) -> list[str]:
        """The phrases of the regions of that row, in the order of its concepts."""
        concepts = _span(self._concept_ends, number)
        return [self._texts[concepts.start + place].as_py() for place in self.of_grains(number, (Grain.REGION,))]

    def of_grains(self, number: int, grains: Sequence[str]) -> list[int]:
        """Which concepts of that row are of one of these grains, in their order."""
        own = self._grain_codes[_span(self._concept_ends, number)]
        codes = [code for code, name in enumerate(self._grain_names) if name in grains]
        places: list[int] = np.flatnonzero(np.isin(own, codes)).tolist()
        return places

    @functools.cached_property
    def _grains(self) -> pa.ListArray:
        """The concepts with their grain alone. Read when it is asked for: most streams never do."""
        return _array(read_index(self._index, (GRAIN,)).combine_chunks(), "concepts")

    @functools.cached_property
    def _grain_codes(self) -> np.ndarray:
        """The grain of every concept, as a number into `_grain_names`."""
        return encoded(self._grains.flatten().field("grain"))[0]

    @functools.cached_property
    def _grain_names(self) -> list[str]:
        return encoded(self._grains.flatten().field("grain"))[1]

    def location(self, number: int) -> Location:
        """Where the payload of that row lies."""
        return Location(
            self._keys[number].as_py(),
            int(self._offsets[number]),
            int(self._bytes[number]),
            self._payload_sha256[number].as_py(),
        )

    def usable(self, kind: StreamKind, sources: Sequence[str], grains: Sequence[str] = ()) -> np.ndarray:
        """Ascending numbers of the rows that a stream can use: see `usable`. `grains` of boxes; none named: any."""
        counts = np.diff(self._concept_ends if kind == "region" else self._caption_ends)
        if grains:
            counts = num_of_grains(self._grains, grains)
        return np.flatnonzero(usable(self._kinds, self._sources, counts, kind, sources)).astype(np.int32)


class RowTexts:
    """How many texts each row of a shard's index has, and nothing of what they say: four leaves of thirty are read.

    CorruptArtifact if the index is missing or not one.
    """

    def __init__(self, index: OpenableFile) -> None:
        table = read_index(index, ("source", "kind", CAPTION, GRAIN)).combine_chunks()
        self._sources, self._kinds = _array(table, "source"), _array(table, "kind")
        self._captions = np.diff(list_ends(_array(table, "captions")))
        self._phrases = num_of_grains(_array(table, "concepts"), (Grain.REGION,))

    def __len__(self) -> int:
        return len(self._captions)

    def num_texts(self) -> tuple[np.ndarray, np.ndarray]:
        """How many captions, and how many region phrases, each row has."""
        return self._captions, self._phrases

    def of(self, kind: StreamKind, sources: Sequence[str]) -> np.ndarray:
        """Ascending numbers of the rows of some sources with the medium of that kind of stream, texts or not."""
        return np.flatnonzero(usable(self._kinds, self._sources, np.ones(len(self)), kind, sources))


def usable(
    kinds: pa.Array, row_sources: pa.Array, num_texts: np.ndarray, kind: StreamKind, sources: Sequence[str]
) -> np.ndarray:
    """True for rows that a stream can use: right medium and source, and at least one text.

    `num_texts` are captions for images and videos, concepts (boxes) for regions. No source named: any.
    """
    mask: np.ndarray = (num_texts > 0) & _is_one_of(kinds, ("video" if kind == "video" else "image",))
    if sources:
        mask &= _is_one_of(row_sources, sources)
    return mask


def _is_one_of(texts: pa.Array, wanted: Sequence[str]) -> np.ndarray:
    codes, names = encoded(texts)
    found: np.ndarray = np.isin(codes, [code for code, name in enumerate(names) if name in wanted])
    return found


def num_of_grains(concepts: pa.ListArray, grains: Sequence[str]) -> np.ndarray:
    """How many concepts of each row are of one of these grains, of concepts with their field `grain`."""
    is_one = _is_one_of(concepts.flatten().field("grain"), grains)
    before = np.concatenate([[0], np.cumsum(is_one, dtype=np.int64)])
    counts: np.ndarray = np.diff(before[list_ends(concepts)])
    return counts


def encoded(texts: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Texts (none null) as numbers into a list of the different ones.

    Like `list_ends` without a pyarrow function that takes a Python value: the first of those imports pandas, which is
    a CPU second in every reader process.
    """
    dictionary = texts.dictionary_encode()
    return np.from_dlpack(dictionary.indices), dictionary.dictionary.to_pylist()


def list_ends(lists: pa.ListArray) -> np.ndarray:
    """Where each list ends in the flattened values, after a 0: null lists are empty."""
    lengths = np.diff(np.from_dlpack(lists.offsets))
    if lists.null_count:
        lengths = lengths * np.from_dlpack(pc.is_valid(lists).cast(pa.uint8()))
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _span(ends: np.ndarray, number: int) -> slice:
    return slice(int(ends[number]), int(ends[number + 1]))


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _numbers(array: pa.Array) -> np.ndarray:
    return np.from_dlpack(array)
