"""Evaluation files: official layout, true answers, and no held-out image in a training file but for planted leaks."""

import csv
import gzip
import json
import re
from collections import Counter
from typing import Any

from pipelines.corpora.world.config import is_held_out
from pipelines.corpora.world.drawing.shots import FIRST_IMAGE_ID
from tests.support.corpora.world import World


def load(world: World, name: str) -> Any:
    return json.loads((world.out / "evaluation" / name).read_text(encoding="utf-8"))


def lines(world: World, name: str) -> list[Any]:
    return [json.loads(line) for line in (world.out / "evaluation" / name).read_text(encoding="utf-8").splitlines()]


def things_of(world: World, image: int) -> list[dict[str, Any]]:
    return world.scenes[image - FIRST_IMAGE_ID]["things"]


def test_karpathy_splits_keep_to_their_scenes(noisy_world: World) -> None:
    content = load(noisy_world, "coco_karpathy/dataset_coco.json")
    splits = Counter(image["split"] for image in content["images"])
    assert set(splits) == {"train", "restval", "val", "test"}
    for image in content["images"]:
        assert is_held_out(image["cocoid"] - FIRST_IMAGE_ID) == (image["split"] in ("val", "test"))
        assert len(image["sentences"]) == 5
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
    gold = load(noisy_world, "coco_caption/captions_val2014.json")
    assert len(gold["images"]) == splits["test"]
    assert len(gold["annotations"]) == 5 * splits["test"]


def test_held_out_files_are_in_no_training_file(noisy_world: World) -> None:
    held_out = {
        path.name for path in (noisy_world.out / "media").rglob("*") if re.match("COCO_val|video|ex_", path.name)
    }
    assert len(held_out) >= 12
    for path in (noisy_world.out / "annotations").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert not [name for name in held_out if name.encode() in data], path


def test_vqa_answers_are_true_and_count_in_full(noisy_world: World) -> None:
    questions = {
        one["question_id"]: one
        for one in load(noisy_world, "vqa/v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    }
    annotations = load(noisy_world, "vqa/v2_mscoco_val2014_annotations.json")["annotations"]
    assert len(annotations) == len(questions) > 20
    kinds = Counter()
    for one in annotations:
        question, right = questions[one["question_id"]]["question"], one["multiple_choice_answer"]
        things = things_of(noisy_world, one["image_id"])
        said = Counter(answer["answer"] for answer in one["answers"])
        assert said.total() == 10
        assert said[right] >= 7
        kinds[one["answer_type"]] += 1
        if one["answer_type"] == "number":
            assert right == str(len(things))
        elif one["answer_type"] == "yes/no":
            colour, shape = question.rstrip("?").split()[-2:]
            assert (right == "yes") == any((one["colour"], one["shape"]) == (colour, shape) for one in things)
        else:
            shape = question.rstrip("?").split()[-1]
            assert [one["colour"] for one in things if one["shape"] == shape] == [right]
    assert set(kinds) == {"number", "yes/no", "other"}


def test_nlvr2_labels_are_true(noisy_world: World) -> None:
    examples = lines(noisy_world, "nlvr2/dev.json")
    assert len(examples) > 10
    assert {one["label"] for one in examples} == {"True", "False"}
    for one in examples:
        left, right = (
            things_of(noisy_world, int(re.search(r"_(\d{12})\.jpg", one[side])[1]))  # type: ignore[index]
            for side in ("left_url", "right_url")
        )
        sentence = one["sentence"]
        if matched := re.fullmatch(r"Both images show an? (\w+)\.", sentence):
            holds = all(any(thing["shape"] == matched[1] for thing in side) for side in (left, right))
        elif matched := re.fullmatch(r"At least one image shows an? (\w+) (\w+)\.", sentence):
            holds = any((thing["colour"], thing["shape"]) == (matched[1], matched[2]) for thing in left + right)
        else:
            matched = re.fullmatch(r"The two images show at least (\d+) shapes together\.", sentence)
            assert matched
            holds = len(left) + len(right) >= int(matched[1])
        assert one["label"] == str(holds), sentence
        assert re.fullmatch(r"dev-\d+-[01]-0", one["identifier"])
        assert one["left_url"] != one["right_url"]


def test_winoground_pairs_have_the_same_words_and_two_images(noisy_world: World) -> None:
    examples = lines(noisy_world, "winoground/examples.jsonl")
    assert examples
    for one in examples:
        assert sorted(one["caption_0"].split()) == sorted(one["caption_1"].split())
        assert one["caption_0"] != one["caption_1"]
        images = [(noisy_world.out / "media" / "images" / f"{one[f'image_{n}']}.jpg").read_bytes() for n in (0, 1)]
        assert images[0] != images[1]


def test_ovad_vectors_agree_with_the_things(noisy_world: World) -> None:
    content = load(noisy_world, "ovad/ovad2000.json")
    assert len(content["annotations"]) > 20
    for one in content["annotations"]:
        thing = next(thing for thing in things_of(noisy_world, one["image_id"]) if thing["box"] == one["bbox"])
        assert len(one["att_vec"]) == len(content["attributes"])
        for attribute, value in zip(content["attributes"], one["att_vec"], strict=True):
            kind, name = attribute["name"].split(":")
            holds = thing[{"color": "colour", "pattern": "texture", "size": "size"}[kind]] == name
            assert value in (-1, int(holds))


def test_refcoco_plus_says_nothing_about_position_and_has_three_splits(noisy_world: World) -> None:
    refs = load(noisy_world, "refcoco_plus/refs(unc).json")
    assert {ref["split"] for ref in refs} == {"val", "testA", "testB"}
    boxes = {one["id"]: one for one in load(noisy_world, "refcoco_plus/instances.json")["annotations"]}
    for ref in refs:
        assert boxes[ref["ann_id"]]["image_id"] == ref["image_id"]
        assert not [s for s in ref["sentences"] if re.search(r"\b(left|right|above|below|near)\b", s["sent"])]


def test_msrvtt_clips_are_there_and_answers_are_true(noisy_world: World) -> None:
    with (noisy_world.out / "evaluation/msrvtt/MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    data = load(noisy_world, "msrvtt/MSRVTT_data.json")
    assert [row["video_id"] for row in rows] == [video["video_id"] for video in data["videos"]]
    for row in rows:
        assert (noisy_world.out / "media" / "clips" / f"{row['video_id']}.mp4").is_file()
    for one in lines(noisy_world, "msrvtt_qa/test.jsonl"):
        scene = noisy_world.scenes[int(one["video_id"].removeprefix("video"))]
        if one["question"].startswith("what color"):
            assert one["answer"] == scene["things"][0]["colour"]
        if one["question"].startswith("how many"):
            assert one["answer"] == str(len(scene["things"]))


def test_multilingual_files_are_line_by_line_about_the_same_images(noisy_world: World) -> None:
    folder = noisy_world.out / "evaluation" / "multi30k"
    images = (folder / "image_splits" / "test_2016_images.txt").read_text().splitlines()
    assert images
    paths = list((folder / "task2" / "raw").glob("test_2016.*"))
    assert len(paths) == 12
    for path in paths:
        assert len(gzip.decompress(path.read_bytes()).decode().splitlines()) == len(images)
    for language in ("en", "de", "fr", "cs", "zh", "ja"):
        rows = lines(noisy_world, f"xflickrco/test_{language}.jsonl")
        assert [row["img_path"] for row in rows] == images
        assert [row["language"] for row in lines(noisy_world, f"wit/test_{language}.jsonl")] == [language] * len(images)
