"""What a downstream task is: a value that can evaluate a model and say on which data it did so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from x2vlm.config import FrozenConfig
from x2vlm.errors import InvalidSample
from x2vlm.samples import Sample

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.x2vlm import X2VLM

# Statistics of CLIP's training images; the reference normalises with them everywhere (reference_model 1.1).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TaskResult:
    """`metrics` in percent unless a name says otherwise; `intervals` are 95 % bootstrap intervals of some of them."""

    metrics: Mapping[str, float]
    predictions: pa.Table  # one row per example
    data_digest: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    num_examples: int = 0


@dataclass(frozen=True)
class TaskContext:
    """What a task may use besides the model: held-out samples, their pixels and the tokenizer."""

    samples: Sequence[Sample]
    load_image: Callable[[Sample], Image.Image]  # RGB, oriented
    encode_texts: Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # ids_BL, mask_BL
    device: torch.device = torch.device("cpu")
    batch_size: int = 32


@dataclass(frozen=True)
class Task:
    """A downstream task. `finetune` is None for a zero-shot task."""

    name: str
    config_type: type[FrozenConfig]
    headline: str  # name of the metric that sums it up
    evaluate: Callable[[X2VLM, Any, TaskContext], TaskResult]
    finetune: Callable[[X2VLM, Any, TaskContext], X2VLM] | None = None


def image_tensor(image: Image.Image, image_res: int) -> Tensor:
    """Pixels (3, image_res, image_res), normalised; the whole image is squashed to a square as the reference does."""
    resized = image.convert("RGB").resize((image_res, image_res), Image.Resampling.BICUBIC)
    pixels_HWC = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(image_res, image_res, 3)
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    return ((pixels_HWC.float() / 255 - mean) / std).permute(2, 0, 1).contiguous()


def data_digest(example_ids: Sequence[str]) -> str:
    """sha256 over the sorted ids of all examples; equal digests mean the same questions were asked.

    Raises InvalidSample when an id occurs twice.
    """
    if len(set(example_ids)) != len(example_ids):
        twice = next(item for item in example_ids if example_ids.count(item) > 1)
        raise InvalidSample("duplicate_id", f"example {twice} occurs twice")
    return hashlib.sha256("\n".join(sorted(example_ids)).encode()).hexdigest()
