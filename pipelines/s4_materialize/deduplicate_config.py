"""What an experiment says of duplicates."""

from pydantic import Field

from pipelines.s4_materialize.thresholds import ScoreThresholds
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.duplicates import DuplicateConfig


class DeduplicateConfig(FrozenConfig):
    """What counts as a duplicate, and what the kept row takes over from others (`x2vlm.data.duplicates.merging`).

    With `max_rows_per_caption` rows whose captions all occur in more rows of their source are dropped first, by rule
    `repeated_caption` (`x2vlm.data.duplicates.repeated_captions`), so that no row is dropped in favour of one of them.
    """

    rule: DuplicateConfig = DuplicateConfig()
    merge_captions: bool = False
    merge_concepts: bool = False  # of images with the same pixels only
    max_rows_per_caption: int | None = Field(default=None, ge=1)
    thresholds: ScoreThresholds = ScoreThresholds()  # of the experiment's partition
    rows_per_bucket: int = Field(default=2_000_000, ge=1)  # that are compared by one part
