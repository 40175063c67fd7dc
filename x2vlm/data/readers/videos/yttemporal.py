"""YT-Temporal-180M: one sample per clip of a narrated video, cut from word-level subtitles.

Roles: `rows`, or several called `rows-<name>` (yttemporal180m_000of100.jsonl.gz or unpacked); optionally `urls`
(`x2vlm.data.readers.locations`). One line is a video: `info` (id, duration), `subtitles` (a word and its time each),
`denoised` (a span of the speech corrected by a language model: `noisyasr` -> `cleanasr`). Files are streamed by
line: memory is that of one video.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

from x2vlm.data.readers.join import Join
from x2vlm.data.readers.locations import Locations
from x2vlm.data.readers.source import Source
from x2vlm.data.readers.videos.transcripts import clip, seconds, spoken_text, video_url
from x2vlm.data.tables.json_rows import json_of
from x2vlm.data.tables.lines import byte_lines
from x2vlm.data.tables.rows import BadRow
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Drop, Sample

MAX_WORDS = 31  # of a clip; the authors count 31 BPE tokens, which is a few words less
LAST_WORD_SECONDS = 1.0  # a clip ends this long after its last word begins, if no other word begins before
SEARCH_WORDS = 100  # a span is searched for this far ahead
LOOK = 100  # one of the first LOOK lines must hold a video, or it is the wrong file

Word = tuple[str, float]  # a word and when it begins


def read_yttemporal(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order, files in order of their roles; the row key is `<video id>#<index of the clip>`.

    Where a video has denoised texts, clips have those, each word at the time of the spoken word it comes from;
    otherwise the subtitles themselves. Subtitle words that start with "&" or end in ";" are left-overs of HTML and
    are ignored. A clip holds at most MAX_WORDS words, all clips of a span about as many. It ends at the end of its
    video at the latest; one that starts in the video's last second or after it is dropped as `past_duration`.
    """
    roles = sorted(role for role in source.files if role == "rows" or role.startswith("rows-"))
    if not roles:
        raise SourceUnavailable(f"card {source.card}: needs a file for role `rows` (or several, `rows-<name>`)")
    with Join() as known, Locations(source) as locations:
        for role in roles:
            yield from _read_file(source, role, known, locations, seen)


def _read_file(
    source: Source, role: str, known: Join, locations: Locations, seen: Counter[str]
) -> Iterator[Sample | Drop]:
    good = number = 0
    path = source.file(role)
    with source.reading(role):
        for number, line in enumerate(byte_lines(path), start=1):
            video = line.reason if isinstance(line, BadRow) else _video(line)
            good += isinstance(video, dict)
            if number == LOOK and not good:
                break
            if isinstance(video, str):
                seen["rows"] += 1
                yield source.drop(f"{path.name} line {number}", "malformed_row", video)
            elif not known.first_listing("videos", video["info"]["id"]):
                seen["rows"] += 1
                reason = f"video {video['info']['id']} again"
                yield source.drop(f"{path.name} line {number}", "duplicate_row", reason)
            else:
                url = video_url(locations, video["info"]["id"])
                yield from _clips(source, video, url, seen)
    if not good:
        problem = f"none of its first {min(number, LOOK)} lines is a video" if number else "the file is empty"
        source.fail(role, problem, "Expected lines of JSON with info and subtitles; check the card")


def _video(line: bytes) -> dict[str, Any] | str:
    """The video of a line, or why there is none."""
    try:
        video = json_of(line)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(video, dict) or not isinstance(video.get("info"), dict):
        return "no object with info"
    if not isinstance(video["info"].get("id"), str) or not video["info"]["id"]:
        return "info has no id"
    return video if isinstance(video.get("subtitles"), list) else "subtitles is not a list"


def _clips(source: Source, video: dict[str, Any], url: str, seen: Counter[str]) -> Iterator[Sample | Drop]:
    video_id, duration = video["info"]["id"], seconds(video["info"].get("duration"))
    subtitles = _subtitles(video["subtitles"])
    stretches = _denoised(subtitles, video.get("denoised")) or [subtitles]
    times = [time for _, time in subtitles]
    clips = [words for stretch in stretches for words in _cut(stretch)]
    if not clips:
        seen["rows"] += 1
        yield source.drop(video_id, "no_speech", "no word in its subtitles")
    for index, words in enumerate(clips):
        seen["rows"] += 1
        start, last = words[0][1], words[-1][1]
        end = min([last + LAST_WORD_SECONDS, *times[bisect_right(times, last) :][:1]])
        if duration is not None and start >= duration - 1:
            reason = f"starts at {start} s of {duration} s"
            yield source.drop(f"{video_id}#{index}", "past_duration", reason, value=start)
            continue
        text = " ".join(word for word, _ in words)
        yield clip(source, video_id, url, index, text, start, end if duration is None else min(end, duration))


def _subtitles(records: list[Any]) -> list[Word]:
    """Words with their times in temporal order, without entries that lack a word or a time."""
    words = []
    for record in records:
        word = record.get("word") if isinstance(record, dict) else None
        time = seconds(record.get("time")) if isinstance(record, dict) else None
        if isinstance(word, str) and time is not None and time >= 0:
            words += [(part, time) for part in _split(word)]
    return sorted(words, key=lambda word: word[1])


def _split(text: str) -> list[str]:
    return [word for word in spoken_text(text).split() if not word.startswith("&") and not word.endswith(";")]


def _denoised(subtitles: Sequence[Word], records: Any) -> list[list[Word]]:
    """The clean words of every denoised span, with times; [] where nothing is denoised.

    Spans follow each other in the subtitles. A span is searched for from the end of the previous one; one that is
    not found takes the same number of next words.
    """
    stretches, at = [], 0
    for record in records if isinstance(records, list) else ():
        noisy, clean = (record.get(key) if isinstance(record, dict) else None for key in ("noisyasr", "cleanasr"))
        if not isinstance(noisy, str) or not isinstance(clean, str):
            continue
        noisy_words = _split(noisy)
        at = _find(subtitles, noisy_words, at)
        spoken = subtitles[at : at + len(noisy_words)]
        at += len(spoken)
        if spoken:
            stretches.append(_align(_split(clean), spoken))
    return [stretch for stretch in stretches if stretch]


def _find(subtitles: Sequence[Word], words: list[str], at: int) -> int:
    """Where `words` begin, at or after `at`; `at` if they do not occur."""
    wanted = [_plain(word) for word in words[:5]]
    for start in range(at, min(at + SEARCH_WORDS, len(subtitles) - len(wanted) + 1)):
        if [_plain(word) for word, _ in subtitles[start : start + len(wanted)]] == wanted:
            return start
    return at


def _align(clean: list[str], spoken: Sequence[Word]) -> list[Word]:
    """Every clean word with the time of the spoken word it comes from, monotonically."""
    matcher = SequenceMatcher(None, [_plain(word) for word in clean], [_plain(word) for word, _ in spoken], False)
    aligned: list[Word] = []
    for _, first, last, other, other_last in matcher.get_opcodes():
        for offset, word in enumerate(clean[first:last]):
            # Replaced words are spread over the time of the originals; inserted words take the time of the word before.
            step = offset * (other_last - other) // (last - first)
            position = other + step if other_last > other else max(0, other - 1)
            aligned.append((word, spoken[min(position, len(spoken) - 1)][1]))
    return aligned


def _plain(word: str) -> str:
    return "".join(char for char in word.casefold() if char.isalnum())


def _cut(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """The words in clips of equal length, plus or minus one."""
    number = -(-len(words) // MAX_WORDS)
    for index in range(number):
        yield words[index * len(words) // number : (index + 1) * len(words) // number]
