"""How long the texts of a shard are, and how many boxes its images have: numbers to size streams and batches with."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.flow.stage import Json, PartSummary
from pipelines.s4_materialize.grains import add_up_grains, lengths
from x2vlm.data.columns import SampleColumns, num_words
from x2vlm.data.text.concept_texts import concept_texts

MOST = 64  # longer texts, and images with more boxes, are counted under this number
Histogram = dict[str, int]  # "7" -> how many have seven; JSON knows no other keys


def measure_sizes(rows: pa.Table) -> dict[str, Histogram]:
    """Histograms of the rows of a shard.

    | key | counts |
    |---|---|
    | words_per_caption, words_per_concept | texts by words: runs without white space with a letter or digit in them |
    | captions_per_row | rows by captions |
    | boxes_per_image | images by concepts, also those without |

    Words are not tokens: no vocabulary is at hand here, and another model has another one. A text has at least about as
    many tokens as words.
    """
    columns = SampleColumns(rows)
    images = rows.filter(pc.equal(rows["kind"], "image"))
    return {
        "words_per_caption": _histogram(num_words(columns.captions.values.field("text"))),
        "words_per_concept": _histogram(num_words(concept_texts(columns.concepts.values))),
        "captions_per_row": _histogram(lengths(rows, "captions").to_numpy()),
        "boxes_per_image": _histogram(lengths(images, "concepts").to_numpy()),
    }


def _histogram(numbers: np.ndarray) -> Histogram:
    values, counts = np.unique(np.minimum(numbers, MOST).astype(int), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def add_up_packs(config: object, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """`grains`, `sizes` and `smaller` of all shards added up: `finish` of `pack`.

    Shards written before sizes were measured have none; then the artifact says nothing about them either.
    """
    found = dict(add_up_grains(config, parts))
    if all("sizes" in part.summary for part in parts):
        names = list(dict.fromkeys(name for part in parts for name in part.summary["sizes"]))
        found["sizes"] = {name: _sum(part.summary["sizes"][name] for part in parts) for name in names}
    if any("smaller" in part.summary for part in parts):
        found["smaller"] = _sum(part.summary.get("smaller", {}) for part in parts)
    return found


def _sum(histograms: Iterable[Mapping[str, int]]) -> Histogram:
    total: Histogram = {}
    for histogram in histograms:
        for name, number in histogram.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items(), key=lambda item: (int(item[0]) if item[0].isdecimal() else 0, item[0])))
