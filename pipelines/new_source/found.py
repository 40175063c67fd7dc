"""What is said of a user's data, and what was found out about them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from x2vlm.data.readers.own.layout import BoxFormat
from x2vlm.samples import Sample

LOOK_ROWS = 20_000  # read to count kinds, hosts and drops
SHOWN_ROWS = 5


@dataclass(frozen=True)
class Wishes:
    """What the user said about the data; everything may be left to be found out."""

    name: str
    columns: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    boxes: BoxFormat | None = None
    media: Path | None = None  # where paths begin


@dataclass(frozen=True)
class Found:
    """What a source holds, for its card and its experiment."""

    reader: str
    root: str  # an absolute path or a URI; the card's files lie below it
    files: dict[str, str]  # role -> path or pattern below `root`
    samples: list[Sample]  # of the rows looked at
    dropped: Counter[str]  # rule -> rows of them
    reasons: dict[str, str]  # rule -> the first reason
    num_looked: int
    num_rows: int  # of all, estimated where `is_counted` is false
    is_counted: bool
    columns: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    boxes: BoxFormat | None = None
    media_folder: Path | None = None  # whose files are served on this machine while they are fetched
    places: list[str] = field(default_factory=list)  # of a set: the files that hold the media of the first samples
    notes: list[str] = field(default_factory=list)

    @property
    def share_kept(self) -> float:
        """Of the rows looked at, 0 to 1."""
        return len(self.samples) / max(self.num_looked, 1)
