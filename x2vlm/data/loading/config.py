"""Configuration of training data: streams, examples, regions and augmentation.

Apart from the code that uses it, which imports torch: planning a run must not wait 3 CPU seconds for that import.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig, did_you_mean
from x2vlm.data.kinds import StreamKind
from x2vlm.data.loading.masking import MaskingConfig

IMAGES_PER_GROUP = 50
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0


class StreamConfig(FrozenConfig):
    """One kind of batch in every step.

    `batch_size` counts text rows over all processes; a region stream draws them from `num_images` images. `sources`
    restricts the stream (none named: all). A fraction `aux_share` of the batches comes from `aux_sources` (the clean
    sets beside a noisy one); `match_main=False` leaves the matching loss to those (released 1B recipe).
    `negative_group_size` overrides that of the objective.

    `rows_per`: "image" gives every image (or clip) one row in a pass, with one of its captions; "caption" one row for
    each of its captions, as the reference reads a line per pair; they are spread over the pass and cut, mirrored and
    masked each in their own way. `region_captions` adds to those rows the phrases of an image's regions, as captions of
    the whole image: for each source at most so many in a pass, others in the next (Visual Genome has no captions).
    `weights`: how often a pass draws the rows of a source, 1 where none is given; 0.5 draws every second, and the rest
    in the next pass. Both name sources of the stream. `grains` restricts a region stream to boxes of objects or of
    regions (none named: both); the shards keep the others, as captions for example.
    """

    kind: StreamKind
    batch_size: int = Field(ge=1)
    name: str = ""
    num_images: int | None = Field(default=None, ge=1)
    loss_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    sources: tuple[str, ...] = ()
    aux_sources: tuple[str, ...] = ()
    aux_share: float = Field(default=0.0, ge=0, lt=1)
    match_main: bool = True
    negative_group_size: int | None = Field(default=None, ge=2)
    rows_per: Literal["image", "caption"] = "image"
    region_captions: dict[str, Annotated[int, Field(ge=1)]] = {}
    grains: tuple[Literal["object", "region"], ...] = ()
    weights: dict[str, Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]] = {}

    @model_validator(mode="after")
    def _is_complete(self) -> "StreamConfig":
        if (self.kind == "region") != (self.num_images is not None):
            raise ValueError("num_images belongs to region streams, and they need it: images per step")
        if bool(self.aux_sources) != bool(self.aux_share):
            raise ValueError("aux_sources and aux_share belong together")
        if not self.match_main and not self.aux_sources:
            raise ValueError("match_main: false leaves no batch with a matching loss unless there are aux_sources")
        return self

    @model_validator(mode="after")
    def _rows_can_be_told(self) -> "StreamConfig":
        if self.rows_per == "caption" and self.kind == "region":
            raise ValueError("rows_per: caption is for images and clips; rows of a region stream are boxes")
        if self.region_captions and (self.kind != "image" or self.rows_per != "caption"):
            raise ValueError("region_captions has no effect without kind: image and rows_per: caption")
        if self.grains and self.kind != "region":
            raise ValueError("grains has no effect without kind: region; other streams read no boxes")
        for field in ("region_captions", "weights"):
            if self.sources and (unknown := sorted(set(getattr(self, field)) - {*self.sources, *self.aux_sources})):
                known = (*self.sources, *self.aux_sources)
                raise ValueError(
                    f"{field}: {unknown[0]} is no source of this stream; {did_you_mean(unknown[0], known)}"
                )
        return self

    def __hash__(self) -> int:
        return hash((self.kind, self.label, self.batch_size))  # mappings have no hash

    @property
    def row_groups(self) -> int:
        """Number of groups of the images of a region step; rows are chosen within each group.

        The largest number that divides images and rows evenly and leaves at least 50 images in each group, from which
        a process of the released recipe chose 128 rows. It does not depend on the number of processes, and saves
        them planning images of which they get no row.
        """
        return self.row_groups_of(1)

    def row_groups_of(self, lanes: int) -> int:
        """`row_groups` of a step whose images come from so many lanes: a number that divides that of lanes, so that no
        group has rows of a lane that its other lanes' machine does not read."""
        if self.num_images is None:
            return 1
        common = math.gcd(self.num_images, self.batch_size)
        most = max(1, self.num_images // IMAGES_PER_GROUP)
        allowed = (number for number in range(1, most + 1) if common % number == 0)
        return max(number for number in allowed if lanes == 1 or lanes % number == 0)

    @property
    def repeats_images(self) -> bool:
        """Whether a pass may have several rows of one image."""
        return self.rows_per == "caption" or any(weight > 1 for weight in self.weights.values())

    @property
    def label(self) -> str:
        """Name of the stream in metrics and in the record of consumed samples."""
        return self.name or self.kind

    @property
    def items_per_step(self) -> int:
        """Samples drawn per step over all processes."""
        return self.num_images or self.batch_size


class AugmentConfig(FrozenConfig):
    """How images are augmented in training; the defaults are the released pre-training recipe without its mistakes.

    `careful_flip`: an image whose text contains left or right is never mirrored. `same_for_all_frames`: the frames of a
    clip are cropped, mirrored and changed alike. The reference does neither in pre-training; `parity="reference"` also
    repeats its left/right test (substrings), resizes by Pillow, lets sharpened bytes wrap around at 255, and its
    AutoContrast turns every channel white whose darkest level is above 0.
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

    `validation_share` of the shards is held out for `TrainConfig.validate_every`. `lanes`: a batch has equal parts of
    up to so many lanes, which have shards of their own; processes read consecutive lanes, so machines share no shard if
    their number divides that of lanes. A stream has fewer where these do not divide its samples of a step, or where
    shards do not fill a window in each (`x2vlm.data.loading.orders.lanes`). 64 suits a hundred thousand shards; 1: any
    process reads any shard.
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
    lanes: int = Field(default=1, ge=1)
    validation_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "DataConfig":
        names = [stream.label for stream in self.streams]
        if len(set(names)) < len(names):
            raise ValueError(f"streams need different names, these are {names}")
        return self
