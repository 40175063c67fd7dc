"""Files for fine-tuning and further tasks: their own scenes, true answers, and a card a task that reads them all."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.world.config import WorldConfig, is_held_out
from pipelines.corpora.world.drawing.questions import about_pair, how_many, is_there, what_colour
from pipelines.corpora.world.drawing.shots import FIRST_IMAGE_ID
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES
from pipelines.corpora.world.sources.finetuning import finetuning_scenes, finetuning_use
from tests.support.corpora.world import World
from x2vlm.data.task_cards import TaskCard, load_task_card, part_paths, read_split
from x2vlm.data.task_examples import TaskData

TASKS = {  # card -> splits
    "coco_captioning": ("train", "val", "test"),
    "coco_retrieval": ("train", "val", "test"),
    "marvl": ("train", "val", "test"),
    "msrvtt_qa": ("train", "val", "test"),
    "msrvtt_retrieval": ("train", "val", "test"),
    "multi30k": ("train", "val", "test"),
    "nlvr2": ("train", "val", "test"),
    "ovad": ("test",),
    "refcoco_plus": ("train", "val", "testA", "testB"),
    "refcoco_plus_weak": ("train", "val", "testA", "testB"),
    "vqav2": ("train", "val", "test"),
    "winoground": ("test",),
    "wit": ("train", "val", "test"),
    "xflickrco": ("train", "val", "test"),
    "xgqa": ("train", "val", "test"),
    "xvnli": ("train", "val", "test"),
}


def card_of(world: World, name: str) -> TaskCard:
    return load_task_card(world.out / "cards" / "tasks" / f"{name}.yaml")


def split_of(world: World, name: str, split: str) -> TaskData:
    card = card_of(world, name)
    files = [{role: Path(path) for role, path in part.items()} for part in part_paths(card, split, Path("/nowhere"))]
    return read_split(card, split, files)


def scene_of(world: World, media: str) -> int:
    """The number of the scene that an image or clip shows."""
    found = re.search(r"_(\d{12})\.jpg$", media)
    return int(found[1]) - FIRST_IMAGE_ID if found else int(re.search(r"\D(\d+)(_img_[01])?\.", media)[1])  # type: ignore[index]


def things(world: World, media: str) -> list[dict[str, Any]]:
    index = scene_of(world, media)
    if index in world.scenes:
        return world.scenes[index]["things"]  # type: ignore[no-any-return]
    rows = pq.read_table(world.out / "truth_finetuning_scenes.parquet").to_pylist()
    return next(row["things"] for row in rows if row["scene"] == index)  # type: ignore[no-any-return]


def test_there_is_a_card_for_every_task(noisy_world: World) -> None:
    cards = {path.stem: tuple(load_task_card(path).splits) for path in (noisy_world.out / "cards/tasks").glob("*.yaml")}
    assert cards == TASKS


@pytest.mark.parametrize("name", TASKS)
def test_every_split_is_read_without_a_drop_and_all_media_are_there(noisy_world: World, name: str) -> None:
    card = card_of(noisy_world, name)
    for split in TASKS[name]:
        data = split_of(noisy_world, name, split)
        assert data.examples
        assert data.dropped == ()
        for example in data.examples:
            for media in example.media:
                assert (Path(card.media_root) / media).is_file(), media


@pytest.mark.parametrize("name", TASKS)
def test_training_and_test_show_different_scenes(noisy_world: World, name: str) -> None:
    shown = {
        split: {
            scene_of(noisy_world, media) for one in split_of(noisy_world, name, split).examples for media in one.media
        }
        for split in TASKS[name]
    }
    extra = set(finetuning_scenes(noisy_world.config))
    assert shown.get("train", set()) <= extra
    for split in set(shown) & {"test", "testA", "testB"}:
        assert all(is_held_out(index) and index < noisy_world.config.scenes for index in shown[split])
    if not name.startswith(("refcoco", "nlvr2", "marvl")) and "val" in shown:  # NLVR2 borrows photos in a small world
        assert not shown["train"] & shown["val"]


def test_answers_for_training_are_true(noisy_world: World) -> None:
    for name in ("vqav2", "xgqa"):
        for example in split_of(noisy_world, name, "train").examples:
            question, right = example.texts[0], max(set(example.answers), key=example.answers.count)
            seen = things(noisy_world, example.media[0])
            if question.startswith("How many"):
                assert right == str(len(seen))
            elif question.startswith("Is there"):
                colour, shape = question.rstrip("?").split()[-2:]
                assert (right == "yes") == any((one["colour"], one["shape"]) == (colour, shape) for one in seen)
            else:
                shape = question.rstrip("?").split()[-1]
                assert [one["colour"] for one in seen if one["shape"] == shape] == [right]


def test_every_answer_is_in_its_list(noisy_world: World) -> None:
    for name in ("vqav2", "xgqa", "msrvtt_qa"):
        for split in TASKS[name]:
            data = split_of(noisy_world, name, split)
            assert {answer for one in data.examples for answer in one.answers} <= set(data.labels)


def meaning(question: str, language: str) -> tuple[str, str, str]:
    """What a question asks, found by trying all: kind, colour, shape."""
    if question == how_many(language):
        return "number", "", ""
    for shape in SHAPES:
        if question == what_colour(shape, language):
            return "colour", "", shape
        for colour in COLOURS:
            if question == is_there(colour, shape, language):
                return "there", colour, shape
    raise AssertionError(question)


def test_questions_of_all_languages_ask_the_same_and_their_answers_are_true(noisy_world: World) -> None:
    by_id: dict[str, set[tuple[Any, ...]]] = {}
    for example in split_of(noisy_world, "xgqa", "test").examples:
        kind, colour, shape = meaning(example.texts[0], example.language)
        by_id.setdefault(example.example_id.rpartition(":")[2], set()).add((kind, colour, shape, example.answers))
        seen = things(noisy_world, example.media[0])
        if kind == "number":
            assert example.answers == (str(len(seen)),)
        elif kind == "colour":
            assert [one["colour"] for one in seen if one["shape"] == shape] == list(example.answers)
        else:
            is_there = any((one["colour"], one["shape"]) == (colour, shape) for one in seen)
            assert example.answers == (("yes",) if is_there else ("no",))
    assert {len(meanings) for meanings in by_id.values()} == {1}


def test_statements_about_pairs_are_true_or_false_as_labelled(noisy_world: World) -> None:
    examples = split_of(noisy_world, "marvl", "test").examples
    assert {one.answers for one in examples} == {("True",), ("False",)}
    for example in examples:
        left, right = (things(noisy_world, media) for media in example.media)
        holds = None
        for shape in SHAPES:
            if example.texts[0] == about_pair("both", "red", shape, example.language):
                holds = all(any(one["shape"] == shape for one in side) for side in (left, right))
            for colour in COLOURS:
                if example.texts[0] == about_pair("one", colour, shape, example.language):
                    holds = any((one["colour"], one["shape"]) == (colour, shape) for one in left + right)
        assert example.answers == (str(holds),)


def test_a_proposal_lies_near_every_thing(noisy_world: World) -> None:
    for split in ("train", "testA"):
        for example in split_of(noisy_world, "refcoco_plus_weak", split).examples:
            assert example.box is not None
            assert max(overlap(example.box, other) for other in example.proposals) > 0.7


def overlap(one: Any, other: Any) -> float:
    wide = min(one.x + one.w, other.x + other.w) - max(one.x, other.x)
    high = min(one.y + one.h, other.y + other.h) - max(one.y, other.y)
    inside = max(0.0, wide) * max(0.0, high)
    return float(inside / (one.w * one.h + other.w * other.h - inside))


def test_clips_are_asked_what_is_there(noisy_world: World) -> None:
    asked = 0
    for example in split_of(noisy_world, "msrvtt_qa", "test").examples:
        if example.texts[0].startswith("is there"):
            colour, shape = example.texts[0].rstrip("?").split()[-2:]
            seen = things(noisy_world, example.media[0])
            is_there = any((one["colour"], one["shape"]) == (colour, shape) for one in seen)
            assert example.answers == (("yes",) if is_there else ("no",))
            asked += 1
    assert asked >= 4


def test_no_scene_for_fine_tuning_is_in_a_file_of_pre_training_or_an_older_evaluation(noisy_world: World) -> None:

    extra = [f"{FIRST_IMAGE_ID + index:012d}" for index in finetuning_scenes(noisy_world.config)]
    old = ["coco_karpathy/dataset_coco.json", "vqa/v2_mscoco_val2014_annotations.json", "nlvr2/dev.json"]
    paths = [noisy_world.out / "evaluation" / name for name in old]
    paths += [path for path in (noisy_world.out / "annotations").rglob("*.json") if path.is_file()]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not [name for name in extra if f"_{name}.jpg" in text], path


def test_the_scenes_of_each_kind_and_split() -> None:
    config = WorldConfig(scenes=20_000)
    uses = [finetuning_use(config, index) for index in finetuning_scenes(config)]
    assert len(uses) == 2000
    assert {use: uses.count(use) for use in set(uses)} == {
        ("image", "train"): 1200,
        ("image", "val"): 200,
        ("multilingual", "train"): 200,
        ("multilingual", "val"): 100,
        ("clip", "train"): 200,
        ("clip", "val"): 100,
    }
    small = WorldConfig(scenes=100)
    assert len({finetuning_use(small, index) for index in finetuning_scenes(small)}) == 6  # none is missing


@pytest.mark.slow
def test_twenty_thousand_scenes_have_thousands_of_items_to_evaluate(tmp_path: Path) -> None:
    """As many as a comparison of two models needs; items are texts, questions or boxes."""
    from pipelines.corpora.world.build import build_world

    config = WorldConfig(scenes=20_000, media="none")
    out = tmp_path / "world"
    build_world(config, out, workers=2)
    least = {"coco_retrieval": 6000, "vqav2": 3500, "nlvr2": 2500, "ovad": 5000, "msrvtt_qa": 2400, "xgqa": 14_000}
    for name, number in least.items():
        card = load_task_card(out / "cards" / "tasks" / f"{name}.yaml")
        parts = [{role: Path(path) for role, path in one.items()} for one in part_paths(card, "test", tmp_path)]
        assert sum(len(one.texts) for one in read_split(card, "test", parts).examples) >= number
    assert json.loads((out / "world.json").read_text())["config"]["scenes"] == 20_000
