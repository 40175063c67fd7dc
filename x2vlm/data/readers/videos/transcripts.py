"""Shared code of the readers of narrated videos: clips of one video, and the words spoken in them.

Neighbouring clips of one video belong together, and a sample has no columns for that. A clip's row key therefore is
`<video id>#<index>`, with indices in temporal order and gaps where clips were dropped; together with `start_seconds`
and `end_seconds` this determines which clips are neighbours.
"""

import math
import re
import urllib.parse
from typing import Any

from x2vlm.data.readers.locations import Locations
from x2vlm.data.readers.source import Source
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Caption, Drop, Sample

_SOUND = re.compile(r"\[[^\]]*\]")  # "[Music]", "[Applause]": written by speech recognition where there is no speech


def clip_row(video_id: str, index: int) -> str:
    """The row key of a clip."""
    return f"{video_id}#{index}"


def spoken_text(text: str) -> str:
    """The words of a transcript, without "[Music]" and the like."""
    return clean_text(_SOUND.sub(" ", text))


def video_url(locations: Locations, video_id: str) -> str:
    """The URL of a YouTube video: the one the user lists, or that of YouTube."""
    youtube = "https://www.youtube.com/watch?v=" + urllib.parse.quote(video_id, safe="")
    return locations.url(video_id, otherwise=youtube)


def seconds(value: Any) -> float | None:
    """A time as a finite number of seconds, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def clip(source: Source, video_id: str, url: str, index: int, text: Any, start: Any, end: Any) -> Sample | Drop:
    """The sample of a clip of a video, or a drop if it has no speech or no duration."""
    row = clip_row(video_id, index)
    if not isinstance(text, str):
        return source.drop(row, "malformed_row", f"text {text!r} is not text")
    words = spoken_text(text)
    if not words:
        return source.drop(row, "no_speech", f"nothing is said: {text!r}" if text.strip() else "the text is empty")
    first, last = seconds(start), seconds(end)
    if first is None or last is None or not 0 <= first < last:
        return source.drop(row, "malformed_span", f"from {start!r} to {end!r} is no span of seconds")
    return source.sample(
        row, url, "video", captions=(Caption(words, source.language, "asr"),), start_seconds=first, end_seconds=last
    )
