"""A small model, pre-trained on a world of 20,000 scenes and fine-tuned there, beats chance on every task by a margin.

The world and the store lie in `runs/`: a run that was killed goes on, and one that is finished is only measured again.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.store import Store
from pipelines.project import PROJECT_ROOT
from x2vlm.data.task_cards import load_task_card, part_paths, read_split
from x2vlm.data.task_examples import TaskData
from x2vlm.tasks.captions.scores import score_captions

pytestmark = pytest.mark.slow
EXPERIMENT = "world_small"
WORLD = PROJECT_ROOT / "runs" / EXPERIMENT
STORE = PROJECT_ROOT / "runs" / f"{EXPERIMENT}-store"
BUILD = ("jobs/make_world.py", "--scenes", "20000", "--finetuning-scenes", "10000", "--image-size", "96")


@pytest.fixture(scope="module", autouse=True)
def finished() -> None:
    """The experiment has been run to its end."""
    for command in ((*BUILD, "--out", str(WORLD)), ("jobs/full_pretrain.py", EXPERIMENT, "--store", str(STORE))):
        subprocess.run([sys.executable, *command], cwd=PROJECT_ROOT, check=True)


def folder_of(name: str) -> Path:
    """Where the result of an evaluation lies."""
    store = Store(str(STORE))
    ref = store.read_ref(EXPERIMENT, f"evaluate/{name}")
    assert ref is not None, f"{name} has not been evaluated"
    stored = store.read_manifest(ref.manifest_path)
    assert stored is not None
    (part,) = stored[0].parts
    return Path(store.uri_of(part_folder("evaluate", part.record.fingerprint)))


def metrics_of(name: str) -> Mapping[str, float]:
    metrics: Mapping[str, float] = json.loads((folder_of(name) / "result.json").read_text())["metrics"]
    print(name, {key: round(value, 2) for key, value in metrics.items()})
    return metrics


def questions(card: str, split: str = "test") -> TaskData:
    """The examples of a split, as its files say."""
    loaded = load_task_card(WORLD / "cards" / "tasks" / f"{card}.yaml")
    parts = [{role: Path(name) for role, name in part.items()} for part in part_paths(loaded, split, PROJECT_ROOT)]
    return read_split(loaded, split, parts)


@pytest.mark.parametrize("name", ["zero_retrieval", "retrieval", "zero_video", "video_retrieval"])
def test_retrieval_finds_the_right_one_first_twenty_times_as_often_as_chance(name: str) -> None:
    ranked = pq.read_table(folder_of(name) / "predictions.parquet")["retrieved"].to_pylist()
    asked = Counter(ranked)
    metrics = metrics_of(name)
    num_images, num_texts = asked["text"], asked["image"]  # what is retrieved for an image is a text
    assert num_images >= 200
    assert metrics["ir_r1"] >= 20 * 100 / num_images
    assert metrics["tr_r1"] >= 20 * 100 * (num_texts / num_images) / num_texts


def test_questions_are_answered_twice_as_often_as_by_the_commonest_answer() -> None:
    answers = Counter(example.answers[0] for example in questions("vqav2").examples)
    majority = 100 * answers.most_common(1)[0][1] / answers.total()
    assert answers.total() >= 2000
    assert metrics_of("vqa")["accuracy"] >= 2 * majority


def test_statements_about_two_images_are_judged() -> None:
    assert len(questions("nlvr2").examples) >= 2000
    assert metrics_of("nlvr2")["accuracy"] >= 65


def test_what_an_expression_refers_to_is_found() -> None:
    assert len(questions("refcoco_plus", "testA").examples) >= 2000
    assert metrics_of("grounding")["accuracy"] >= 60


def test_captions_are_about_their_own_image() -> None:
    """Against the same captions at other images: what a model of language alone could write at best."""
    written = pq.read_table(folder_of("captioning") / "predictions.parquet")
    ids, captions = written["image_id"].to_pylist(), written["caption"].to_pylist()
    references = [
        (example.group or example.example_id, example.texts) for example in questions("coco_captioning").examples
    ]
    moved = np.random.default_rng(0).permutation(len(captions))
    elsewhere = score_captions(references, [(key, captions[place]) for key, place in zip(ids, moved, strict=True)])
    own = metrics_of("captioning")["cider"]
    print("captioning with the images exchanged", {"cider": round(elsewhere.metrics["cider"], 2)})
    assert own >= 2 * elsewhere.metrics["cider"]


def test_attributes_are_recognised_twice_as_well_as_by_chance() -> None:
    """A random order of boxes gives each attribute, on average, the share of boxes that have it."""
    found = [np.array(example.attributes) for example in questions("ovad").examples]
    marks = np.stack(found)
    shares = [(column == 1).sum() / (column >= 0).sum() for column in marks.T if (column == 1).any()]
    chance = 100 * float(np.mean(shares))
    assert len(found) >= 2000
    assert metrics_of("attributes")["map_all"] >= 2 * chance


def test_pairs_that_differ_in_their_order_are_told_apart() -> None:
    """Winoground's text score is 25 % by chance."""
    metrics = metrics_of("winoground")
    assert metrics["text_score"] > 25
