"""Configuration of training data: streams, examples, regions and augmentation.

Apart from the code that uses it, which imports torch: planning a run must not wait 3 CPU seconds for that import.
"""

from typing import Literal

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig
from x2vlm.data.loading.masking import MaskingConfig
from x2vlm.data.loading.streams import StreamConfig


class AugmentConfig(FrozenConfig):
    """How images are augmented in training; the defaults are the released pre-training recipe without its mistakes.

    `careful_flip`: an image whose text contains left or right is never mirrored. `same_for_all_frames`: the frames of a
    clip are cropped, mirrored and changed alike. The reference does neither in pre-training; `parity="reference"` also
    repeats its left/right test (substrings), resizes by Pillow and lets sharpened bytes wrap around at 255.
    `scaled_decode`: JPEGs of which a crop is more than twice as large as the model's images are decoded at a half, a
    quarter or an eighth. Of 142 crops of photos of 1200 pixels 129 were: a median PSNR of 44 dB against full
    decoding, 30 at worst, a tenth below 35, for a fifth less CPU time. Not exact, so off by default.
    """

    min_area: float = Field(default=0.2, gt=0, le=1)
    flip_prob: float = Field(default=0.5, ge=0, le=1)
    careful_flip: bool = True
    same_for_all_frames: bool = True
    num_ops: int = Field(default=2, ge=0)
    op_prob: float = Field(default=0.5, ge=0, le=1)
    strength: float = Field(default=7, ge=0, le=10)
    scaled_decode: bool = False
    parity: Literal["reference"] | None = None


class RegionConfig(FrozenConfig):
    """How rows are taken from an image with boxes (released recipe).

    `whole_pixels` truncates box coordinates to whole pixels first, as the reference does.
    """

    max_regions: int = Field(default=5, ge=1)
    min_share_in_crop: float = Field(default=0.5, ge=0, lt=1)
    whole_pixels: bool = False


class ExampleConfig(FrozenConfig):
    """How samples become rows; the defaults are the released 4M recipe."""

    max_tokens: int = Field(default=40, ge=3)
    frames_per_clip: int = Field(default=3, ge=1)
    masking: MaskingConfig = MaskingConfig()
    augment: AugmentConfig = AugmentConfig()
    regions: RegionConfig = RegionConfig()


class DataConfig(FrozenConfig):
    """Which data are read, in which order and batches; the defaults are the released base 4M recipe.

    `validation_share` of the shards is held out for `TrainConfig.validate_every`.
    """

    seed: int = 42
    streams: tuple[StreamConfig, ...] = Field(
        default=(
            StreamConfig(kind="image", batch_size=1024),
            StreamConfig(kind="region", batch_size=1024, num_images=400),
        ),
        min_length=1,
    )
    examples: ExampleConfig = ExampleConfig()
    window_shards: int = Field(default=16, ge=1)  # shards whose rows are shuffled together
    validation_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "DataConfig":
        names = [stream.label for stream in self.streams]
        if len(set(names)) < len(names):
            raise ValueError(f"streams need different names, these are {names}")
        return self
