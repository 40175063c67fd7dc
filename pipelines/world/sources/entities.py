"""Flickr30k Entities: sentences with marked phrases, boxes as one XML file an image, and Flickr30k's token file."""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from pipelines.world.config import WorldConfig
from pipelines.world.records import Record, WholeFile
from pipelines.world.shots import Shot
from pipelines.world.texts import SPATIAL, a, colour_shape, full_phrase, texture_colour_shape
from x2vlm.data.randomness import Draws

FOLDER = "annotations/flickr_entities"


def emit_entities(config: WorldConfig, shot: Shot) -> Iterator[Record | WholeFile]:
    """Records and files of one training image."""
    draws = Draws(config.seed, shot.index, "entities")
    row = str(shot.image_id)
    sentences = [_sentence(shot, draws) for _ in range(5)]
    truths = shot.row(row)
    truths += [shot.item(row, "caption", str(position)) for position in range(5)]
    truths += [shot.item(row, "concept", str(_entity(shot, number))) for number in range(len(shot.picture.things))]
    marked = "\n".join(marked for marked, _ in sentences)
    yield WholeFile(f"{FOLDER}/Sentences/{row}.txt", f"{marked}\n")
    yield WholeFile(f"{FOLDER}/Annotations/{row}.xml", _boxes(shot))
    for position, (_, plain) in enumerate(sentences):
        line = f"{row}.jpg#{position}\t{plain}"
        yield Record("flickr_entities/tokens", line, tuple(truths) if position == 0 else ())
    yield Record("flickr_entities/urls", f"{row}.jpg\t{shot.url}")


def _entity(shot: Shot, number: int) -> int:
    return shot.image_id * 10 + number


def _sentence(shot: Shot, draws: Draws) -> tuple[str, str]:
    """A sentence with marks around its phrases, and without."""

    def phrase(number: int) -> tuple[str, str]:
        style = draws.choice((colour_shape, texture_colour_shape, full_phrase))
        words = a(style(shot.picture.things[number]))
        return f"[/EN#{_entity(shot, number)}/other {words}]", words

    if shot.picture.relations:
        relation = draws.choice(shot.picture.relations)
        one, other = phrase(relation.subject), phrase(relation.target)
        words = draws.choice(SPATIAL[relation.name])
        marked, plain = f"{one[0]} {words} {other[0]} .", f"{one[1]} {words} {other[1]} ."
    else:
        one = phrase(draws.integer(0, len(shot.picture.things) - 1))
        words = draws.choice(("in the picture", "alone", "all by itself", "on a cluttered background"))
        marked, plain = f"{one[0]} {words} .", f"{one[1]} {words} ."
    return marked.replace(" a", " A", 1) if marked.startswith("[") else marked, plain.capitalize()


def _boxes(shot: Shot) -> str:
    objects = []
    for number, thing in enumerate(shot.picture.things):
        x, y, w, h = thing.box
        # Pascal VOC counts pixels from 1 and names the last one that is inside.
        corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        objects.append(
            f"  <object>\n    <name>{_entity(shot, number)}</name>\n    <bndbox>{corners}</bndbox>\n  </object>"
        )
    size = f"<width>{shot.width}</width><height>{shot.height}</height><depth>3</depth>"
    name = escape(f"{shot.image_id}.jpg")
    body = "\n".join(objects)
    return f"<annotation>\n  <filename>{name}</filename>\n  <size>{size}</size>\n{body}\n</annotation>\n"
