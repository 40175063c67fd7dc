"""English about scenes: captions, region phrases and referring expressions, by templates that are always true."""

from collections import Counter
from collections.abc import Sequence

from pipelines.corpora.world.drawing.scene import PixelBox, Relation, Scene, Thing
from x2vlm.data.randomness import Draws

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
SPATIAL = {
    "left_of": ("to the left of", "left of", "on the left side of"),
    "right_of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "higher up than"),
    "below": ("below", "under", "lower down than"),
    "in_front_of": ("in front of", "partly covering", "overlapping"),
    "behind": ("behind", "partly hidden by", "partly covered by"),
    "near": ("near", "next to", "close to"),
    "far_from": ("far from", "far away from", "a long way from"),
    "inside": ("inside", "within", "in the middle of"),
    "around": ("around", "surrounding", "that surrounds"),
}
MAX_OVERLAP = 0.75  # of the words of two region phrases, as the paper's filter counts them


def a(noun_phrase: str) -> str:
    """The noun phrase with its indefinite article."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def colour_shape(thing: Thing) -> str:
    """ "red star" """
    return f"{thing.colour} {thing.shape}"


def texture_colour_shape(thing: Thing) -> str:
    """ "striped red star"; a plain texture is not mentioned."""
    return colour_shape(thing) if thing.texture == "plain" else f"{thing.texture} {colour_shape(thing)}"


def full_phrase(thing: Thing) -> str:
    """ "huge striped red star" """
    return f"{thing.size} {texture_colour_shape(thing)}"


STYLES = (colour_shape, texture_colour_shape, full_phrase)


def enumeration(parts: Sequence[str], word: str = "and") -> str:
    """ "a, b and c" """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def counted(things: Sequence[Thing]) -> list[str]:
    """ "two red stars", "an orange ring": every colour and shape once, in order of appearance."""
    counts = Counter((thing.colour, thing.shape) for thing in things)
    return [
        a(f"{colour} {shape}") if count == 1 else f"{NUMBERS[count]} {colour} {plural(shape)}"
        for (colour, shape), count in counts.items()
    ]


def captions(scene: Scene, draws: Draws, count: int) -> list[str]:
    """`count` different true captions of a scene, with varied phrasing and detail."""
    made: list[str] = []
    for _ in range(40 * count):
        text = _caption(scene, draws, draws.integer(0, 7))
        if text not in made:
            made.append(text)
        if len(made) == count:
            break
    return made


def _caption(scene: Scene, draws: Draws, template: int) -> str:
    things = scene.things
    one = draws.choice(things)
    style = draws.choice(STYLES)
    backdrop = a(f"{scene.background} background")
    ground = draws.choice((f"on {backdrop}", f"against {scene.background}", "among clutter"))
    if template <= 2 and scene.relations:
        relation = draws.choice(scene.relations)
        phrase = relation_phrase(scene, relation, draws, articles=True)
        return draws.choice((phrase, f"{phrase} {ground}", f"a picture of {phrase}"))
    if template == 3:
        total = len(things)
        verb, shapes = ("is", "shape") if total == 1 else ("are", "shapes")
        return f"there {verb} {NUMBERS[total]} {shapes} {ground}, {'' if total == 1 else 'one is '}{a(style(one))}"
    if template == 4:
        look = one.colour if one.texture == "plain" else f"{one.colour} and {one.texture}"
        return draws.choice((f"{a(one.shape)} that is {look}", f"{a(f'{one.size} {one.shape}')} which is {look}"))
    if template == 5:
        return f"{a(full_phrase(one))} {ground}"
    shown = things if len(things) <= 4 else draws.shuffled(things)[:4]
    text = enumeration(counted(shown))
    return draws.choice((text, f"{text} {ground}", f"an image with {text}"))


def relation_phrase(scene: Scene, relation: Relation, draws: Draws, articles: bool = False) -> str:
    """ "striped red star left of blue circle", optionally with indefinite articles."""
    subject, target = scene.things[relation.subject], scene.things[relation.target]
    one, other = draws.choice(STYLES)(subject), draws.choice(STYLES[:2])(target)
    words = draws.choice(SPATIAL[relation.name])
    return f"{a(one)} {words} {a(other)}" if articles else f"{one} {words} the {other}"


def region_phrases(scene: Scene, draws: Draws) -> list[tuple[str, PixelBox]]:
    """True phrases with boxes: of things, and of two things in a relation (the box around both).

    No two of them share more words than the paper's filter allows, so everything it drops was planted.
    """
    candidates = [(_thing_phrase(thing, draws), thing.box) for thing in scene.things]
    for relation in draws.shuffled(scene.relations)[:6]:
        box = around((scene.things[relation.subject].box, scene.things[relation.target].box))
        candidates.append((relation_phrase(scene, relation, draws), box))
    return without_overlap(draws.shuffled(candidates))


def without_overlap(candidates: Sequence[tuple[str, PixelBox]]) -> list[tuple[str, PixelBox]]:
    """The candidates, in order, without those that share too many words with an earlier one."""
    kept: list[tuple[str, PixelBox]] = []
    for text, box in candidates:
        if all(word_overlap(text, other) <= MAX_OVERLAP for other, _ in kept):
            kept.append((text, box))
    return kept


def word_overlap(one: str, other: str) -> float:
    """Common words over the words of the shorter text."""
    first, second = one.lower().split(), other.lower().split()
    common = sum(min(first.count(word), second.count(word)) for word in set(first))
    return common / min(len(first), len(second))


def _thing_phrase(thing: Thing, draws: Draws) -> str:
    look = "one plain colour" if thing.texture == "plain" else f"a {thing.texture} surface"
    return draws.choice(
        (
            full_phrase(thing),
            f"{thing.shape} with {look} in {thing.colour}",
            f"the {thing.shape} is {thing.colour}",
            f"{thing.colour} coloured {thing.shape} of {thing.size} size",
        )
    )


def around(boxes: Sequence[PixelBox]) -> PixelBox:
    """The smallest box around some boxes."""
    x, y = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return x, y, right - x, bottom - y


def unique_expression(scene: Scene, number: int) -> str | None:
    """The shortest words without position that fit this thing alone, None if there are none."""
    thing = scene.things[number]
    others = [other for position, other in enumerate(scene.things) if position != number]
    # Words without a texture also fit textured things.
    same_texture = [other for other in others if thing.texture in ("plain", other.texture)]
    candidates = (
        (thing.shape, [other.shape == thing.shape for other in others]),
        (colour_shape(thing), [colour_shape(other) == colour_shape(thing) for other in others]),
        (texture_colour_shape(thing), [colour_shape(other) == colour_shape(thing) for other in same_texture]),
        (
            full_phrase(thing),
            [(other.size, colour_shape(other)) == (thing.size, colour_shape(thing)) for other in same_texture],
        ),
    )
    return next((words for words, fits in candidates if not any(fits)), None)
