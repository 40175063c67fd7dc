"""Official files of downstream tasks, made of held-out scenes: no training row shows one, except planted leaks.

| task | files |
|---|---|
| COCO retrieval and captioning | coco_karpathy/dataset_coco.json, coco_caption/captions_val2014.json |
| VQA v2 | vqa/v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json |
| NLVR2 | nlvr2/dev.json (JSON lines, as upstream) |
| RefCOCO+ | refcoco_plus/refs(unc).json, instances.json |
| Winoground | winoground/examples.jsonl, images in media/images |
| OVAD | ovad/ovad2000.json |
| MSRVTT retrieval and QA | msrvtt/MSRVTT_JSFUSION_test.csv, MSRVTT_data.json, msrvtt_qa/test.jsonl |
| Multi30K | multi30k/task2/test_2016.<n>.<language>, image_splits |
| WIT, xFlickrCO | wit/test_<language>.jsonl, xflickrco/test_<language>.jsonl |
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from pipelines.corpora.world.config import EVALUATION, EVALUATION_EVERY, WorldConfig, is_held_out
from pipelines.corpora.world.drawing.clips import Clip, encode_clip, make_clip
from pipelines.corpora.world.drawing.languages import LANGUAGES, describe
from pipelines.corpora.world.drawing.scene import Scene, Thing, compose, make_scene
from pipelines.corpora.world.drawing.shots import (
    EVALUATION_ROUND,
    Shot,
    evaluation_kind,
    held_out_shot,
    image_bytes,
    image_id,
)
from pipelines.corpora.world.drawing.texts import a, captions, unique_expression
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES, SIZES, TEXTURES
from pipelines.corpora.world.records import Record, Truth, csv_line
from pipelines.corpora.world.sources.coco import (
    CATEGORY_IDS,
    caption_record,
    image_record,
    karpathy_record,
    object_records,
    ref_records,
)
from pipelines.corpora.world.sources.video import describe_clip
from x2vlm.data.randomness import Draws

ATTRIBUTES = [
    {
        "id": number,
        "name": f"{kind}:{name}",
        "type": kind,
        "parent_type": "look",
        "is_has_att": "is",
        "freq_set": "head",
    }
    for number, (kind, name) in enumerate(
        [
            *(("color", name) for name in COLOURS),
            *(("pattern", name) for name in TEXTURES),
            *(("size", s) for s in SIZES),
        ]
    )
]


def emit_evaluation(config: WorldConfig, index: int) -> tuple[list[Record], dict[str, bytes]]:
    """Records of one held-out scene, and the media files (by path below media/) that they need."""
    match evaluation_kind(index):
        case "image":
            shot = held_out_shot(config, index)
            return list(_image(config, shot)), _media(shot)
        case "multilingual":
            shot = held_out_shot(config, index)
            return list(_multilingual(config, shot)), _media(shot)
        case "clip":
            return _clip(config, index)
    return _pair(config, index)


def _media(shot: Shot) -> dict[str, bytes]:
    return {shot.file: shot.data} if shot.file else {}


def _truth(index: int, task: str, key: str) -> Truth:
    return Truth(EVALUATION, key, "row", index, detail=task)


def _image(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    draws = Draws(config.seed, shot.index, EVALUATION)
    split = "val" if draws.chance(0.5) else "test"
    texts = captions(shot.image, draws, 5)
    truth = _truth(shot.index, f"coco {split}", str(shot.image_id))
    yield Record("karpathy/images", karpathy_record(shot, texts, split), (truth,))
    if split == "test":
        yield Record("coco_caption/images", image_record(shot))
        for position, text in enumerate(texts):
            yield Record("coco_caption/annotations", caption_record(shot.image_id, position, text))
    yield from vqa_records(shot, draws)
    others = [one for one in neighbours(config, shot.index) if one != shot.index]
    yield from nlvr2_records(config, shot, draws, others, "dev")
    yield Record("refcoco_plus/images", image_record(shot))
    for annotation in object_records(shot.image_id, shot.image):
        yield Record("refcoco_plus/instances", annotation)
    for ref in ref_records(shot, draws.choice(("val", "testA", "testB"))):
        yield Record("refcoco_plus/refs", ref)
    yield from _ovad(shot, draws)


class Asked(NamedTuple):
    """A question about an image, its answer, and what VQA's files say of it."""

    question: str
    answer: str
    kind: str
    prefix: str
    wrong: list[str]
    shape: str = ""  # that the question names
    colour: str = ""


def ask(shot: Shot, draws: Draws) -> list[Asked]:
    """Questions about an image: how many, which colour, whether there is."""
    things = shot.image.things
    total = str(len(things))
    asked = [Asked("How many shapes are there?", total, "number", "how many", [str(len(things) + 1)])]
    known = [thing for number, thing in enumerate(things) if unique_expression(shot.image, number) == thing.shape]
    if known:
        thing = draws.choice(known)
        wrong = [colour for colour in COLOURS if colour != thing.colour]
        question = f"What color is the {thing.shape}?"
        asked.append(Asked(question, thing.colour, "other", "what color is the", wrong, thing.shape))
    colour, shape = draws.choice(tuple(COLOURS)), draws.choice(SHAPES)
    if draws.chance(0.5):
        colour, shape = (one := draws.choice(things)).colour, one.shape
    present = any((thing.colour, thing.shape) == (colour, shape) for thing in things)
    answer, other = ("yes", "no") if present else ("no", "yes")
    question = f"Is there {a(f'{colour} {shape}')}?"
    return [*asked, Asked(question, answer, "yes/no", "is there a", [other], shape, colour)]


def vqa_records(shot: Shot, draws: Draws) -> Iterator[Record]:
    """Questions and annotations of VQA about one image."""
    for number, (question, right, kind, prefix, wrong, _, _) in enumerate(ask(shot, draws)):
        question_id = shot.image_id * 1000 + number
        yield Record("vqa/questions", {"image_id": shot.image_id, "question": question, "question_id": question_id})
        # Up to three of the ten annotators are wrong, so the right answer always scores fully.
        errs = draws.integer(0, 3)
        ten = draws.shuffled([right] * (10 - errs) + [draws.choice(wrong) for _ in range(errs)])
        answers = [
            {"answer": text, "answer_confidence": draws.choice(("yes", "yes", "maybe")), "answer_id": person}
            for person, text in enumerate(ten, 1)
        ]
        record: dict[str, Any] = {"question_type": prefix, "multiple_choice_answer": right, "answers": answers}
        record |= {"image_id": shot.image_id, "answer_type": kind, "question_id": question_id}
        yield Record("vqa/annotations", record)


def nlvr2_records(
    config: WorldConfig, shot: Shot, draws: Draws, paired_scenes: list[int], name: str
) -> Iterator[Record]:
    """One sentence about two pairs of images; identifiers are set-sentence-pair-writer as upstream.

    `paired_scenes`: the numbers of other scenes that may be shown beside this one; `name` of the set.
    """
    if len(paired_scenes) < 2:
        return
    thing = draws.choice(shot.image.things)
    template = draws.choice(("both", "one", "total"))
    least = draws.integer(3, 12)
    sentence = {
        "both": f"Both images show {a(thing.shape)}.",
        "one": f"At least one image shows {a(f'{thing.colour} {thing.shape}')}.",
        "total": f"The two images show at least {least} shapes together.",
    }[template]
    for pair, paired_scene in enumerate(draws.shuffled(paired_scenes)[:2]):
        other = make_scene(config, paired_scene)
        label = {
            "both": any(one.shape == thing.shape for one in other.things),
            "one": True,
            "total": len(shot.image.things) + len(other.things) >= least,
        }[template]
        left, right = shot.image, other
        if template == "one" and draws.chance(0.5):  # false if neither of two other images shows it
            left = make_scene(config, draws.choice([one for one in paired_scenes if one != paired_scene]))
            label = any((x.colour, x.shape) == (thing.colour, thing.shape) for x in (*left.things, *right.things))
        urls = [shot.url.replace(f"{shot.image_id:012d}", f"{image_id(scene.index):012d}") for scene in (left, right)]
        record = {
            "validation": {"0": str(label)},
            "sentence": sentence,
            "left_url": urls[0],
            "writer": "1",
            "label": str(label),
            "right_url": urls[1],
            "synset": thing.shape,
            "query": f"{thing.shape}s",
            "identifier": f"{name}-{shot.index}-{pair}-0",
            "extra_validations": {"1": str(label)},
        }
        yield Record(f"nlvr2/{name}", record)


def neighbours(config: WorldConfig, index: int) -> list[int]:
    """Held-out images before and after this one, itself among them."""
    reach = range(index - 8 * EVALUATION_EVERY, index + 8 * EVALUATION_EVERY + 1, EVALUATION_EVERY)
    return [one for one in reach if 0 <= one < config.scenes and is_held_out(one) and evaluation_kind(one) == "image"]


def _ovad(shot: Shot, draws: Draws) -> Iterator[Record]:
    image: dict[str, Any] = {
        "id": shot.image_id,
        "width": shot.width,
        "height": shot.height,
        "file_name": shot.url.rsplit("/", 1)[1],
    }
    yield Record("ovad/images", image | {"set": "val2017", "license": 9, "date_captured": "2013-11-14 17:02:52"})
    for number, thing in enumerate(shot.image.things):
        holds = {f"color:{thing.colour}", f"pattern:{thing.texture}", f"size:{thing.size}"}
        vector = [-1 if draws.chance(0.1) else int(attribute["name"] in holds) for attribute in ATTRIBUTES]
        annotation = {
            "id": shot.image_id * 100 + number,
            "image_id": shot.image_id,
            "bbox": [float(side) for side in thing.box],
            "area": float(thing.visible),
            "iscrowd": 0,
            "category_id": CATEGORY_IDS[thing.shape],
            "att_vec": vector,
        }
        yield Record("ovad/annotations", annotation)


def _multilingual(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    draws = Draws(config.seed, shot.index, EVALUATION)
    name = shot.url.rsplit("/", 1)[1]
    yield Record("multi30k/images", name, (_truth(shot.index, "multilingual", name),))
    for language in ("en", "de", "fr", "cs"):
        # Upstream, English and German have five descriptions of an image, French and Czech one.
        for number in range(1, 6 if language in ("en", "de") else 2):
            yield Record(f"multi30k/{number}.{language}", describe_scene(shot.image, language, draws))
    for language in ("en", *LANGUAGES):
        text = describe_scene(shot.image, language, draws)
        wit = {
            "image_idx": shot.index,
            "image_url": shot.url,
            "meta_url": shot.url,
            "caption_reference_description": text,
            "language": language,
            "page_url": f"http://world.invalid/wiki/{language}/{shot.image_id}",
            "wit_ix": f"wit-test_{shot.index}",
        }
        yield Record(f"wit/{language}", wit)
        yield Record(f"xflickrco/{language}", {"sentences": [text], "id": str(shot.image_id), "img_path": name})


def describe_scene(scene: Scene, language: str, draws: Draws) -> str:
    """A true description of a scene in any language of the world."""
    return captions(scene, draws, 1)[0] if language == "en" else describe(scene, language, draws)


def _clip(config: WorldConfig, index: int) -> tuple[list[Record], dict[str, bytes]]:
    """A clip of MSRVTT's test split: one sentence for retrieval, questions for QA."""
    draws = Draws(config.seed, index, EVALUATION)
    clip = make_clip(config, index)
    video = f"video{index}"
    number = index // (EVALUATION_EVERY * len(EVALUATION_ROUND))
    sentence = describe_clip(clip, draws)
    entry = {"category": 0, "url": f"http://world.invalid/clips/{video}.mp4", "video_id": video}
    entry |= {"start time": 0.0, "end time": float(clip.seconds), "split": "test", "id": index}
    records: list[Record] = [
        Record(
            "msrvtt/test", csv_line((f"ret{number}", f"msr{index}", video, sentence)), (_truth(index, "msrvtt", video),)
        ),
        Record("msrvtt/videos", entry),
        Record("msrvtt/sentences", {"caption": sentence, "video_id": video, "sen_id": number}),
    ]
    for position, (question, answer) in enumerate(clip_questions(clip)):
        qa = {"answer": answer, "category_id": 0, "id": number * 10 + position, "question": question, "video_id": video}
        records.append(Record("msrvtt_qa/test", qa))
    data = {} if config.media == "none" else {f"clips/{video}.mp4": encode_clip(config, clip)}
    return records, data


def clip_questions(clip: Clip) -> Iterator[tuple[str, str]]:
    """(question, answer) of MSRVTT-QA about one clip."""
    mover, other = clip.things[:2]
    if mover.shape not in [thing.shape for thing in clip.things[1:]]:
        yield f"what color is the {mover.shape} that moves?", mover.colour
    if mover.colour not in [thing.colour for thing in clip.things[1:]]:
        yield f"which {mover.colour} shape moves?", mover.shape
    yield "how many shapes are there?", str(len(clip.things))
    verbs = {"towards": "approach", "away_from": "leave", "past": "pass", "after": "follow", "circling": "circle"}
    yield f"what does the {mover.colour} {mover.shape} do to the {other.colour} {other.shape}?", verbs[clip.motion]


def _pair(config: WorldConfig, index: int) -> tuple[list[Record], dict[str, bytes]]:
    """Two images and two captions with the same words in another order, which only correct binding can match."""
    draws = Draws(config.seed, index, EVALUATION)
    size = (config.image_size * 3 // 2, config.image_size)
    shapes, colours = draws.shuffled(SHAPES)[:2], draws.shuffled(tuple(COLOURS))[:2]
    swap = draws.choice(("colours", "places"))
    radius = size[1] * 18 // 100
    places = [(size[0] * 28 // 100, size[1] // 2), (size[0] * 72 // 100, size[1] // 2)]
    looks = [list(zip(shapes, colours, strict=True))]
    looks.append([(shapes[0], colours[1]), (shapes[1], colours[0])] if swap == "colours" else list(reversed(looks[0])))
    data, names, texts = {}, [], []
    for version, pair in enumerate(looks):
        things = [
            Thing(shape, colour, "plain", "large", *place, radius, 0)
            for (shape, colour), place in zip(pair, places, strict=True)
        ]
        scene = compose(index, size, "grey", things, config.min_visible_share)
        assert scene is not None, "two large things side by side always fit"
        names.append(f"ex_{index}_img_{version}.jpg")
        texts.append(f"the {pair[0][1]} {pair[0][0]} is left of the {pair[1][1]} {pair[1][0]}")
        if config.media != "none":
            data[f"images/{names[-1]}"] = image_bytes(config, replace(scene, index=index))
    tag = "Adjective-Color" if swap == "colours" else "Relation"
    record = {
        "id": index // (EVALUATION_EVERY * len(EVALUATION_ROUND)),
        **{f"image_{version}": name.removesuffix(".jpg") for version, name in enumerate(names)},
        **{f"caption_{version}": text for version, text in enumerate(texts)},
        "tag": tag,
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": "Object" if swap == "colours" else "Relation",
    }
    return [Record("winoground/examples", record, (_truth(index, "winoground", str(record["id"])),))], data
