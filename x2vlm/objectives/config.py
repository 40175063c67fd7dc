"""Configuration of the losses, without importing torch."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig

# "reference" reproduces the reference where it is wrong, so that the two can be compared.
Parity = Literal["fixed", "reference"]
ContrastiveGradient = Literal["true", "reference"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
BOX_LOSSES = frozenset(["box_l1", "box_giou"])

T = TypeVar("T")


class ObjectiveConfig(FrozenConfig):
    """Which losses are computed and where they follow the reference.

    With `exclude_equal_texts`, rows whose texts have equal tokens are never each other's negatives, neither in the
    contrastive loss (over all ranks) nor in the matching loss: "a dog" under two photos is right for both. The
    reference takes them as negatives, and so does the default.
    """

    matching: bool = True
    contrastive_gradient: ContrastiveGradient = "true"
    box_loss_on_whole_images: bool = False
    parity: Parity = "fixed"
    # Negatives of the matching loss come from consecutive groups of this many rows of the batch of all ranks,
    # independent of the number of ranks. None: from the rows of one rank, as in the reference: easier ones with more
    # ranks.
    negative_group_size: int | None = Field(default=None, ge=2)
    # Whether rows of one image may be each other's negatives in the matching loss. The reference excludes a row itself
    # alone, in pre-training: another region of the image, or a copy of the row, can be its hard negative.
    same_image_negatives: bool = False
    # What is right for a row in the contrastive loss of image and video batches: "image" splits the target evenly among
    # the rows of its image, "row" is the reference's, to which a second caption of the image is wrong. Regions always
    # have "row". Streams never share a target: each has a contrastive loss of its own, as in the reference.
    contrastive_targets: Literal["image", "row"] = "image"
    exclude_equal_texts: bool = False
    # Which losses region batches have. Ablations (X2-VLM 4.6) train one of the two: alignment, or boxes.
    align_regions: bool = True
    locate_regions: bool = True

    @model_validator(mode="after")
    def _regions_have_a_loss(self) -> "ObjectiveConfig":
        if not self.align_regions and not self.locate_regions:
            raise ValueError("align_regions and locate_regions are both false: leave the region stream out instead")
        return self


def counted_losses(kind: str, losses: Mapping[str, T], config: ObjectiveConfig) -> dict[str, T]:
    """Those of a batch's `losses` that are trained on."""
    if kind != "region":
        return dict(losses)
    return {
        name: value
        for name, value in losses.items()
        if (config.locate_regions if name in BOX_LOSSES else config.align_regions)
    }
