"""The ten augmentation operations of training, on bytes (N, C, H, W) on any device.

They are the last step before normalisation, so they run on the device of the model (`Batch.float_pixels`): the loader
then costs a fifth less, and the cost on a GPU is negligible. On a CPU they are four to ten times faster than Pillow's
(a rotation of 224 x 224 pixels takes 0.4 CPU ms instead of 1.0) and give the reference's bytes to within one grey
level. OpenCV's warps take 0.3 ms, but only know 32nds of a pixel: up to 4 levels from the same bytes. N images, C
channels, H W pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

GREY = 128  # fill value outside the image

# At strength 7 of 10 (the reference's only setting): enhancement, shear, shift in pixels, degrees.
ENHANCE_SPAN, ENHANCE_FLOOR, MAX_SHEAR, MAX_SHIFT_PIXELS, MAX_DEGREES = 1.8, 0.1, 0.3, 10.0, 30.0
COLOUR_OPS = ("identity", "autocontrast", "equalize", "brightness", "sharpness")
GEOMETRY_OPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")

Affine = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Operation:
    """One change of an image: its name, and how much (pixels, degrees, factor), signed.

    `wraps`: bytes wrap around as in the reference. Sharpened values do outside 0..255; and its autocontrast negates the
    darkest level as a byte, so that every channel whose darkest level is above 0 becomes white.
    """

    name: str
    amount: float = 0.0
    wraps: bool = False


def operation_at(name: str, strength: float, negative: bool = False, wraps: bool = False) -> Operation:
    """The operation `name` at a strength of 0 to 10."""
    relative_strength = strength / 10
    if name in ("brightness", "sharpness"):
        return Operation(name, relative_strength * ENHANCE_SPAN + ENHANCE_FLOOR, wraps and name == "sharpness")
    if name == "autocontrast":
        return Operation(name, wraps=wraps)
    largest = {"shear": MAX_SHEAR, "translate": MAX_SHIFT_PIXELS, "rotate": MAX_DEGREES}.get(name.split("_")[0], 0.0)
    return Operation(name, -relative_strength * largest if negative else relative_strength * largest)


def apply_operations(pixels_NCHW: Tensor, operations: Sequence[Sequence[Operation]]) -> Tensor:
    """New bytes, each image after its own operations in order."""
    changed = pixels_NCHW.clone(memory_format=torch.contiguous_format)
    for round_number in range(max(map(len, operations), default=0)):
        groups: dict[Operation, list[int]] = {}
        for number, own in enumerate(operations):
            if round_number < len(own) and own[round_number].name != "identity":
                groups.setdefault(own[round_number], []).append(number)
        _apply_round(changed, groups)
    return changed


def _apply_round(pixels_NCHW: Tensor, groups: dict[Operation, list[int]]) -> None:
    if _is_host(pixels_NCHW):  # one image stays in the cache, many do not
        for operation, numbers in groups.items():
            for number in numbers:
                pixels_NCHW[number] = apply_operation(pixels_NCHW[number : number + 1], operation)[0]
        return
    order = torch.tensor([number for numbers in groups.values() for number in numbers], dtype=torch.long).pin_memory()
    everything = order.to(pixels_NCHW.device, non_blocking=True)  # pinned: nothing waits for the GPU
    start = 0
    for operation, numbers in groups.items():
        index = everything[start : start + len(numbers)]
        start += len(numbers)
        pixels_NCHW.index_copy_(0, index, apply_operation(pixels_NCHW.index_select(0, index), operation))


def apply_operation(pixels_NCHW: Tensor, operation: Operation) -> Tensor:
    """All images after one operation; the input is not changed, but may be returned."""
    name, amount = operation.name, operation.amount
    if name == "sharpness":
        return _sharpened(pixels_NCHW, amount, operation.wraps)
    if name == "autocontrast":
        return _autocontrast(pixels_NCHW, operation.wraps)
    if name in _GEOMETRY:
        return _moved(pixels_NCHW, name, amount)
    return _COLOUR[name](pixels_NCHW, amount)


def _autocontrast(pixels_NCHW: Tensor, wraps: bool) -> Tensor:
    """Each channel stretched to 0..255, as Pillow does; a channel of one level stays as it is."""
    channels = pixels_NCHW.flatten(2)
    low, high = (edge.double()[:, :, None] for edge in (channels.amin(2), channels.amax(2)))  # aminmax: 9 times slower
    # Not 255.0 / tensor: torch would multiply by the reciprocal, and up to 2 % of an image's bytes would be one too
    # small.
    scale = torch.where(high > low, torch.full_like(high, 255.0) / (high - low), 1.0)
    negated = (256.0 - low).remainder(256.0) if wraps else -low  # as a byte, or as a number
    offset = torch.where(high > low, negated * scale, 0.0)
    return _looked_up(pixels_NCHW, _levels(pixels_NCHW) * scale + offset)


def _equalize(pixels_NCHW: Tensor, amount: float) -> Tensor:
    """Each channel's histogram equalised, as Pillow does."""
    counts = _histograms(pixels_NCHW)
    last = counts.gather(2, ((counts > 0) * torch.arange(256, device=counts.device)).amax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    before = counts.cumsum(2) - counts
    levels = (step // 2 + before) // step.clamp(min=1)
    return _looked_up(pixels_NCHW, torch.where(step > 0, levels, _levels(pixels_NCHW).long()))


def _brightness(pixels_NCHW: Tensor, factor: float) -> Tensor:
    return _looked_up(pixels_NCHW, (_levels(pixels_NCHW) * factor).expand(*pixels_NCHW.shape[:2], 256))


def _is_host(pixels: Tensor) -> bool:
    return pixels.device.type == "cpu"


def _levels(pixels: Tensor) -> Tensor:
    """0..255 in double precision."""
    return torch.arange(256, dtype=torch.float64, device=pixels.device)


def _histograms(pixels_NCHW: Tensor) -> Tensor:
    """(N, C, 256): how often each channel has each byte."""
    num, channels, height, width = pixels_NCHW.shape
    if _is_host(pixels_NCHW):  # a third of the time of adding one by one
        planes = pixels_NCHW.reshape(num * channels, -1)
        return torch.stack([torch.bincount(plane, minlength=256) for plane in planes]).view(num, channels, 256)
    ones = torch.ones((), dtype=torch.long, device=pixels_NCHW.device).expand(num, channels, height * width)
    zeros = torch.zeros(num, channels, 256, dtype=torch.long, device=pixels_NCHW.device)
    return zeros.scatter_add_(2, pixels_NCHW.flatten(2).long(), ones)


def _looked_up(pixels_NCHW: Tensor, tables_NC256: Tensor) -> Tensor:
    """Every byte replaced by the entry of its channel's table, which is truncated to whole bytes first."""
    tables = tables_NC256.clamp(0, 255).to(torch.uint8)
    if not _is_host(pixels_NCHW):
        return tables.gather(2, pixels_NCHW.flatten(2).long()).view_as(pixels_NCHW)
    # bytes.translate: half the time of indexing, which makes 64-bit indexes first.
    planes, entries = pixels_NCHW.flatten(0, 1), tables.flatten(0, 1)
    translated = [
        plane.numpy().tobytes().translate(table.numpy().tobytes()) for plane, table in zip(planes, entries, strict=True)
    ]
    return torch.frombuffer(bytearray(b"".join(translated)), dtype=torch.uint8).view(pixels_NCHW.shape)


def _sharpened(pixels_NCHW: Tensor, factor: float, wraps: bool) -> Tensor:
    """Away from the smoothed image (a 3 x 3 kernel of ones with 5 in the middle); the edge is unchanged."""
    original = pixels_NCHW.to(torch.float32)
    inner = original[..., 1:-1, 1:-1]
    rows = original[..., :-2, :] + original[..., 1:-1, :] + original[..., 2:, :]
    squares = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = squares.add_(inner, alpha=4.0).div_(13.0).add_(0.5).floor_()  # 13ths: never halfway between two
    sharp = smooth.lerp_(inner, factor)
    sharp = sharp.trunc_().remainder_(256.0) if wraps else sharp.clamp_(0.0, 255.0)
    result = pixels_NCHW.clone()
    result[..., 1:-1, 1:-1] = _cut_to_bytes(sharp)
    return result


def _cut_to_bytes(values: Tensor) -> Tensor:
    """Numbers in [0, 256) truncated to bytes."""
    if _is_host(values):
        return torch.from_numpy(values.numpy().astype(np.uint8))  # 0.04 ms an image, torch's own takes 0.09
    return values.to(torch.uint8)


def _moved(pixels_NCHW: Tensor, name: str, amount: float) -> Tensor:
    """Bilinear; blends into grey over the pixel at the edge."""
    num, _, height, width = pixels_NCHW.shape
    if name.startswith("translate") and amount == round(amount):
        return _shifted(pixels_NCHW, round(amount), 3 if name == "translate_x" else 2)
    grid = _grid(name, amount, width, height, pixels_NCHW.device).expand(num, -1, -1, -1)
    around_grey = pixels_NCHW.to(torch.float32).sub_(float(GREY))
    return _cut_to_bytes(grid_sample(around_grey, grid, "bilinear", "zeros", align_corners=True).add_(GREY + 0.5))


def _shifted(pixels_NCHW: Tensor, amount: int, dim: int) -> Tensor:
    """The image moved by whole pixels, to the left or up for positive amounts."""
    amount = max(-pixels_NCHW.shape[dim], min(amount, pixels_NCHW.shape[dim]))
    kept = pixels_NCHW.shape[dim] - abs(amount)
    result = torch.full_like(pixels_NCHW, GREY)
    result.narrow(dim, max(0, -amount), kept).copy_(pixels_NCHW.narrow(dim, max(0, amount), kept))
    return result


@functools.lru_cache(32)  # an experiment has one strength: six grids for each size
def _grid(name: str, amount: float, width: int, height: int, device: torch.device) -> Tensor:
    """(H, W, 2): where every pixel of the result lies in the original, -1 and 1 being its outermost pixels."""
    a, b, c, d, e, f = _GEOMETRY[name](amount, width, height)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    scaled = [(a * x + b * y + c) * 2 / max(1, width - 1) - 1, (d * x + e * y + f) * 2 / max(1, height - 1) - 1]
    return torch.from_numpy(np.stack(scaled, axis=-1).astype(np.float32)).to(device)


def _rotation(degrees: float, width: int, height: int) -> Affine:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


_COLOUR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda pixels, amount: pixels,
    "equalize": _equalize,
    "brightness": _brightness,
}

# (amount, width, height) -> the six coefficients of the affine map from result to original pixels.
_GEOMETRY: dict[str, Callable[[float, int, int], Affine]] = {
    "shear_x": lambda amount, width, height: (1.0, -amount, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda amount, width, height: (1.0, 0.0, 0.0, -amount, 1.0, 0.0),
    "translate_x": lambda amount, width, height: (1.0, 0.0, amount, 0.0, 1.0, 0.0),
    "translate_y": lambda amount, width, height: (1.0, 0.0, 0.0, 0.0, 1.0, amount),
    "rotate": _rotation,
}
