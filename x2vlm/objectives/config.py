"""What an experiment decides about the losses; `x2vlm.objectives` computes them, and imports torch."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig

# "reference" repeats what the reference computes where nobody would want it, so that the two can be compared.
Parity = Literal["fixed", "reference"]
ContrastiveGradient = Literal["true", "reference"] | float
BOX_LOSSES = frozenset(["box_l1", "box_giou"])

T = TypeVar("T")


class ObjectiveConfig(FrozenConfig):
    """Which losses are computed and where they follow the reference."""

    matching: bool = True
    contrastive_gradient: ContrastiveGradient = "true"
    box_loss_on_whole_images: bool = False
    parity: Parity = "fixed"
    # Negatives of the matching loss come from consecutive groups of this many rows of the batch of all ranks, however
    # many ranks there are. None: from the rows of one rank, as in the reference: more ranks then find easier ones.
    negative_group_size: int | None = Field(default=None, ge=2)
    # What region batches teach. Ablations (X2-VLM 4.6) train one of the two: alignment, or boxes.
    align_regions: bool = True
    locate_regions: bool = True

    @model_validator(mode="after")
    def _regions_teach_something(self) -> "ObjectiveConfig":
        if not self.align_regions and not self.locate_regions:
            raise ValueError("align_regions and locate_regions are both false: leave the region stream out instead")
        return self


def counted_losses(kind: str, losses: Mapping[str, T], config: ObjectiveConfig) -> dict[str, T]:
    """Those of a batch's `losses` that the weights learn from."""
    if kind != "region":
        return dict(losses)
    return {
        name: value
        for name, value in losses.items()
        if (config.locate_regions if name in BOX_LOSSES else config.align_regions)
    }
