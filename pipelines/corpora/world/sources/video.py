"""Clips with text: WebVid's descriptions, and transcribed speech of HowTo100M and YT-Temporal-180M.

Speech is lower case without punctuation, starts late, has fillers and overlapping windows, and sometimes "[Music]".
"""

from collections.abc import Iterator
from typing import Any

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.clips import Clip
from pipelines.corpora.world.drawing.scene import Thing
from pipelines.corpora.world.drawing.shots import Shot, clip_name
from pipelines.corpora.world.drawing.texts import a, texture_colour_shape
from pipelines.corpora.world.records import Record, Truth, csv_line
from x2vlm.data.randomness import Draws

PHRASES = {
    "towards": ("moves towards", "is getting closer to", "slides up to"),
    "away_from": ("moves away from", "is getting away from", "slides off from"),
    "past": ("moves past", "passes by", "is gliding past"),
    "after": ("follows", "goes after", "is moving behind"),
    "circling": ("circles around", "goes around", "is moving in a circle around"),
}
STOP_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "by", "can", "from", "here", "in", "is", "it", "now", "of", "off", "on", "so"),
        *("that", "the", "there", "this", "to", "up", "we", "you"),
    )
)
OPENERS = ("okay so", "um now", "and here", "all right", "so you can see", "well")
MUSIC = "[Music]"


def emit_webvid(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """The row of one clip. Column orders differ between copies; this is the one of a real file."""
    draws = Draws(config.seed, shot.index, "webvid")
    row = str(shot.image_id)
    clip = shot.described_clip
    text = describe_clip(clip, draws)
    if shot.planted == "one_word_text":
        text = clip.things[0].shape.capitalize()
    elif shot.planted == "empty_text":
        text = ""
    truths = shot.row(row)
    if text:
        planted = shot.planted if shot.planted in ("one_word_text", "mismatched_caption") else ""
        truths.append(shot.item(row, "caption", "0", planted))
    duration = f"PT00H00M{shot.seen_clip.seconds:02d}S"
    line = csv_line((row, text, 1, "000001_000050", duration, shot.url), quote_all=True)
    yield Record("webvid/rows", line, tuple(truths))


def describe_clip(clip: Clip, draws: Draws) -> str:
    """ "A striped red star moves towards a blue ring" """
    text = f"{a(name(clip.things[0]))} {draws.choice(PHRASES[clip.motion])} {a(name(clip.things[1]))}"
    ending = draws.choice(("", "", " on screen", f" on {a(f'{clip.background} background')}"))
    if len(clip.things) > 2 and draws.chance(0.4):
        ending = f" while {a(name(clip.things[2]))} stands still"
    return f"{text[0].upper()}{text[1:]}{ending}"


def name(thing: Thing) -> str:
    return texture_colour_shape(thing)


def spoken_segments(clip: Clip, seconds: int, draws: Draws) -> list[tuple[str, float, float]]:
    """(text, start, end) of a video of `seconds`: windows of two to three seconds, each overlapping the next."""
    one, other = name(clip.things[0]), name(clip.things[1])
    lines = [
        f"{draws.choice(OPENERS)} we have {a(one)}",
        f"and it {draws.choice(PHRASES[clip.motion])} the {other}",
        f"there is also {a(name(clip.things[2]))}" if len(clip.things) > 2 else "and that is it",
        f"look at the {one} and the {other}",
    ]
    quarters, segments = seconds * 4, []
    start = draws.integer(0, 2)
    for line in lines:
        end = min(quarters, start + draws.integer(8, 12))
        if end - start < 3:
            break
        segments.append((line, start / 4, end / 4))
        start = max(start + 2, end - draws.integer(2, 5))
    return segments


def emit_howto100m(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """A video's row and its transcript, raw and with stop-words removed. Every segment is a row of the reader."""
    draws = Draws(config.seed, shot.index, "speech")
    video = clip_name(config, shot.index, shot.source)
    segments = spoken_segments(shot.described_clip, shot.seen_clip.seconds, draws)
    if draws.chance(config.noise.one_word_text):
        segments.append((MUSIC, segments[-1][2] - 0.25, segments[-1][2]))
    truths: list[Truth] = []
    for position, (text, _, _) in enumerate(segments):
        row = f"{video}#{position}"
        if text == MUSIC:
            expectation = {"expected_stage": "read", "expected_rule": "no_speech"}
            truths.append(
                Truth("howto100m", row, "row", shot.index, planted="one_word_text", detail="music", **expectation)
            )
        else:
            truths += [*shot.row(row), shot.item(row, "caption", "0", shot.planted)]
    task = shot.index % 23
    yield Record("howto100m/videos", csv_line((video, "Arts", "Shapes", shot.index % 200 + 1, task)), tuple(truths))
    yield Record("howto100m/urls", f"{video}\t{shot.url}")
    yield Record("howto100m/raw_captions", [video, _columns(segments)])
    without = [(_without_stop_words(text), start, end) for text, start, end in segments]
    yield Record("howto100m/captions", [video, _columns([segment for segment in without if segment[0]])])


def _columns(segments: list[tuple[str, float, float]]) -> dict[str, list[Any]]:
    return {key: [segment[column] for segment in segments] for column, key in enumerate(("text", "start", "end"))}


def _without_stop_words(text: str) -> str:
    return " ".join(word for word in text.split() if word not in STOP_WORDS)


def emit_yttemporal(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """A video's line: words with times (some of them mark-up that must be dropped) and the cleaned speech.

    Every denoised span is shorter than the longest clip, so each is one row of the reader.
    """
    draws = Draws(config.seed, shot.index, "speech")
    video, duration = clip_name(config, shot.index, shot.source), shot.seen_clip.seconds
    segments = spoken_segments(shot.described_clip, duration, draws)
    words: list[dict[str, Any]] = []
    denoised: list[dict[str, Any]] = []
    truths: list[Truth] = []
    for position, (text, start, end) in enumerate(segments):
        parts = text.split()
        mark_up = [draws.choice(("&gt;&gt;", "&nbsp;", "[Music]"))] if draws.chance(0.2) else []
        # Words follow each other: a span ends where the next begins.
        stop = min([end, *(later for _, later, _ in segments[position + 1 : position + 2])])
        spoken = _timed([*mark_up, *parts], start, stop)
        words += spoken
        noisy = " ".join([*mark_up, *parts])
        clean = {"cleanasr": f"{text.capitalize()}.", "top_p": 0.62, "ctx_ppl": 17.5, "model_name": "template"}
        denoised.append({"noisyasr": noisy, **clean})
        truths += _span_truths(shot, f"{video}#{position}", spoken[len(mark_up)]["time"], duration)
    line = {
        "info": {
            "id": video,
            "title": f"{name(shot.described_clip.things[0])} video".capitalize(),
            "duration": duration,
            "channel_id": f"UC{shot.index % 89:022d}",
            "view_count": shot.index * 37,
        },
        "subtitles": words,
        "denoised": denoised,
    }
    yield Record(f"yttemporal/{shot.index % 100:03d}", line, tuple(truths))
    yield Record("yttemporal_urls", f"{video}\t{shot.url}")


def _timed(parts: list[str], start: float, stop: float) -> list[dict[str, Any]]:
    """Words with their times, in thousandths of a second, evenly from `start` to before `stop`."""
    step = round((stop - start) * 1000) // (len(parts) + 1)
    return [
        {"word": word, "time": (round(start * 1000) + step * position) / 1000} for position, word in enumerate(parts)
    ]


def _span_truths(shot: Shot, row: str, begins: float, duration: int) -> list[Truth]:
    """The truth about a span of speech: one that begins in the last second of a video is not a clip."""
    if begins < duration - 1:
        return [*shot.row(row), shot.item(row, "caption", "0", shot.planted)]
    detail, expectation = (
        f"begins at {begins} s of {duration} s",
        {"expected_stage": "read", "expected_rule": "past_duration"},
    )
    return [Truth("yttemporal", row, "row", shot.index, planted="late_speech", detail=detail, **expectation)]
