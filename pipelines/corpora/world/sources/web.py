"""Image-text pairs of the web: SBU, CC3M, CC12M and LAION. One text per image, with the noise of alt texts."""

from collections.abc import Iterator
from dataclasses import replace

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.languages import LANGUAGES, describe
from pipelines.corpora.world.drawing.shots import Shot, digest
from pipelines.corpora.world.drawing.texts import captions
from pipelines.corpora.world.records import KEPT, ROW_NUMBER, Record
from x2vlm.data.randomness import Draws


def emit_web(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """The record of one training image, and its checksums where the source publishes them."""
    draws = Draws(config.seed, shot.index, "web text")
    language = "en"
    if shot.planted == "foreign_text":
        language = draws.choice(LANGUAGES)
    elif shot.source == "laion_multi":
        language = draws.choice(("en", *LANGUAGES))
    text = captions(shot.described, draws, 1)[0] if language == "en" else describe(shot.described, language, draws)
    if shot.planted == "empty_text":
        text = ""
    elif draws.chance(0.03):
        text = f'"{text}" by <PERSON>' if shot.source == "cc12m" else f'the "{text}'
    truths = shot.row(ROW_NUMBER)
    if text:
        expected = ("filter", "language") if shot.planted == "foreign_text" else ("", KEPT)
        planted = shot.planted if shot.planted in ("foreign_text", "mismatched_caption") else ""
        caption = shot.item(ROW_NUMBER, "caption", "0", planted, f"language {language}", expected)
        if shot.planted == "foreign_text" and shot.expected_rule == "nothing_left":
            caption = replace(caption, expected_rule="language")
        truths.append(caption)
    match shot.source:
        case "sbu":
            value = {"image_urls": shot.url, "captions": text, "user_ids": f"{shot.image_id % 97}@N00"}
            yield Record("sbu/rows", value, tuple(truths))
        case "cc3m":
            yield Record("cc3m/rows", f"{text} .\t{shot.url}" if text else f"\t{shot.url}", tuple(truths))
        case "cc12m":
            yield Record("cc12m/rows", f"{shot.url}\t{text}", tuple(truths))
            sums = digest("sha256", shot.data), digest("md5", shot.data)
            if shot.data:
                yield Record("cc12m/hashes", "\t".join((shot.url, *sums)))
        case _:
            yield Record(f"{shot.source}/rows", _laion(shot, text, language, draws), tuple(truths))


def _laion(shot: Shot, text: str, language: str, draws: Draws) -> dict[str, object]:
    known = not draws.chance(0.05)  # sizes and ids are sometimes missing
    row: dict[str, object] = {
        "SAMPLE_ID": None if draws.chance(0.02) else shot.image_id * 7919,
        "URL": shot.url,
        "TEXT": text,
        "HEIGHT": shot.height if known else None,
        "WIDTH": shot.width if known else None,
        "LICENSE": "?",
        "NSFW": draws.choice(("UNLIKELY", "UNLIKELY", "UNSURE", None)),
        "similarity": draws.integer(2800, 4500) / 10_000,
    }
    if shot.source == "laion_multi":
        row |= {"LANGUAGE": language, "md5": digest("md5", shot.data)}
    return row
