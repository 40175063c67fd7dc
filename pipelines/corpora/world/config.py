"""Configuration of a world, and the source of each scene: a function of the scene's number alone."""

from functools import cache
from typing import Literal, Self

import pydantic

from x2vlm.config import FrozenConfig

Media = Literal["jpg", "none"]

WEIGHTS = {  # scenes per source in every round of 40, 4 more are held out for evaluation
    "coco": 6,
    "visual_genome": 4,
    "sbu": 2,
    "cc3m": 4,
    "cc12m": 3,
    "laion_en": 4,
    "laion_multi": 2,
    "objects365": 2,
    "openimages": 3,
    "flickr_entities": 1,
    "webvid": 2,
    "howto100m": 1,
    "yttemporal": 2,
}
DERIVED = {"refcoco": "coco", "gqa": "visual_genome"}
"""Sources that annotate the images of another one."""

ALIASES = {"laion": ("laion_en", "laion_multi")}
"""Names for several sources at once."""

CLIP_SOURCES = ("webvid", "howto100m", "yttemporal")
BOX_SOURCES = ("coco", "visual_genome", "objects365", "openimages", "flickr_entities")
SOURCES = (*WEIGHTS, *DERIVED)
EVALUATION = "evaluation"
EVALUATION_EVERY = 10
"""Scene numbers that end in 9 are held out."""


class NoiseRates(FrozenConfig):
    """The fraction of rows (or of images with boxes, where noted) that get each kind of noise."""

    mismatched_caption: float = pydantic.Field(default=0.03, ge=0, le=1)
    foreign_text: float = pydantic.Field(default=0.04, ge=0, le=1)  # of LAION's English subset
    empty_text: float = pydantic.Field(default=0.01, ge=0, le=1)  # of web rows and clips
    dead_link: float = pydantic.Field(default=0.04, ge=0, le=1)
    small_image: float = pydantic.Field(default=0.03, ge=0, le=1)
    extreme_aspect: float = pydantic.Field(default=0.02, ge=0, le=1)
    duplicate: float = pydantic.Field(default=0.04, ge=0, le=1)
    test_leak: float = pydantic.Field(default=0.02, ge=0, le=1)
    one_word_text: float = pydantic.Field(default=0.05, ge=0, le=1)  # of clips
    rotated: float = pydantic.Field(default=0.02, ge=0, le=1)  # of OpenImages
    tiny_box: float = pydantic.Field(default=0.05, ge=0, le=1)  # of images with boxes
    invalid_box: float = pydantic.Field(default=0.05, ge=0, le=1)  # of images with boxes
    near_duplicate_region: float = pydantic.Field(default=0.08, ge=0, le=1)  # of images with regions
    crowd_box: float = pydantic.Field(default=0.03, ge=0, le=1)  # of COCO and OpenImages (IsGroupOf)
    depiction_box: float = pydantic.Field(default=0.03, ge=0, le=1)  # of OpenImages


class WorldConfig(FrozenConfig):
    """One world. Equal values give equal files, whatever the number of workers and the machine."""

    seed: int = 1
    scenes: int = pydantic.Field(default=1000, ge=1)
    sources: tuple[str, ...] = SOURCES
    image_size: int = pydantic.Field(default=256, ge=96, le=2048)  # pixels of the short side of an ordinary image
    finetuning_scenes: int | None = pydantic.Field(default=None, ge=1)  # for fine-tuning alone; None: a tenth more
    media: Media = "jpg"  # `none` writes annotations only; checksums of media are then empty
    min_visible_share: float = pydantic.Field(default=0.6, gt=0, le=1)  # of every annotated object
    jpeg_quality: int = pydantic.Field(default=88, ge=1, le=95)
    noise: NoiseRates = NoiseRates()

    @pydantic.field_validator("sources")
    @classmethod
    def _known(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        sources = tuple(one for source in sources for one in ALIASES.get(source, (source,)))
        unknown = sorted(set(sources) - set(SOURCES))
        if unknown:
            raise ValueError(f"no source {', '.join(unknown)}; known: {', '.join(SOURCES)}")
        return tuple(source for source in SOURCES if source in sources)

    @pydantic.model_validator(mode="after")
    def _something_to_make(self) -> Self:
        if not self.sources:
            raise ValueError("name at least one source")
        missing = [f"{one} needs {DERIVED[one]}" for one in self.sources if DERIVED.get(one, one) not in self.sources]
        if missing:
            raise ValueError("; ".join(missing))
        return self

    @property
    def num_finetuning_scenes(self) -> int:
        """Scenes beyond the world's last one that tasks are learned from."""
        return self.scenes // EVALUATION_EVERY if self.finetuning_scenes is None else self.finetuning_scenes


def round_of(config: WorldConfig) -> tuple[str, ...]:
    """The repeating order in which training scenes are assigned to sources, proportional to their weights."""
    return _round(config.sources)


@cache
def _round(sources: tuple[str, ...]) -> tuple[str, ...]:
    weights = {source: WEIGHTS[source] for source in sources if source in WEIGHTS}
    total = sum(weights.values())
    # Largest deficit first, so that even a small world has scenes of every source.
    claims = dict.fromkeys(weights, 0)
    order = []
    for _ in range(total):
        for source, weight in weights.items():
            claims[source] += weight
        chosen = max(claims, key=lambda source: claims[source])
        claims[chosen] -= total
        order.append(chosen)
    return tuple(order)


def is_held_out(index: int) -> bool:
    """True for scenes that are for evaluation."""
    return index % EVALUATION_EVERY == EVALUATION_EVERY - 1


def source_of(config: WorldConfig, index: int) -> str:
    """The source that scene number `index` belongs to, or EVALUATION."""
    if is_held_out(index):
        return EVALUATION
    order = round_of(config)
    return order[(index - index // EVALUATION_EVERY) % len(order)]
