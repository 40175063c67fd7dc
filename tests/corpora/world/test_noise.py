"""Planted noise: as often as stated, and really what the truth calls it."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.corpora.world.config import BOX_SOURCES, CLIP_SOURCES, EVALUATION, WorldConfig, is_held_out, source_of
from pipelines.corpora.world.drawing.scene import make_scene
from pipelines.corpora.world.drawing.shots import evaluation_kind, image_id, row_noise
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES
from tests.support.corpora.world import World

SIGMAS = 5


def assert_rate(found: int, trials: int, rate: float) -> None:
    spread = SIGMAS * (trials * rate * (1 - rate)) ** 0.5
    assert abs(found - trials * rate) <= spread + 1, f"{found} of {trials}, {rate} expected"


def test_row_noise_is_as_frequent_as_stated() -> None:
    config = WorldConfig(scenes=12_000)
    rates = config.noise
    kinds = [
        (source_of(config, index), row_noise(config, index)) for index in range(config.scenes) if not is_held_out(index)
    ]
    images = Counter(kind for source, kind in kinds if source not in CLIP_SOURCES)
    for kind in ("dead_link", "small_image", "extreme_aspect", "duplicate", "test_leak"):
        assert_rate(images[kind], sum(source not in CLIP_SOURCES for source, _ in kinds), getattr(rates, kind))
    web = [kind for source, kind in kinds if source not in (*CLIP_SOURCES, *BOX_SOURCES)]
    assert_rate(web.count("mismatched_caption"), len(web), rates.mismatched_caption)
    assert_rate(web.count("empty_text"), len(web), rates.empty_text)
    laion = [kind for source, kind in kinds if source == "laion_en"]
    assert_rate(laion.count("foreign_text"), len(laion), rates.foreign_text)
    webvid = [kind for source, kind in kinds if source == "webvid"]
    assert_rate(webvid.count("one_word_text"), len(webvid), rates.one_word_text)


def test_planted_items_are_as_frequent_as_stated(plain_world: World, noisy_world: World) -> None:
    for world in (plain_world, noisy_world):
        rates = world.config.noise
        planted = Counter((row["source"], row["planted"]) for row in world.truth if row["unit"] == "concept")
        for source in ("coco", "objects365", "openimages"):
            images = len(world.of(source, "row"))
            assert_rate(planted[source, "tiny_box"], images, rates.tiny_box)
            assert_rate(planted[source, "invalid_box"], images, rates.invalid_box)
        regions = len(world.of("visual_genome", "row"))
        assert_rate(planted["visual_genome", "near_duplicate_region"], regions, rates.near_duplicate_region)
        assert_rate(planted["coco", "crowd_box"], len(world.of("coco", "row")), rates.crowd_box)


def test_counts_of_the_world_are_those_of_the_truth(noisy_world: World) -> None:
    for source, counts in noisy_world.built.counts.items():
        assert counts == dict(Counter(row["unit"] for row in noisy_world.truth if row["source"] == source))
    planted = Counter((row["source"], f"{row['unit']}:{row['planted']}") for row in noisy_world.truth if row["planted"])
    stated = noisy_world.built.planted
    assert dict(planted) == {(source, kind): n for source, kinds in stated.items() for kind, n in kinds.items()}


@pytest.mark.parametrize("kind", ["duplicate", "test_leak"])
def test_repeated_images_are_what_the_truth_says(noisy_world: World, kind: str) -> None:
    checked = Counter()
    for row in noisy_world.truth:
        if row["planted"] != kind or row["unit"] != "media":
            continue
        matched = re.fullmatch(r"(\w+) of scene (\d+) \((\w+)\)", row["detail"])
        assert matched, row["detail"]
        variant, origin, source = matched[1], int(matched[2]), matched[3]
        assert source == source_of(noisy_world.config, origin)
        if kind == "test_leak":
            assert is_held_out(origin)
            assert evaluation_kind(origin) == "image"
            assert row["expected_stage"] == "decontaminate"
        copy, first = image_file(noisy_world, row["scene"]), image_file(noisy_world, origin)
        check_variant(variant, copy, first)
        assert row["expected_rule"] == {"exact": "sha256", "reencoded": "phash", "half_size": "phash"}.get(
            variant, "embedding"
        )
        checked[variant] += 1
    assert sum(checked.values()) >= 8
    assert len(checked) >= 3


def image_file(world: World, index: int) -> Path:
    prefix = "COCO_val2014_" if source_of(world.config, index) == EVALUATION else ""
    return world.out / "media" / "images" / f"{prefix}{image_id(index):012d}.jpg"


def check_variant(variant: str, copy: Path, first: Path) -> None:
    same = hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(first.read_bytes()).digest()
    assert same == (variant == "exact")
    one, other = pixels(copy), pixels(first)
    height, width, _ = other.shape
    match variant:
        case "reencoded":
            assert copy.stat().st_size < first.stat().st_size
        case "half_size":
            other = other[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
        case "cropped":
            other = other[height // 40 : height - height // 40, width // 40 : width - width // 40]
        case "flipped":
            other = other[:, ::-1]
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 8


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=float)


def test_unusual_sizes_are_unusual(noisy_world: World) -> None:
    seen = Counter()
    for row in noisy_world.truth:
        if row["unit"] == "row" and row["planted"] in ("small_image", "extreme_aspect") and row["source"] != "refcoco":
            with Image.open(image_file(noisy_world, row["scene"])) as image:
                assert row["detail"] == f"{image.width} x {image.height}"
                short, long = sorted(image.size)
            small = row["planted"] == "small_image"
            assert (short < 224 and long <= 3 * short) if small else (short >= 224 and long > 3 * short)
            seen[row["planted"]] += 1
    assert min(seen["small_image"], seen["extreme_aspect"]) >= 5


def test_a_mismatched_text_is_about_a_scene_without_any_such_thing(noisy_world: World) -> None:
    rows = [row for row in noisy_world.truth if row["planted"] == "mismatched_caption" and row["unit"] == "row"]
    images = [row for row in rows if row["source"] not in CLIP_SOURCES]
    assert len(images) >= 3
    for row in images:
        other = make_scene(noisy_world.config, int(row["detail"].rsplit(" ", 1)[1]))
        here = {(thing["shape"], thing["colour"]) for thing in noisy_world.scenes[row["scene"]]["things"]}
        assert not here & {(thing.shape, thing.colour) for thing in other.things}


def test_clean_texts_name_what_is_there_and_mismatched_ones_do_not(noisy_world: World) -> None:
    lines = (noisy_world.out / "annotations" / "cc3m" / "Train_GCC-training.tsv").read_text().splitlines()
    lines += [
        line.split("\t")[1] for line in (noisy_world.out / "annotations/cc12m/cc12m.tsv").read_text().splitlines()
    ]
    rows = [*noisy_world.of("cc3m", "row"), *noisy_world.of("cc12m", "row")]
    seen = Counter()
    for row, line in zip(rows, lines, strict=True):
        things = noisy_world.scenes[row["scene"]]["things"]
        there = {(thing["colour"], thing["shape"]) for thing in things}
        named = set(re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", line))
        if row["planted"] == "mismatched_caption":
            assert not named & there
            seen["wrong"] += len(named)
        elif row["planted"] in ("", "dead_link"):
            assert named <= there
            seen["right"] += len(named)
    assert min(seen["wrong"], seen["right"]) >= 1
