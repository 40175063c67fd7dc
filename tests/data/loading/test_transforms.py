"""Images: the ten operations and the frame choice against golden values, and what a plan promises."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from tests.benchmarks.photos import SHIPPED
from x2vlm.data.loading.batch import MEAN, STD, normalised
from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.loading.transforms import (
    AugmentConfig,
    ImagePlan,
    cut_and_resize,
    cut_plan,
    draw_crop,
    draw_operations,
    evaluation_pixels,
    least_size_of,
    plan_image,
)
from x2vlm.data.media.decode import decode_image
from x2vlm.data.randomness import Draws


def test_evaluation_frames_are_exact(golden_dir):
    case = json.loads((golden_dir / "data/frames/case.json").read_text())
    for row in case["evaluation"]:
        assert choose_frames(row["frames"], row["wanted"]) == row["indexes"], row


def test_training_frames_span_what_the_reference_spans(golden_dir):
    case = json.loads((golden_dir / "data/frames/case.json").read_text())
    for row in case["training"]:
        chosen = [choose_frames(row["frames"], row["wanted"], Draws(label)) for label in range(200)]
        assert all(frames == sorted(frames) and len(frames) == row["wanted"] for frames in chosen)
        tolerance = max(1, 0.05 * row["frames"])  # extremes of finitely many draws
        assert np.abs(np.min(chosen, axis=0) - row["lowest"]).max() <= tolerance, row
        assert np.abs(np.max(chosen, axis=0) - row["highest"]).max() <= tolerance, row


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers())
def test_crops_lie_inside(width, height, label):
    left, top, right, bottom = draw_crop(width, height, Draws(label), 0.2)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_are_distributed_like_those_of_torchvision():
    image = torch.empty(3, 300, 400)
    ours = [draw_crop(400, 300, Draws(label), 0.2) for label in range(2000)]
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
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
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    plain, mirrored = (cut_plan(pixels, ImagePlan((0, 0, 32, 32), flip), 32) for flip in (False, True))
    assert torch.equal(mirrored, plain.flip(2))
    assert not any(plan_image(32, 32, Draws(n), AugmentConfig(flip_prob=1.0), False).flipped for n in range(20))


def _photos():
    return [decode_image(path.read_bytes()) for path in sorted(SHIPPED.glob("*.jpg"))[:12]]


def test_a_fast_cut_is_as_near_to_the_exact_filter_as_pillows():
    ours, pillows, between = [], [], []
    for number, pixels in enumerate(_photos()):
        left, top, right, bottom = crop = draw_crop(*pixels.shape[1::-1], Draws(number), 0.2)
        plan = ImagePlan(crop, number % 2 == 1)
        cut = pixels[top:bottom, left:right].permute(2, 0, 1)[None].double()
        exact = interpolate(cut, (224, 224), mode="bicubic", antialias=True)[0].clamp(0, 255)
        exact = exact.flip(2) if plan.flipped else exact
        pillow = torch.from_numpy(np.array(cut_and_resize(Image.fromarray(pixels.numpy()), crop, plan.flipped, 224)))
        assert torch.equal(cut_plan(pixels, plan, 224, parity="reference"), pillow.permute(2, 0, 1))
        fast = cut_plan(pixels, plan, 224).double()
        ours.append((fast - exact).square().mean())
        pillows.append((pillow.permute(2, 0, 1) - exact).square().mean())
        between.append((fast - pillow.permute(2, 0, 1)).square().mean())
    assert torch.stack(ours).mean() < 1.05 * torch.stack(pillows).mean()
    assert torch.stack(between).mean() < 255**2 / 10**5.5  # 55 dB


def test_a_scaled_copy_is_never_smaller_than_what_its_crop_needs():
    for label in range(300):
        width, height = Draws(label, "w").integer(100, 900), Draws(label, "h").integer(100, 900)
        crop = draw_crop(width, height, Draws(label), 0.2)
        least = least_size_of((width, height), crop, 100)
        assert least[0] * (crop[2] - crop[0]) >= 100 * width
        assert least[1] * (crop[3] - crop[1]) >= 100 * height


def test_pixels_are_normalised_with_the_statistics_of_clip():
    image = Image.new("RGB", (50, 20), (255, 0, 51))
    pixels = evaluation_pixels(image, 16)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert pixels.shape == (3, 16, 16)
    assert torch.allclose(pixels, expected[:, None, None].expand(3, 16, 16), atol=1e-6)


def test_bytes_become_the_numbers_that_numpy_would_make_of_them():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    expected = (pixels.numpy().astype(np.float32) / np.float32(255) - mean) / deviation
    assert (normalised(pixels).numpy() == expected).all()
    assert (normalised(pixels[0]).numpy() == expected[0]).all()
    assert pixels.dtype == torch.uint8
