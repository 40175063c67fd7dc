"""A stream of a step: its batch and intermediate results."""

from dataclasses import dataclass

from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.models.blocks.packing import Numbers
from x2vlm.objectives.across_ranks import NegativeGroup
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.host import HostView
from x2vlm.objectives.towers import ImageTokens


@dataclass(frozen=True)
class Stream:
    """One batch of the step; `clean` and `masked` are the numbers of its first texts (clean None: not encoded)."""

    label: str
    batch: Batch
    view: HostView
    config: ObjectiveConfig
    images: ImageTokens | None
    clean: int | None
    masked: int
    group: NegativeGroup | None

    @property
    def num_rows(self) -> int:
        return self.batch.num_rows

    @property
    def masked_slots(self) -> Numbers:
        """The slot of every masked token in the flattened (B, K) arrays of the batch."""
        return self.view.masked_rows * self.batch.masked_positions_BK.shape[1] + self.view.masked_slots


@dataclass(frozen=True)
class Drawn:
    """The negative pairs of a stream: an image row per text, a text row per image, and which rows have them."""

    image_of_text: Tensor
    text_of_image: Tensor
    has_negative: Tensor | None
