"""Visual Genome's files, and GQA's scene graphs and questions about the same images.

About half of COCO's images are also here, with their `coco_id`, as upstream.
"""

from collections.abc import Iterator
from typing import Any

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.scene import PixelBox, Thing
from pipelines.corpora.world.drawing.shots import Shot
from pipelines.corpora.world.drawing.texts import region_phrases, unique_expression
from pipelines.corpora.world.records import Record
from pipelines.corpora.world.sources.box_noise import bad_boxes
from x2vlm.data.randomness import Draws

SOURCE = "visual_genome"
FIRST_ID = 2_000_000


def is_also_coco(config: WorldConfig, index: int) -> bool:
    """True for COCO images that Visual Genome annotates too."""
    return SOURCE in config.sources and Draws(config.seed, index, "in visual genome").chance(0.5)


def emit_visual_genome(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """Records of one training image, which may be a COCO image."""
    number = FIRST_ID + shot.index
    row = str(number)
    draws = Draws(config.seed, shot.index, SOURCE)
    image = {
        "width": shot.width,
        "url": shot.url,
        "height": shot.height,
        "image_id": number,
        "coco_id": shot.image_id if shot.source == "coco" else None,
        "flickr_id": None,
    }
    yield Record("visual_genome/image_data", image, tuple(shot.row(row, SOURCE)))
    yield _regions(config, shot, number, draws)
    yield from _objects(config, shot, number, draws)
    yield _relationships(shot, number)
    questions = list(_questions(shot, number))
    yield Record("visual_genome/question_answers", {"id": number, "qas": questions})
    if "gqa" in config.sources:
        yield from _gqa(shot, number, questions)


def _regions(config: WorldConfig, shot: Shot, number: int, draws: Draws) -> Record:
    row, regions, truths = str(number), [], []
    phrases = region_phrases(shot.image, draws)
    for position, (phrase, box) in enumerate(phrases):
        regions.append(_region(number, position, phrase, box))
        truths.append(shot.item(row, "concept", str(number * 100 + position), source=SOURCE))
    if draws.chance(config.noise.near_duplicate_region):
        phrase, (x, y, w, h) = draws.choice(phrases)
        region = _region(number, 40, f"{phrase} shown", (x + 1, y + 1, w - 2, h - 2))
        regions.append(region)
        detail = f"says again what the region {phrase!r} says"
        expected = ("filter", "region_text_overlap")
        item = str(region["region_id"])
        truths.append(shot.item(row, "concept", item, "near_duplicate_region", detail, expected, SOURCE))
    for bad in bad_boxes(config, shot, "visual genome regions"):
        regions.append(_region(number, 45 + bad.number, f"something {bad.detail}", bad.box))
        item = str(number * 100 + 45 + bad.number)
        truths.append(shot.item(row, "concept", item, bad.planted, bad.detail, bad.expected, SOURCE))
    return Record("visual_genome/region_descriptions", {"regions": regions, "id": number}, tuple(truths))


def _region(image: int, position: int, phrase: str, box: PixelBox) -> dict[str, Any]:
    x, y, w, h = box
    place = {"region_id": image * 100 + position, "width": w, "height": h, "image_id": image}
    return place | {"phrase": phrase, "y": y, "x": x}


def _objects(config: WorldConfig, shot: Shot, number: int, draws: Draws) -> Iterator[Record]:
    row, plain, attributed, truths = str(number), [], [], []
    for position, thing in enumerate(shot.image.things):
        record = _object(number, position, thing)
        plain.append(record)
        # Upstream, some objects have no list of attributes.
        attributed.append(record if draws.chance(0.1) else record | {"attributes": _attributes(thing)})
        truths.append(shot.item(row, "concept", str(record["object_id"]), source=SOURCE))
    for bad in bad_boxes(config, shot, "visual genome objects"):
        x, y, w, h = bad.box
        item = number * 100 + 95 + bad.number
        record = {"synsets": [], "h": h, "object_id": item, "names": ["speck"], "w": w, "y": y, "x": x}
        plain.append(record)
        attributed.append(record)
        truths.append(shot.item(row, "concept", str(item), bad.planted, bad.detail, bad.expected, SOURCE))
    yield Record("visual_genome/objects", {"image_id": number, "objects": plain, "image_url": shot.url})
    yield Record("visual_genome/attributes", {"image_id": number, "attributes": attributed}, tuple(truths))


def _object(image: int, position: int, thing: Thing) -> dict[str, Any]:
    x, y, w, h = thing.box
    return {
        "synsets": [f"{thing.shape}.n.01"],
        "h": h,
        "object_id": image * 100 + 50 + position,
        "names": [thing.shape],
        "w": w,
        "y": y,
        "x": x,
    }


def _attributes(thing: Thing) -> list[str]:
    return [thing.colour] if thing.texture == "plain" else [thing.colour, thing.texture]


def _relationships(shot: Shot, number: int) -> Record:
    """Subjects with `name`, objects with `names`: upstream mixes both."""
    relationships = []
    for position, relation in enumerate(shot.image.relations):
        subject = _object(number, relation.subject, shot.image.things[relation.subject])
        names = subject.pop("names")
        relationships.append(
            {
                "predicate": relation.name.replace("_", " "),
                "object": _object(number, relation.target, shot.image.things[relation.target]),
                "relationship_id": number * 1000 + position,
                "synsets": [],
                "subject": {"name": names[0], **subject},
            }
        )
    return Record("visual_genome/relationships", {"relationships": relationships, "image_id": number})


def _questions(shot: Shot, number: int) -> Iterator[dict[str, Any]]:
    for position, thing in enumerate(shot.image.things):
        if unique_expression(shot.image, position) == thing.shape:
            yield {
                "a_objects": [],
                "question": f"What color is the {thing.shape}?",
                "image_id": number,
                "qa_id": number * 100 + position,
                "answer": f"{thing.colour.capitalize()}.",
                "q_objects": [],
            }


def _gqa(shot: Shot, number: int, questions: list[dict[str, Any]]) -> Iterator[Record]:
    things = shot.image.things
    objects: dict[str, Any] = {}
    for position, thing in enumerate(things):
        x, y, w, h = thing.box
        relations = [
            {"object": str(number * 100 + 50 + relation.target), "name": relation.name.replace("_", " ")}
            for relation in shot.image.relations
            if relation.subject == position
        ]
        objects[str(number * 100 + 50 + position)] = {
            "name": thing.shape,
            "h": h,
            "relations": relations,
            "w": w,
            "attributes": _attributes(thing),
            "y": y,
            "x": x,
        }
    graph = {"width": shot.width, "objects": objects, "height": shot.height}
    truths = shot.row(str(number), "gqa")[:1]
    truths += [shot.item(str(number), "concept", item, source="gqa") for item in objects]
    yield Record("gqa/scene_graphs", [str(number), graph], tuple(truths))
    yield Record("gqa/urls", f"{number}.jpg\t{shot.url}")
    for question in questions:
        answer = question["answer"].lower().rstrip(".")
        shape = question["question"].rsplit(" ", 1)[1].rstrip("?")
        value = {
            "question": question["question"],
            "imageId": str(number),
            "isBalanced": True,
            "answer": answer,
            "fullAnswer": f"The {shape} is {answer}.",
            "types": {"detailed": "categoryAttr", "semantic": "attr", "structural": "query"},
            "semantic": [
                {"operation": "select", "dependencies": [], "argument": shape},
                {"operation": "query", "dependencies": [0], "argument": "color"},
            ],
            "semanticStr": f"select: {shape}->query: color [0]",
            "entailed": [],
            "equivalent": [str(question["qa_id"])],
            "groups": {"global": "color", "local": f"10-{shape}_color"},
        }
        yield Record("gqa/questions", [str(question["qa_id"]), value])
