"""Pictures: the ten operations and the frame choice against golden values, and what a plan promises."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from torchvision.transforms import RandomResizedCrop

from x2vlm.data.frames import choose_clips, choose_frames
from x2vlm.data.randomness import Draws
from x2vlm.data.transforms import (
    MEAN,
    STD,
    AugmentConfig,
    Operation,
    PicturePlan,
    apply_operation,
    apply_plan,
    draw_crop,
    draw_operations,
    evaluation_pixels,
    operation_at,
    plan_picture,
)

GOLDEN_OPERATIONS = {
    "AutoContrast": operation_at("autocontrast", 7),
    "Equalize": operation_at("equalize", 7),
    "Brightness": operation_at("brightness", 7),
    "Sharpness": operation_at("sharpness", 7),
    "ShearX": operation_at("shear_x", 7),
    "ShearY": operation_at("shear_y", 7, negative=True),
    "TranslateX": operation_at("translate_x", 7),
    "TranslateY": operation_at("translate_y", 7, negative=True),
    "Rotate": operation_at("rotate", 7),
    "Identity": operation_at("identity", 7),
}


@pytest.mark.parametrize("name", GOLDEN_OPERATIONS)
def test_operations_agree_with_the_reference(shared_dir, name):
    golden = load_file(shared_dir / "golden/data/augment/tensors.safetensors")
    picture = apply_operation(Image.fromarray(golden["image"]), GOLDEN_OPERATIONS[name], parity="reference")
    difference = np.abs(np.asarray(picture).astype(int) - golden[f"out_{name}"])
    # Interpolation rounds differently in OpenCV, by one grey level.
    assert difference.max() <= (0 if name in ("AutoContrast", "Equalize", "Brightness", "Identity") else 1)


def test_sharpening_stays_within_bytes_by_default():
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[4:] = 255
    sharp = np.asarray(apply_operation(Image.fromarray(pixels), Operation("sharpness", 1.36)))
    assert (sharp[4:] == 255).all()
    assert (sharp[:4] == 0).all()


def test_evaluation_frames_are_exact(shared_dir):
    case = json.loads((shared_dir / "golden/data/frames/case.json").read_text())
    for row in case["evaluation"]:
        assert choose_frames(row["frames"], row["wanted"]) == row["indexes"], row


def test_training_frames_span_what_the_reference_spans(shared_dir):
    case = json.loads((shared_dir / "golden/data/frames/case.json").read_text())
    for row in case["training"]:
        chosen = [choose_frames(row["frames"], row["wanted"], Draws(label)) for label in range(200)]
        assert all(frames == sorted(frames) and len(frames) == row["wanted"] for frames in chosen)
        tolerance = max(1, 0.05 * row["frames"])  # extremes of finitely many draws
        assert np.abs(np.min(chosen, axis=0) - row["lowest"]).max() <= tolerance, row
        assert np.abs(np.max(chosen, axis=0) - row["highest"]).max() <= tolerance, row


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8), st.integers(1, 20), st.integers())
def test_clips_are_neighbours_with_enough_frames_and_no_silent_one(clips, min_frames, label):
    lengths, silent = [length for length, _ in clips], [is_silent for _, is_silent in clips]
    chosen = choose_clips(lengths, silent, min_frames, Draws(label))
    spoken = [number for number, is_silent in enumerate(silent) if not is_silent]
    assert chosen == [number for number in spoken if chosen and chosen[0] <= number <= chosen[-1]]
    assert sum(lengths[number] for number in chosen) >= min_frames or chosen == spoken
    # Grown one clip at a time: without one of its ends it was not enough yet.
    for start, end in ((1, None), (None, -1)):
        shorter = sum(lengths[number] for number in chosen[start:end])
        if shorter < min_frames:
            break
    else:
        assert len(chosen) <= 1


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers())
def test_crops_lie_inside(width, height, label):
    left, top, right, bottom = draw_crop(width, height, Draws(label), 0.2)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_are_distributed_like_those_of_torchvision():
    picture = torch.empty(3, 300, 400)
    ours = [draw_crop(400, 300, Draws(label), 0.2) for label in range(2000)]
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(picture, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    ours_measured = [(left, top, right - left, bottom - top) for left, top, right, bottom in ours]
    theirs_measured = [(left, top, width, height) for top, left, height, width in theirs]
    # Deviations are below 110 pixels, so means of 2,000 differ by less than 4 * 110 * sqrt(2 / 2000) = 14.
    assert np.abs(np.mean(ours_measured, axis=0) - np.mean(theirs_measured, axis=0)).max() < 14
    assert np.abs(np.std(ours_measured, axis=0) - np.std(theirs_measured, axis=0)).max() < 14


def test_operations_are_kept_half_of_the_time_and_go_both_ways():
    config = AugmentConfig()
    drawn = [item for label in range(2000) for item in draw_operations(Draws(label), config, ("rotate",))]
    assert len(drawn) == pytest.approx(2000, abs=150)
    assert {item.amount for item in drawn} == {21.0, -21.0}


def test_a_mirrored_plan_mirrors_and_a_forbidden_flip_never_happens():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain, mirrored = (apply_plan(image, PicturePlan((0, 0, 32, 32), flip), 32) for flip in (False, True))
    assert torch.equal(mirrored, plain.flip(2))
    assert not any(plan_picture(32, 32, Draws(n), AugmentConfig(flip_prob=1.0), False).flipped for n in range(20))


def test_pixels_are_normalised_with_the_statistics_of_clip():
    image = Image.new("RGB", (50, 20), (255, 0, 51))
    pixels = evaluation_pixels(image, 16)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert pixels.shape == (3, 16, 16)
    assert torch.allclose(pixels, expected[:, None, None].expand(3, 16, 16), atol=1e-6)
