"""The input of one forward pass of pre-training: the contract between the loader and the losses.

B text rows, M images of a region batch, F frames, C channels, H W pixels, P patches, L tokens, K masked positions.
In an image or video batch row b of the text belongs to row b of the pixels. In a region batch the rows are regions
(R = B of them) and `image_of_R` says which of the M images each lies in.
"""

import functools
import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from x2vlm.data.kinds import BatchKind
from x2vlm.data.loading.operations import Operation, apply_operations

UNUSED_LABEL = -100

# CLIP's statistics, of channels between 0 and 1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Batch:
    """One batch of one kind; see the field comments for shapes and types."""

    kind: BatchKind
    keys: list[str]  # sample key of every text row, for logs and lineage
    text_ids_BL: Tensor  # int64
    text_mask_BL: Tensor  # true or 1 on real tokens
    masked_ids_BL: Tensor  # int64, the same captions with some tokens replaced
    masked_positions_BK: Tensor  # int64, 0 where unused
    masked_labels_BK: Tensor  # int64, UNUSED_LABEL where unused
    # Host copies for the layout of a step. Where None, the losses read them from the device, which synchronises:
    lengths: tuple[int, ...] | None = None  # real tokens of every text row, which come first
    num_masked: tuple[int, ...] | None = None  # masked tokens of every row, whose slots come first
    image_of: tuple[int, ...] | None = None  # region batches: `image_of_R` again
    # uint8 as loaded, or float32 and normalised. image: B C H W; region: M C H W; video: B F C H W; text: None
    pixels: Tensor | None = None
    # Pending operations on each image (or frame: B x F of them) of uint8 pixels; None: none.
    operations: tuple[tuple[Operation, ...], ...] | None = None
    # Rows with equal ids show the same image: never each other's negatives in the matching loss, and both positives
    # in the contrastive loss of image and video batches. Without them every other row is a negative.
    image_ids_B: Tensor | None = None  # int64
    # Region batches only:
    image_of_R: Tensor | None = None  # int64, row of `pixels`
    patch_mask_RP: Tensor | None = None  # true for patches under the box; exactly P columns, none for token 0
    box_cxcywh_R4: Tensor | None = None  # float32 in [0, 1] of the image side
    is_whole_image_R: Tensor | None = None  # true for captions of the whole image: no box loss

    def __post_init__(self) -> None:
        needed = {"text": (), "image": ("pixels",), "video": ("pixels",), "region": _REGION_FIELDS}
        if self.kind not in needed:
            raise ValueError(f"batch kind {self.kind!r} is not one of {', '.join(needed)}")
        missing = [name for name in needed[self.kind] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a batch of kind {self.kind} needs {', '.join(missing)}")
        if self.operations is not None and self.pixels is not None:
            num_images = math.prod(self.pixels.shape[:-3])
            if self.pixels.dtype != torch.uint8 or len(self.operations) != num_images:
                raise ValueError(
                    f"operations for {len(self.operations)} images of bytes, {num_images} of {self.pixels.dtype}"
                )
        num_rows, length = self.text_ids_BL.shape
        for name, most in (("lengths", length), ("num_masked", self.masked_labels_BK.shape[1]), ("image_of", None)):
            values = getattr(self, name)
            if values is not None and len(values) != num_rows:
                raise ValueError(f"a batch of {num_rows} texts has {len(values)} {name}")
            if values and most is not None and max(values) > most:
                raise ValueError(f"{name} of a batch go up to {max(values)}, its rows hold {most}")

    @property
    def num_rows(self) -> int:
        return self.text_ids_BL.shape[0]

    def float_pixels(self) -> Tensor:
        """The pixels as the image tower takes them: augmented by `operations`, float32, normalised.

        On a CPU this costs 0.3 ms an image, on a GPU next to nothing: batches are transferred as bytes.
        ValueError for a batch without images.
        """
        if self.pixels is None:
            raise ValueError(f"a batch of kind {self.kind} has no pixels")
        if self.pixels.dtype != torch.uint8:
            return self.pixels
        pixels = self.pixels
        if self.operations is not None:
            pixels = apply_operations(pixels.flatten(0, -4), self.operations).view_as(pixels)
        return normalised(pixels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's DataLoader calls this by name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change) -> "Batch":  # type: ignore[no-untyped-def]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


_REGION_FIELDS = ("pixels", "image_of_R", "patch_mask_RP", "box_cxcywh_R4", "is_whole_image_R")


def normalised(pixels: Tensor) -> Tensor:
    """Bytes (..., 3, H, W) as float32 on the same device, normalised by CLIP's mean and standard deviation."""
    # Tensors, because a GPU multiplies by the reciprocal of a Python number: the last bits would differ from the CPU's.
    largest, mean, deviation = _statistics(pixels.device)
    numbers = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    whole = pixels.device.type != "cpu" or pixels.dim() < 4
    # On a CPU image by image, so that all four passes but the first stay in its cache.
    for target, source in [(numbers, pixels)] if whole else zip(numbers, pixels, strict=True):
        target.copy_(source).div_(largest).sub_(mean).div_(deviation)
    return numbers


@functools.lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, mean and deviation on `device`, copied once: a copy in every step would synchronise with the GPU."""
    with torch.inference_mode(False):  # or they could not be used in training later
        mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
        return torch.tensor(255.0, device=device), mean, deviation
