"""The copies that the procedural world plants among its sources, found as its truth says.

The truth names the weakest method that can find a copy (`pipelines.corpora.world.drawing.shots.VARIANTS`); a mirrored
or cropped test image is found without an embedding, by the test image's own variants.
"""

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.corpora.world.config import CLIP_SOURCES, WorldConfig, is_held_out, source_of
from pipelines.corpora.world.drawing.shots import Shot, evaluation_kind, held_out_shot, row_noise, take_shot
from x2vlm.data.duplicates.decontamination import DecontaminationConfig, Evaluation, Training, find_leaks
from x2vlm.data.duplicates.duplicates import ROW_SCHEMA, DuplicateConfig, find_duplicates
from x2vlm.data.duplicates.evaluation_ids import EVALUATION_ID_SCHEMA
from x2vlm.data.duplicates.identities import ID_SCHEMA, identify
from x2vlm.data.duplicates.leaks import EVALUATION_SCHEMA, TRAIN_SCHEMA
from x2vlm.data.media.images import open_image
from x2vlm.data.media.phash import fingerprint, variants

Row = dict[str, Any]
LEAK_METHODS = {
    "exact": "sha256",
    "reencoded": "phash",
    "half_size": "phash",
    "cropped": "phash_cropped",
    "flipped": "phash_mirrored",
}


def looks(data: bytes, image: Image.Image) -> Row:
    size = {"width": image.width, "height": image.height, "num_captions": 1}
    return {"kind": "image", "sha256": hashlib.sha256(data).hexdigest()} | size | asdict(fingerprint([image]))


def train_row(shot: Shot) -> Row:
    return {"key": f"k{shot.index:06}", "source": shot.source} | looks(shot.data, open_image(shot.data))


def shown_rows(shot: Shot) -> list[Row]:
    image = open_image(shot.data)
    base = {"eval_set": "coco", "split": "test", "eval_id": str(shot.index)}
    plain = base | {"variant": ""} | looks(shot.data, image)
    return [plain, *(base | {"variant": name} | looks(b"", one) for name, one in variants(image))]


def origin(shot: Shot) -> int:
    return int(shot.detail.split(" scene ")[1].split(" ")[0])


def world(planted: str, count: int) -> tuple[WorldConfig, list[Shot]]:
    """The first `count` shots with that kind of noise, in a world so small that most of them share origins' sources."""
    config = WorldConfig(scenes=40 * count)
    images = (
        one for one in range(config.scenes) if not is_held_out(one) and source_of(config, one) not in CLIP_SOURCES
    )
    numbers = [one for one in images if row_noise(config, one) == planted][:count]
    return config, [shot for shot in (take_shot(config, one) for one in numbers) if shot.variant]


@pytest.mark.parametrize("count", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_planted_leaks_are_found_by_their_method_and_nothing_else(count: int) -> None:
    config, shots = world("test_leak", count)
    assert {shot.variant for shot in shots} == set(LEAK_METHODS)
    origins = {origin(shot) for shot in shots}
    held_out = [one for one in range(config.scenes) if is_held_out(one) and evaluation_kind(one) == "image"]
    others = [one for one in held_out if one not in origins][:count]
    images = [row for one in sorted(origins) + others for row in shown_rows(held_out_shot(config, one))]
    clean = [
        take_shot(config, one) for one in range(2 * count) if row_noise(config, one) == "" and not is_held_out(one)
    ]
    clean = [shot for shot in clean if shot.source not in CLIP_SOURCES][:count]
    rows = [train_row(shot) for shot in (*shots, *clean)]
    training = Training(pa.Table.from_pylist(rows, schema=TRAIN_SCHEMA), ID_SCHEMA.empty_table())
    theirs = Evaluation(pa.Table.from_pylist(images, schema=EVALUATION_SCHEMA), EVALUATION_ID_SCHEMA.empty_table())
    found = find_leaks(training, theirs, identify([]), DecontaminationConfig()).to_pylist()
    wanted = {(f"k{shot.index:06}", str(origin(shot))): LEAK_METHODS[shot.variant] for shot in shots}
    methods: dict[tuple[str, str], set[str]] = {}
    for leak in found:
        methods.setdefault((leak["key"], leak["eval_id"]), set()).add(leak["method"])
    # Two leaks of one test image lead to each other's rows too, so exactly the planted pairs are found.
    assert set(methods) == set(wanted)
    assert {pair: wanted[pair] for pair in wanted if wanted[pair] not in methods[pair]} == {}


@pytest.mark.parametrize("count", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_planted_duplicates_are_found_and_strangers_stay(count: int) -> None:
    config, shots = world("duplicate", count)
    origins = [take_shot(config, one) for one in sorted({origin(shot) for shot in shots})]
    rows = [train_row(shot) for shot in (*shots, *origins)]
    found = find_duplicates(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), DuplicateConfig(priority=(), share=()))
    keeper = dict(zip(found["key"].to_pylist(), found["keeper"].to_pylist(), strict=True))
    image = {f"k{shot.index:06}": origin(shot) for shot in shots} | {f"k{one.index:06}": one.index for one in origins}
    assert all(image[key] == image[other] for key, other in keeper.items()), "strangers are one cluster"
    missed = []
    for shot in shots:
        own, first = f"k{shot.index:06}", f"k{origin(shot):06}"
        if keeper.get(own, own) != keeper.get(first, first):
            missed.append(shot.variant)
    # Without an embedding nothing finds a mirrored copy, and a crop only where six bits suffice: stated, not hidden.
    assert set(missed) <= {"flipped", "cropped"}
    assert missed.count("flipped") == sum(shot.variant == "flipped" for shot in shots)


def test_a_world_of_noise_has_all_kinds_of_copies() -> None:
    """Guard of the two tests above: what they draw holds copies of every kind, none without its original."""
    _, shots = world("duplicate", 25)
    assert {shot.variant for shot in shots} == set(LEAK_METHODS)
    assert len(np.unique([shot.index for shot in shots])) == len(shots) >= 20
