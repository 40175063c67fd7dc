"""The ten operations: against the reference's bytes, against Pillow on photos, and alone as in a batch."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from safetensors.numpy import load_file

from tests.benchmarks.photos import SHIPPED
from x2vlm.data.loading import operations
from x2vlm.data.loading.config import AugmentConfig
from x2vlm.data.loading.operations import (
    COLOUR_OPS,
    GEOMETRY_OPS,
    Operation,
    apply_operation,
    apply_operations,
    operation_at,
)
from x2vlm.data.loading.transforms import cut_bytes, draw_operations
from x2vlm.data.media.decode import decode_image
from x2vlm.data.randomness import Draws

GOLDEN_OPERATIONS = {
    "AutoContrast": operation_at("autocontrast", 7, wraps=True),
    "Equalize": operation_at("equalize", 7),
    "Brightness": operation_at("brightness", 7),
    "Sharpness": operation_at("sharpness", 7, wraps=True),
    "ShearX": operation_at("shear_x", 7),
    "ShearY": operation_at("shear_y", 7, negative=True),
    "TranslateX": operation_at("translate_x", 7),
    "TranslateY": operation_at("translate_y", 7, negative=True),
    "Rotate": operation_at("rotate", 7),
    "Identity": operation_at("identity", 7),
}
PILLOW = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.36),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.36),
}


@pytest.fixture(scope="module")
def photos_NCHW():
    images = [decode_image(path.read_bytes()) for path in sorted(SHIPPED.glob("*.jpg"))[:6]]
    cut = [cut_bytes(pixels, (0, 0, *pixels.shape[1::-1]), False, 96) for pixels in images]
    flat = torch.full((3, 96, 96), 77, dtype=torch.uint8)  # one level: nothing to stretch or to even out
    two = flat.clone()
    two[:, 40:] = 78
    return torch.stack([*cut, flat, two])


def _channels_last(pixels_CHW):
    return pixels_CHW.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", GOLDEN_OPERATIONS)
def test_operations_agree_with_the_reference(golden_dir, name):
    golden = load_file(golden_dir / "data/augment/tensors.safetensors")
    pixels = torch.from_numpy(golden["image"]).permute(2, 0, 1)[None].contiguous()
    changed = _channels_last(apply_operation(pixels, GOLDEN_OPERATIONS[name])[0])
    difference = np.abs(changed.astype(int) - golden[f"out_{name}"])
    exact = ("AutoContrast", "Equalize", "Brightness", "Identity", "TranslateX", "TranslateY")
    # Interpolation and smoothing round differently in OpenCV: by one grey level, in 0.3 % of the bytes at most.
    assert difference.max() <= (0 if name in exact else 1)
    assert (difference > 0).mean() < 0.003


@pytest.mark.parametrize("name", PILLOW)
def test_colours_agree_with_pillow(photos_NCHW, name):
    changed = apply_operation(photos_NCHW, operation_at(name, 7))
    for before, after in zip(photos_NCHW, changed, strict=True):
        expected = np.asarray(PILLOW[name](Image.fromarray(_channels_last(before)))).astype(int)
        assert np.abs(_channels_last(after) - expected).max() <= (1 if name == "sharpness" else 0)


def test_sharpening_stays_within_bytes_by_default():
    pixels = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4:] = 255
    assert torch.equal(apply_operation(pixels, Operation("sharpness", 1.36)), pixels)
    assert not torch.equal(apply_operation(pixels, Operation("sharpness", 1.36, wraps=True)), pixels)


@pytest.mark.parametrize("amount", [7.0, -7.0, 200.0, 0.0])
def test_a_shift_by_whole_pixels_is_the_bilinear_one(photos_NCHW, monkeypatch, amount):
    shifted = [apply_operation(photos_NCHW, Operation(name, amount)) for name in ("translate_x", "translate_y")]
    close = [apply_operation(photos_NCHW, Operation(name, amount + 1e-9)) for name in ("translate_x", "translate_y")]
    for ours, bilinear in zip(shifted, close, strict=True):
        assert torch.equal(ours, bilinear)


def test_each_image_gets_its_own_operations_in_their_order(photos_NCHW):
    first, second = operation_at("rotate", 7), operation_at("brightness", 7)
    own = [(first, second), (second, first), (), (second,), (Operation("identity"),), (first,), (second, second), ()]
    before = photos_NCHW.clone()
    changed = apply_operations(photos_NCHW, own)
    assert torch.equal(photos_NCHW, before)
    for number, steps in enumerate(own):
        expected = photos_NCHW[number : number + 1]
        for step in steps:
            expected = apply_operation(expected, step)
        assert torch.equal(changed[number : number + 1], expected), steps
    assert not torch.equal(changed[0], apply_operation(apply_operation(photos_NCHW[:1], second), first)[0])


@pytest.mark.parametrize("name", [*COLOUR_OPS, *GEOMETRY_OPS])
def test_a_device_without_the_shortcuts_gives_the_same_bytes(photos_NCHW, monkeypatch, name):
    """The way a GPU goes, whole batch and no host tables, on a CPU that is told it is none."""
    expected = apply_operation(photos_NCHW, operation_at(name, 7))
    monkeypatch.setattr(operations, "_is_host", lambda pixels: False)
    assert torch.equal(apply_operation(photos_NCHW, operation_at(name, 7)), expected)


def negated_as_a_byte(channel):
    """AutoContrast as the reference computes its table: the darkest level is negated as an unsigned byte."""
    low, high = channel.min(), channel.max()
    if high <= low:
        return channel
    scale = 255 / (int(high) - int(low))
    negated = (256 - int(low)) % 256
    return np.clip(np.arange(256) * scale + negated * scale, 0, 255).astype(np.uint8)[channel]


def test_autocontrast_of_the_reference_turns_channels_white(photos_NCHW):
    """Every channel whose darkest level is above 0; by default, and where it is 0, the true operation."""
    bright = photos_NCHW.clamp(min=3)
    bright[:, 2] = photos_NCHW[:, 2]
    true, parity = (apply_operation(bright, operation_at("autocontrast", 7, wraps=wraps)) for wraps in (False, True))
    seen = set()
    for before, after, expected in zip(bright.flatten(0, 1), parity.flatten(0, 1), true.flatten(0, 1), strict=True):
        assert np.array_equal(after.numpy(), negated_as_a_byte(before.numpy()))
        flat, starts_at_0 = bool(before.min() == before.max()), bool(before.min() == 0)
        seen.add((flat, starts_at_0))
        if flat or starts_at_0:
            assert torch.equal(after, expected)
        else:
            assert set(after.unique().tolist()) == {255}
            assert expected.min() == 0
    assert {(False, True), (False, False), (True, False)} <= seen


@pytest.mark.parametrize("parity", [None, "reference"])
def test_only_the_augmentation_parity_of_an_experiment_asks_for_it(photos_NCHW, parity):
    config = AugmentConfig(num_ops=1, op_prob=1.0, parity=parity)
    drawn = {draw_operations(Draws("ops", label), config, COLOUR_OPS) for label in range(60)}
    (own,) = {operations for operations in drawn if operations[0].name == "autocontrast"}
    bright = photos_NCHW[:1].clamp(min=9)
    changed = apply_operations(bright, [own])
    assert (changed.min() == 255) == (parity == "reference")
