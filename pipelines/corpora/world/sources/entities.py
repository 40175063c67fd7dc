"""Flickr30k Entities: an archive with marked sentences and boxes, one file each per image, and the token file.

A phrase may repeat an earlier one, in another sentence about the same thing: the filter's rule about overlapping texts
then drops it.
"""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.shots import Shot
from pipelines.corpora.world.drawing.texts import (
    MAX_OVERLAP,
    SPATIAL,
    a,
    colour_shape,
    full_phrase,
    texture_colour_shape,
    word_overlap,
)
from pipelines.corpora.world.records import KEPT, Record, Truth
from x2vlm.data.randomness import Draws

Phrase = tuple[int, str]  # number of the thing, words


def emit_entities(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """Records of one training image."""
    draws = Draws(config.seed, shot.index, "entities")
    row = str(shot.image_id)
    sentences = [_sentence(shot, draws) for _ in range(5)]
    truths = shot.row(row)
    truths += [shot.item(row, "caption", str(position)) for position in range(5)]
    truths += _concepts(shot, row, [phrases for _, _, phrases in sentences])
    marked = "".join(f"{marked}\n" for marked, _, _ in sentences)
    yield Record("flickr_entities/entities", [f"Sentences/{row}.txt", marked])
    yield Record("flickr_entities/entities", [f"Annotations/{row}.xml", _boxes(shot)])
    for position, (_, plain, _) in enumerate(sentences):
        line = f"{row}.jpg#{position}\t{plain}"
        yield Record("flickr_entities/tokens", line, tuple(truths) if position == 0 else ())
    yield Record("flickr_entities/urls", f"{row}.jpg\t{shot.url}")


def _concepts(shot: Shot, row: str, sentences: list[list[Phrase]]) -> Iterator[Truth]:
    """The truth about every phrase. Of equal ones, that of the larger thing is kept, or the earlier one."""
    phrases = [
        (f"{_entity(shot, number)}@{position}.{place}", number, words)
        for position, sentence in enumerate(sentences)
        for place, (number, words) in enumerate(sentence)
    ]
    things, kept, repeats = shot.image.things, list[str](), set[str]()
    for item, _, words in sorted(phrases, key=lambda one: -things[one[1]].box[2] * things[one[1]].box[3]):
        if any(word_overlap(words, other) > MAX_OVERLAP for other in kept):
            repeats.add(item)
        else:
            kept.append(words)
    for item, _, words in phrases:
        if item in repeats:
            expected = ("filter", "region_text_overlap")
            yield shot.item(row, "concept", item, "near_duplicate_region", f"{words!r} was said before", expected)
        else:
            yield shot.item(row, "concept", item, expected=("", KEPT))


def _entity(shot: Shot, number: int) -> int:
    return shot.image_id * 10 + number


def _sentence(shot: Shot, draws: Draws) -> tuple[str, str, list[Phrase]]:
    """A sentence with marks around its phrases, without them, and its phrases."""
    phrases: list[Phrase] = []

    def phrase(number: int) -> tuple[str, str]:
        style = draws.choice((colour_shape, texture_colour_shape, full_phrase))
        words = a(style(shot.image.things[number]))
        phrases.append((number, words))
        return f"[/EN#{_entity(shot, number)}/other {words}]", words

    if shot.image.relations:
        relation = draws.choice(shot.image.relations)
        one, other = phrase(relation.subject), phrase(relation.target)
        words = draws.choice(SPATIAL[relation.name])
        marked, plain = f"{one[0]} {words} {other[0]} .", f"{one[1]} {words} {other[1]} ."
    else:
        one = phrase(draws.integer(0, len(shot.image.things) - 1))
        words = draws.choice(("in the picture", "alone", "all by itself", "on a cluttered background"))
        marked, plain = f"{one[0]} {words} .", f"{one[1]} {words} ."
    return marked.replace(" a", " A", 1) if marked.startswith("[") else marked, plain.capitalize(), phrases


def _boxes(shot: Shot) -> str:
    objects = []
    for number, thing in enumerate(shot.image.things):
        x, y, w, h = thing.box
        # Pascal VOC counts pixels from 1 and gives the last pixel inside.
        corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        objects.append(
            f"  <object>\n    <name>{_entity(shot, number)}</name>\n    <bndbox>{corners}</bndbox>\n  </object>"
        )
    size = f"<width>{shot.width}</width><height>{shot.height}</height><depth>3</depth>"
    name = escape(f"{shot.image_id}.jpg")
    body = "\n".join(objects)
    return f"<annotation>\n  <filename>{name}</filename>\n  <size>{size}</size>\n{body}\n</annotation>\n"
