"""Which rules are on, and their thresholds."""

from typing import Literal, Self

import pydantic

from x2vlm.config import FrozenConfig
from x2vlm.data.rules.box_rules import SmallBoxRule
from x2vlm.data.rules.text_overlap import OverlapMeasure


class FilterConfig(FrozenConfig):
    """Thresholds; None (or an empty list) switches a rule off. Equality with a threshold always keeps.

    The first three blocks are the paper's. The others are off: they are common filters of web data.
    """

    min_short_edge: int | None = pydantic.Field(default=224, ge=1)  # of images, oriented pixels
    max_aspect_ratio: float | None = pydantic.Field(default=3.0, ge=1)  # of images, both directions
    min_video_words: int | None = pydantic.Field(default=2, ge=0)

    languages: tuple[str, ...] = ()  # captions in others are dropped; empty keeps all
    # The language of a caption: that of its source or card, or by an offline detector (an extra).
    language_from: Literal["source", "detector"] = "source"

    box_tolerance_pixels: float = pydantic.Field(
        default=0.5, ge=0
    )  # boxes that exceed the image by less are moved inside
    image_res: int = pydantic.Field(default=224, ge=1)  # side of the square that training resizes to
    patch_size: int = pydantic.Field(default=16, ge=0)  # 0 keeps boxes of any size
    small_box_rule: SmallBoxRule = "area"
    region_text_overlap: float | None = pydantic.Field(default=0.75, ge=0, le=1)
    text_overlap_measure: OverlapMeasure = "smaller"

    # On scores that a source provides (LAION). Sources without scores are not filtered by them.
    min_similarity: float | None = pydantic.Field(default=None, ge=-1, le=1)
    max_punsafe: float | None = pydantic.Field(default=None, ge=0, le=1)
    max_pwatermark: float | None = pydantic.Field(default=None, ge=0, le=1)
    nsfw: tuple[str, ...] = ()  # rows with one of these labels are dropped, case-insensitive: [NSFW, UNSURE]

    min_caption_chars: int | None = pydantic.Field(default=None, ge=1)
    max_caption_chars: int | None = pydantic.Field(default=None, ge=1)
    min_caption_words: int | None = pydantic.Field(default=None, ge=1)
    max_caption_words: int | None = pydantic.Field(default=None, ge=1)
    min_letter_share: float | None = pydantic.Field(default=None, ge=0, le=1)  # of characters without white space
    max_repeated_chars: int | None = pydantic.Field(default=None, ge=1)  # consecutive equal characters
    drop_captions_with_url: bool = False

    @pydantic.model_validator(mode="after")
    def _ranges_are_not_empty(self) -> Self:
        for what in ("chars", "words"):
            least, most = getattr(self, f"min_caption_{what}"), getattr(self, f"max_caption_{what}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_caption_{what} {least} is above max_caption_{what} {most}: no caption passes")
        if self.language_from == "detector" and not self.languages:
            raise ValueError("language_from: detector without `languages` has no effect; name some")
        return self
