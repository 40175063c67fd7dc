"""HowTo100M: one sample per clip of a narrated video, with the words recognised in it.

Roles: `raw_captions` (raw_caption.json: video id -> {"text": [...], "start": [...], "end": [...]}), and optionally
`videos` (HowTo100M_v1.csv): then only listed videos are read, and `urls` (`x2vlm.data.readers.locations`). The
captions are streamed by video; ids are held in memory to find repeats (about 150 bytes a video).

The release has a second transcript, caption.json, from which stop words were removed. It is easily
mistaken for the raw one and makes bad captions, so it is refused, by its name and by its text. To use it nevertheless,
give it the role `captions_without_stop_words`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from x2vlm.data.readers.json_stream import stream_dict
from x2vlm.data.readers.locations import Locations
from x2vlm.data.readers.source import Source, read_csv
from x2vlm.data.readers.videos.transcripts import clip, video_url
from x2vlm.data.tables.rows import BadRow
from x2vlm.samples import Drop, Sample

REMEDY = "Give raw_caption.json, unpacked from raw_caption.zip"
WANT_ANYWAY = "To read it nevertheless, name its role `captions_without_stop_words`"

# Frequent in English speech: 500 words without any of them are not a raw transcript.
STOP_WORDS = frozenset(["a", "and", "i", "in", "is", "it", "of", "that", "the", "this", "to", "you"])
LOOK_WORDS = 500
LOOK_VIDEOS = 200

Video = tuple[str, Any]  # id, record


def read_howto100m(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the captions file; the row key is `<video id>#<number of the caption>`.

    Clips overlap in time as recognised speech does. A clip without speech ("[Music]") is a drop; a video whose
    lists differ in length, that is not in the video list, or that has no captions, is one dropped row.
    """
    with Locations(source) as locations:
        videos = _open(source)
        wanted: dict[str, bool] = {}  # id -> has been read
        if "videos" in source.files:
            yield from _read_list(source, wanted, seen)
        for video_id, record in videos:
            been_read = wanted.get(video_id)
            if been_read or (been_read is None and "videos" in source.files):
                seen["rows"] += 1
                rule = "duplicate_row" if been_read else "unlisted_video"
                yield source.drop(video_id or "(none)", rule, f"video {video_id!r} of the captions file")
            else:
                wanted[video_id] = True
                yield from _clips(source, video_id, video_url(locations, video_id), record, seen)
        for video_id, been_read in wanted.items():
            if not been_read:
                seen["rows"] += 1
                yield source.drop(video_id, "no_captions", "the captions file does not hold this video")


def _open(source: Source) -> Iterator[Video]:
    """The videos of the captions file, after a check that it is the raw one."""
    if "captions_without_stop_words" in source.files:
        return stream_dict(source, "captions_without_stop_words", REMEDY)
    if source.file("raw_captions").name.lower() == "caption.json":
        source.fail("raw_captions", "this is the transcript without stop words", f"{REMEDY}. {WANT_ANYWAY}")
    stream = stream_dict(source, "raw_captions", REMEDY)
    head, words = [], Counter[str]()
    for video in stream:
        head.append(video)
        words.update(_words(video[1]))
        if len(head) == LOOK_VIDEOS or words.total() >= LOOK_WORDS:
            break
    if source.language == "en" and words.total() >= LOOK_WORDS and not STOP_WORDS & set(words):
        problem = f"none of its first {words.total()} words is one like `the` or `to`: stop words were removed"
        source.fail("raw_captions", problem, f"{REMEDY}. {WANT_ANYWAY}")
    return chain(head, stream)


def _words(record: Any) -> Iterator[str]:
    texts = record.get("text") if isinstance(record, dict) else None
    for text in texts if isinstance(texts, list) else ():
        if isinstance(text, str):
            yield from text.lower().split()


def _read_list(source: Source, wanted: dict[str, bool], seen: Counter[str]) -> Iterator[Drop]:
    for row in read_csv(source, "videos", ("video_id",)):
        if isinstance(row, BadRow):
            seen["rows"] += 1
            yield source.drop_bad(row)
            continue
        line, values = row.line, row.values
        # Ids are strings even where they look like numbers or flags: "-1", "1e5", "--help", "_".
        video_id = values["video_id"].strip()
        if not video_id or video_id in wanted:
            seen["rows"] += 1
            rule = "duplicate_row" if video_id else "malformed_row"
            yield source.drop(f"line {line}", rule, f"video {video_id} again" if video_id else "no video_id")
        else:
            wanted[video_id] = False


def _clips(source: Source, video_id: str, url: str, record: Any, seen: Counter[str]) -> Iterator[Sample | Drop]:
    values = [record.get(name) for name in ("text", "start", "end")] if isinstance(record, Mapping) else []
    lists = [value for value in values if isinstance(value, list)]
    if not video_id or len(lists) != 3:
        seen["rows"] += 1
        yield source.drop(video_id or "(none)", "malformed_row", "no lists called text, start and end")
        return
    texts, starts, ends = lists
    if not len(texts) == len(starts) == len(ends) or not texts:
        seen["rows"] += 1
        rule = "unequal_lengths" if texts or starts or ends else "no_captions"
        reason = f"text {len(texts)}, start {len(starts)}, end {len(ends)}"
        yield source.drop(video_id, rule, reason)
        return
    for index, (text, start, end) in enumerate(zip(texts, starts, ends, strict=True)):
        seen["rows"] += 1
        yield clip(source, video_id, url, index, text, start, end)
