"""Pixels of scenes: cluttered backgrounds, textured things, and JPEG bytes. Integers only.

The bytes of a JPEG also depend on the encoder: they are the same with the pinned Pillow wheel, which includes its own
libjpeg-turbo, on any machine.
"""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.corpora.world.drawing.scene import Scene, Thing
from pipelines.corpora.world.drawing.shapes import SUBPIXELS, Patch, covered_pixels, rasterise
from pipelines.corpora.world.drawing.words import BACKGROUNDS, COLOURS
from x2vlm.data.randomness import Draws

Pixels = NDArray[np.uint8]  # height, width, RGB


def render_scene(seed: int, scene: Scene) -> Pixels:
    """The image of a scene."""
    pixels = render_background(seed, scene.index, scene.width, scene.height, scene.background)
    for thing in scene.things:
        paint(pixels, thing)
    return pixels


def render_background(seed: int, index: int, width: int, height: int, name: str) -> Pixels:
    """A gradient with clutter in muted colours and noise: nothing on it resembles a thing."""
    draws = Draws(seed, index, "background")
    near, far = (np.array(colour, dtype=np.int16) for colour in BACKGROUNDS[name])
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    along, across = draws.integer(0, 8), draws.integer(1, 8)
    position = (rows * along * 256 // height + columns * across * 256 // width) // (along + across)
    pixels = near + (far - near) * position.astype(np.int16)[:, :, None] // np.int16(256)
    for _ in range(draws.integer(14, 34)):
        _add_clutter(draws, pixels)
    grain = _noise(seed, index, width * height).reshape(height, width, 1).astype(np.int16) % 17 - 8
    shown: Pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return shown


def _add_clutter(draws: Draws, pixels: NDArray[np.int16]) -> None:
    """Blend a random sliver or patch, lighter or darker than what is there."""
    height, width, _ = pixels.shape
    x, y = draws.integer(0, width - 1), draws.integer(0, height - 1)
    reach = min(height, width) * draws.choice((1, 1, 2, 3)) // 8
    corners = [
        (
            min(max(x + draws.integer(-reach, reach), 0), width - 1) * SUBPIXELS,
            min(max(y + draws.integer(-reach, reach), 0), height - 1) * SUBPIXELS,
        )
        for _ in range(draws.integer(3, 5))
    ]
    light = draws.integer(-34, 34)
    shift = np.array([light + draws.integer(-9, 9) for _ in range(3)], dtype=np.int16)
    patch = rasterise((tuple(corners),))
    target = patch.on(pixels)
    target += patch.mask[:, :, None] * shift


def _noise(seed: int, index: int, count: int) -> NDArray[np.uint8]:
    # The raw output of Philox is specified; numpy's distributions are not.
    digest = hashlib.sha256(f"{seed}/{index}/grain".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw((count + 7) // 8)
    return words.astype("<u8").view(np.uint8)[:count]


def paint(pixels: Pixels, thing: Thing) -> None:
    """Draw a thing with an outline that contrasts with any background."""
    colour = np.array(COLOURS[thing.colour], dtype=np.int32)
    dark = int(colour.sum()) < 330
    patch = thing.patch
    edge = (colour * 9 + (245 if dark else 0) * 11) // 20
    patch.on(pixels)[patch.mask] = edge.astype(np.uint8)
    rim = max(1, thing.radius // 14)
    inner = covered_pixels(thing.shape, thing.x, thing.y, thing.radius - rim, thing.degrees)
    second = (colour * (11 if dark else 9) + (245 if dark else 0) * (9 if dark else 11)) // 20
    marks = texture_marks(thing.texture, inner, thing)
    # A ring's rim scales inwards too, so parts of the smaller outline outside the shape must not be drawn.
    allowed = _common(inner, patch)
    target = inner.on(pixels)
    target[inner.mask & allowed & ~marks] = colour.astype(np.uint8)
    target[inner.mask & allowed & marks] = second.astype(np.uint8)


def _common(inner: Patch, outer: Patch) -> NDArray[np.bool_]:
    top, left = inner.y - outer.y, inner.x - outer.x
    canvas = np.zeros_like(inner.mask)
    (high, wide), (height, width) = inner.mask.shape, outer.mask.shape
    rows = slice(max(0, -top), min(high, height - top))
    columns = slice(max(0, -left), min(wide, width - left))
    canvas[rows, columns] = outer.mask[rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]
    return canvas


def texture_marks(texture: str, patch: Patch, thing: Thing) -> NDArray[np.bool_]:
    """The pixels of a patch that get the texture's second colour."""
    height, width = patch.mask.shape
    y = np.arange(height)[:, None] + patch.y - thing.y
    x = np.arange(width)[None, :] + patch.x - thing.x
    period = max(5, thing.radius // 3)
    match texture:
        case "striped":
            return np.broadcast_to((x + y) % period * 2 < period, (height, width))
        case "dotted":
            dx, dy = x % period * 2 - period, y % period * 2 - period
            return np.asarray(dx * dx + dy * dy <= period * period // 3)
        case "checkered":
            return np.asarray((x // period + y // period) % 2 == 0)
        case "ringed":
            distance = np.sqrt((x * x + y * y).astype(np.float64)).astype(np.int64)  # correctly rounded by IEEE 754
            return np.asarray(distance % period * 2 < period)
    return np.zeros((height, width), dtype=bool)


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """JPEG bytes of an image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
