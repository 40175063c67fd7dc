"""The descriptions a model reads for concepts, for a whole column of concepts at once."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.columns import flags
from x2vlm.data.text.texts import MADE_OF


def concept_texts(concepts: pa.StructArray) -> pa.Array:
    """`x2vlm.data.text.texts.concept_text` of every concept: attributes, then the label, then what it is made of."""
    labels, lists = concepts.field("text"), concepts.field("attributes")
    if labels.null_count:
        labels = pc.fill_null(labels, "")
    if not len(lists.values):
        return labels
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if not counts.any():
        return labels
    attributes, owner = lists.flatten(), np.repeat(np.arange(len(labels)), counts)
    after = flags(pc.starts_with(attributes, MADE_OF))
    words = pa.concat_arrays([attributes, labels])
    # Attributes before the label have place 0, labels 1, materials 2; a stable sort keeps the order within each.
    concept, place = np.r_[owner, np.arange(len(labels))], np.r_[np.where(after, 2, 0), np.ones(len(labels), int)]
    offsets = np.r_[0, np.cumsum(counts + 1)].astype(np.int32)
    order = pa.array(np.lexsort((place, concept)))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words.take(order)), " ")
