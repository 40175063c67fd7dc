"""Boxes through crop, mirror and resize, patch masks and row choice, against golden values."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from x2vlm.data.loading.regions import (
    RegionConfig,
    choose_rows,
    draw_crop_around,
    patch_mask,
    place_boxes,
    whole_image_row,
)
from x2vlm.data.loading.transforms import cut_and_resize
from x2vlm.data.randomness import Draws
from x2vlm.samples import Box


@pytest.mark.parametrize("image_res", [64, 80, 224, 384])
def test_patch_masks_agree_with_the_reference(golden_dir, image_res):
    golden = load_file(golden_dir / "data/patch_masks/tensors.safetensors")
    for box, mask in zip(golden[f"boxes_xywh_{image_res}_f64"], golden[f"mask_{image_res}"], strict=True):
        assert (patch_mask(box, image_res, 16) == mask[1:]).all(), box


@pytest.mark.parametrize("name", ["regions_64", "regions_careful_flip"])
def test_placed_boxes_agree_with_the_reference(golden_dir, name):
    case = json.loads((golden_dir / f"data/{name}/case.json").read_text())
    golden = load_file(golden_dir / f"data/{name}/tensors.safetensors")
    config = RegionConfig(
        max_regions=case["max_regions"], min_share_in_crop=case["min_perc_in_image"], whole_pixels=True
    )
    rows = []
    for image in case["rows"]:
        placed = [whole_image_row(case["image_res"], 16)] if image["caption"] else []
        placed += place_boxes(
            [Box(*item["bb"]) for item in image["elems"]],
            image["elem_order"],
            tuple(image["crop_xyxy"]),
            image["flipped"],
            case["image_res"],
            16,
            case["max_regions"] - len(placed),
            config,
        )
        assert len(placed) == image["n_out"]
        rows += placed
    assert np.abs(np.array([row.box_cxcywh for row in rows]) - golden["out_target_bbox"]).max() < 1e-6
    assert (np.stack([row.patch_mask_P for row in rows]) == golden["out_image_atts"][:, 1:]).all()
    assert [row.is_whole_image for row in rows] == golden["out_is_image"].astype(bool).tolist()


@pytest.mark.parametrize("number", [0, 2])
def test_cut_images_agree_with_the_reference(golden_dir, number):
    case = json.loads((golden_dir / "data/regions_64/case.json").read_text())
    golden = load_file(golden_dir / "data/regions_64/tensors.safetensors")
    row = case["rows"][number]
    image = Image.fromarray(golden[f"raw_image_{number}"])
    cut = np.asarray(cut_and_resize(image, tuple(row["crop_xyxy"]), row["flipped"], 64)).transpose(2, 0, 1)
    assert np.abs(cut / 255 - golden[f"image_{number}"]).max() < 1e-6


sizes = st.tuples(st.integers(20, 400), st.integers(20, 400))
fractions = st.tuples(*[st.floats(0, 1)] * 4)


def _box(size, fraction):
    width, height = size
    x, y = fraction[0] * (width - 1), fraction[1] * (height - 1)
    return Box(x, y, max(0.5, fraction[2] * (width - x)), max(0.5, fraction[3] * (height - y)))


@settings(deadline=None)
@given(sizes, fractions, st.integers(), st.booleans())
def test_the_anchor_survives_its_own_crop(size, fraction, label, flipped):
    box = _box(size, fraction)
    left, top, right, bottom = crop = draw_crop_around(box, *size, Draws(label))
    assert left <= box.x
    assert top <= box.y
    assert right >= min(box.x + box.w, size[0])
    assert bottom >= min(box.y + box.h, size[1])
    (row,) = place_boxes([box], [0], crop, flipped, 64, 16, 5, RegionConfig())
    cx, cy, w, h = row.box_cxcywh
    assert -1e-9 <= cx - w / 2 <= cx + w / 2 <= 1 + 1e-9
    assert -1e-9 <= cy - h / 2 <= cy + h / 2 <= 1 + 1e-9
    assert row.patch_mask_P.any()


@settings(deadline=None)
@given(sizes, fractions, st.integers())
def test_mirroring_twice_changes_nothing(size, fraction, label):
    box = _box(size, fraction)
    crop = draw_crop_around(box, *size, Draws(label))
    straight, mirrored = (place_boxes([box], [0], crop, flip, 64, 16, 1, RegionConfig())[0] for flip in (False, True))
    assert mirrored.box_cxcywh[0] == pytest.approx(1 - straight.box_cxcywh[0])
    assert mirrored.box_cxcywh[1:] == pytest.approx(straight.box_cxcywh[1:])


def test_exactly_half_inside_is_not_enough():
    box, config = Box(10, 0, 20, 10), RegionConfig(min_share_in_crop=0.5)
    assert place_boxes([box], [0], (0, 0, 20, 40), False, 64, 16, 5, config) == []
    assert len(place_boxes([box], [0], (0, 0, 21, 40), False, 64, 16, 5, config)) == 1


@given(st.integers(1, 40), st.integers(1, 60), st.integers())
def test_rows_are_dropped_or_repeated_evenly(num_rows, num_wanted, label):
    chosen = choose_rows(num_rows, num_wanted, Draws(label))
    counts = [chosen.count(row) for row in range(num_rows)]
    assert len(chosen) == num_wanted
    assert chosen == sorted(chosen)
    assert max(counts) - min(counts) <= 1


def test_row_counts_agree_with_the_reference(golden_dir):
    """The reference draws in another order; how often each row may occur is the same."""
    for case in json.loads((golden_dir / "data/region_collate/case.json").read_text())["cases"]:
        total = sum(case["rows_per_image"])
        ours = choose_rows(total, case["batch_size"], Draws("collate"))
        theirs = sorted(case["row_ids"])
        assert len(ours) == len(theirs)
        assert sorted(map(ours.count, range(total))) == sorted(map(theirs.count, range(total)))
