"""Data wait of training, on shards of the procedural world."""

import json

import pytest

from tests.benchmarks.data_wait import (
    MOST_WAITING,
    SMALL,
    TOKENIZER,
    describe,
    measure,
    shards_for,
    to_json,
)
from tests.benchmarks.world_corpus import write_world
from tests.support.training.corpus import MODEL
from x2vlm.data.shards.shard import ShardReader
from x2vlm.samples import Grain
from x2vlm.train.metrics import read_metrics

TINY = MODEL.model_copy(update={"text": MODEL.text.model_copy(update={"vocab_size": len(TOKENIZER)}), "num_frames": 3})


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("few"), 300, num_shards=2)


def test_every_kind_of_sample_occurs_and_is_one_of_a_kind(few):
    """The expected contents of 15 groups of 20 samples, counted in the files."""
    counts = few.counts
    assert counts["samples"] == counts["keys"] == 300
    assert (counts["image"], counts["image with boxes"], counts["video"]) == (285, 105, 15)
    assert counts["media"] == few.num_scenes + few.num_clips == 15 + 2
    assert counts["captions"] > 15 * (12 + 1) + 15 * 7
    assert counts["objects"] >= 105
    assert counts["regions"] >= 105


def test_boxes_are_in_their_images_and_texts_differ_between_samples_of_one_scene(few):
    readers = [ShardReader(files.media) for files in few.files]
    for reader in readers:
        reader.verify()
    samples = [sample for reader in readers for sample in reader.samples()]
    texts: dict[str, list[tuple[str, ...]]] = {}
    for sample in samples:
        assert min(sample.media.width, sample.media.height) == 256
        for concept in sample.concepts:
            box = concept.box
            assert min(box.x, box.y) >= 0
            assert min(box.w, box.h) >= 1
            assert box.x + box.w <= sample.media.width
            assert box.y + box.h <= sample.media.height
            assert concept.grain in (Grain.OBJECT, Grain.REGION)
            assert bool(concept.attributes) == (concept.grain == Grain.OBJECT)
        if sample.concepts:
            texts.setdefault(sample.media.sha256, []).append(tuple(caption.text for caption in sample.captions))
    assert all(len(set(of_scene)) > 1 for of_scene in texts.values())


def test_the_fraction_is_reported(few, tmp_path):
    """The same code on a toy: no limit, but the printed values must be those of the loop."""
    found = measure(few, tmp_path, steps=8, readers=1, model=TINY, warm_up=2)
    for run, folder, steps in ((found.with_readers, "ahead", 8), (found.without_readers, "alone", 2)):
        lines = read_metrics(tmp_path / folder / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(2 + steps))
        assert {name.split("/")[0] for name in lines[0] if "/" in name} == {"image", "region", "video"}
        waited = sum(line["data_wait_percent"] * line["seconds"] for line in lines[2:]) / 100
        assert run.steps == steps
        assert run.wait_fraction == pytest.approx(waited / sum(line["seconds"] for line in lines[2:]))
        assert 0 <= run.wait_fraction < 1
    assert found.without_readers.wait_fraction > 0  # reading counts as waiting without prefetching
    assert "waiting for data" in describe(few, found)
    shown = json.loads(json.dumps(to_json(few, found)))
    assert shown["with_readers"]["wait_fraction"] == found.with_readers.wait_fraction
    assert shown["corpus"]["counts"]["samples"] == 300


@pytest.mark.slow
def test_training_on_two_hundred_thousand_samples_hardly_waits(tmp_path):
    (tmp_path / "shards").mkdir()
    shards = write_world(tmp_path / "shards", 200_000, shards_for(200_000))
    found = measure(shards, tmp_path, steps=240, readers=2, model=SMALL)
    print(describe(shards, found))
    assert shards.counts["keys"] == shards.counts["samples"] == 200_000
    assert (shards.num_scenes, shards.num_clips) == (10_000, 1_000)
    assert found.with_readers.steps == 240
    assert found.with_readers.wait_fraction < MOST_WAITING
    # Without prefetching the metric includes reading: more than the limit, and about the cost of reading.
    alone = found.without_readers
    assert alone.wait_fraction > MOST_WAITING
    assert alone.wait_fraction > 0.5 * found.reading_cpu_seconds / alone.step_cpu_seconds
