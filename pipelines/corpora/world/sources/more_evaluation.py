"""More official files about the held-out scenes: the tasks of several languages, a detector's boxes, more questions.

| task | files |
|---|---|
| xGQA | gqa/testdev_balanced_questions_<language>.json |
| MaRVL | marvl/marvl-<language>.jsonl |
| XVNLI | xvnli/test_<language>.jsonl |
| weakly supervised RefCOCO+ | refcoco_plus/dets.json |
| MSRVTT-QA | msrvtt_qa/test_more.jsonl, of the same clips as test.jsonl |
"""

from collections.abc import Iterator
from typing import Any

from pipelines.corpora.world.config import EVALUATION_EVERY, WorldConfig
from pipelines.corpora.world.drawing.clips import make_clip
from pipelines.corpora.world.drawing.languages import LANGUAGES
from pipelines.corpora.world.drawing.questions import (
    NEUTRAL,
    PAIR_LANGUAGES,
    QUESTION_LANGUAGES,
    about_pair,
    how_many,
    is_there,
    what_colour,
)
from pipelines.corpora.world.drawing.scene import Scene, make_scene
from pipelines.corpora.world.drawing.shots import Shot, evaluation_kind, held_out_shot, image_id, unrelated_scene
from pipelines.corpora.world.drawing.texts import a
from pipelines.corpora.world.drawing.words import COLOURS
from pipelines.corpora.world.records import Record
from pipelines.corpora.world.sources.evaluation import Asked, ask, describe_scene, neighbours
from x2vlm.data.randomness import Draws

LABELS = ("entailment", "contradiction", "neutral")
FIRST_ID = 10**9  # of the further questions about clips: above those of test.jsonl
LETTERS = {"entailment": "e", "contradiction": "c", "neutral": "n"}


def emit_more_evaluation(config: WorldConfig, index: int) -> Iterator[Record]:
    """More records of one held-out scene; its media are there already."""
    kind = evaluation_kind(index)
    draws = Draws(config.seed, index, "more evaluation")
    if kind == "clip":
        yield from _clip_questions(config, index)
    elif kind in ("image", "multilingual"):
        # The scene is drawn again, without its pixels: records need geometry and names alone.
        shot = held_out_shot(config.model_copy(update={"media": "none"}), index)
        if kind == "multilingual":
            for language in ("en", *LANGUAGES):
                for _ in range(2):
                    yield from statements(config, shot, language, draws)
        else:
            yield proposals(shot, draws, "refcoco_plus/proposals")
            for number, asked in enumerate(ask(shot, draws)):
                for language in QUESTION_LANGUAGES:
                    yield Record(f"gqa/{language}", [f"{shot.image_id}{number}", _gqa(shot, asked, language)])
            yield from _marvl(config, shot, draws)


def _gqa(shot: Shot, asked: Asked, language: str) -> dict[str, Any]:
    return {
        "question": in_language(asked, language),
        "imageId": str(shot.image_id),
        "answer": asked.answer,
        "isBalanced": True,
        "types": {"structural": "verify" if asked.kind == "yes/no" else "query", "semantic": "obj"},
        "fullAnswer": asked.answer,
    }


def in_language(asked: Asked, language: str) -> str:
    """A question of `ask` in another language."""
    if asked.kind == "number":
        return how_many(language)
    return is_there(asked.colour, asked.shape, language) if asked.colour else what_colour(asked.shape, language)


def gqa_labels(shot: Shot, draws: Draws) -> Iterator[Record]:
    """Questions about an image in the form that GQA is trained on: answers with scores."""
    for number, asked in enumerate(ask(shot, draws)):
        row = {"img_id": str(shot.image_id), "sent": asked.question, "label": {asked.answer: 1.0}}
        yield Record("gqa", row | {"question_id": f"{shot.image_id}{number}"})


def _marvl(config: WorldConfig, shot: Shot, draws: Draws) -> Iterator[Record]:
    """One sentence a language about this image and its neighbour, true or false."""
    paired = [one for one in neighbours(config, shot.index) if one != shot.index]
    if not paired:
        return
    index = draws.choice(paired)
    other, thing = make_scene(config, index), draws.choice(shot.image.things)
    template = draws.choice(("both", "one"))
    colour = draws.choice(tuple(COLOURS)) if draws.chance(0.5) else thing.colour
    if template == "both":
        holds = any(one.shape == thing.shape for one in other.things)
    else:
        holds = any((one.colour, one.shape) == (colour, thing.shape) for one in (*shot.image.things, *other.things))
    names = [f"COCO_val2014_{image_id(one):012d}.jpg" for one in (shot.index, index)]
    for language in PAIR_LANGUAGES:
        record = {
            "concept": f"{image_id(shot.index)}-{thing.shape}",
            "language": language,
            "caption": about_pair(template, colour, thing.shape, language),
            "left_img": names[0],
            "right_img": names[1],
            "annotator_info": {"annotator_id": f"{language}_01"},
            "chapter": "Shapes",
            "id": f"{language}-{shot.index // EVALUATION_EVERY}",
            "label": holds,
        }
        yield Record(f"marvl/{language}", record)


def statements(config: WorldConfig, shot: Shot, language: str, draws: Draws) -> Iterator[Record]:
    """A sentence that follows from an image, one that contradicts it and one that does neither."""
    premise = describe_scene(shot.image, language, draws)
    for label in LABELS:
        record = {
            "gold_label": label,
            "sentence1": premise,
            "sentence2": _statement(config, shot.image, label, language, draws),
            "captionID": f"{shot.image_id}.jpg#0",
            "pairID": f"{shot.image_id}.jpg#0r{draws.word() % 10**6}{LETTERS[label]}",
            "Flikr30kID": str(shot.image_id),
        }
        yield Record(f"xvnli/{language}", record)


def _statement(config: WorldConfig, scene: Scene, label: str, language: str, draws: Draws) -> str:
    if label == "neutral":
        return draws.choice(NEUTRAL[language])
    return describe_scene(scene if label == "entailment" else unrelated_scene(config, scene, draws), language, draws)


def proposals(shot: Shot, draws: Draws, table: str) -> Record:
    """What a detector might find: a box near each thing, and two that show nothing in particular."""
    boxes = [_near(thing.box, shot, draws) for thing in shot.image.things]
    for _ in range(2):
        w, h = draws.integer(shot.width // 10, shot.width // 2), draws.integer(shot.height // 10, shot.height // 2)
        boxes.append([draws.integer(0, shot.width - w), draws.integer(0, shot.height - h), w, h])
    return Record(table, [str(shot.image_id), [[float(side) for side in box] for box in draws.shuffled(boxes)]])


def _near(box: tuple[int, int, int, int], shot: Shot, draws: Draws) -> list[int]:
    """A box whose sides are up to a twentieth of its size off, within the image."""
    x, y, w, h = box
    left, top = max(0, x + draws.integer(-w // 20, w // 20)), max(0, y + draws.integer(-h // 20, h // 20))
    right = min(shot.width, x + w + draws.integer(-w // 20, w // 20))
    bottom = min(shot.height, y + h + draws.integer(-h // 20, h // 20))
    return [left, top, right - left, bottom - top]


def _clip_questions(config: WorldConfig, index: int) -> Iterator[Record]:
    """Whether a thing is there, yes and no, for every thing of a clip."""
    draws = Draws(config.seed, index, "more evaluation")
    clip = make_clip(config, index)
    looks = {(thing.colour, thing.shape) for thing in clip.things}
    number = 0
    for thing in clip.things:
        missing = [colour for colour in COLOURS if (colour, thing.shape) not in looks]
        for colour, answer in ((thing.colour, "yes"), (draws.choice(missing), "no")):
            question = f"is there {a(f'{colour} {thing.shape}')}?"
            record = {"answer": answer, "category_id": 0, "id": FIRST_ID + index * 100 + number}
            yield Record("msrvtt_qa/test_more", record | {"question": question, "video_id": f"video{index}"})
            number += 1
