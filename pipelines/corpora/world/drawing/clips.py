"""Clips: one thing moves relative to another, frame by frame, and their MP4 bytes.

Encoding is MPEG-4 part 2 in FFmpeg's bit-exact mode on one thread, from YUV computed in integers, so the bytes are the
same with the pinned PyAV wheel on any machine.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.render import Pixels, paint, render_background
from pipelines.corpora.world.drawing.scene import Thing
from pipelines.corpora.world.drawing.words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, TEXTURES
from x2vlm.data.randomness import Draws

FRAMES_PER_SECOND = 4
Track = tuple[tuple[int, int], ...]  # centre of a thing in every frame


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn. The mover is thing 0, the one it relates to is thing 1, others do not move."""

    index: int
    width: int
    height: int
    seconds: int
    background: str
    motion: str
    things: tuple[Thing, ...]  # as in frame 0
    tracks: tuple[Track, ...]

    @property
    def num_frames(self) -> int:
        return self.seconds * FRAMES_PER_SECOND


def clip_size(config: WorldConfig) -> tuple[int, int]:
    """Width and height of every clip: 4 to 3, at about five eighths of the images' size, in macroblocks."""
    high = max(6, config.image_size * 5 // 128)  # blocks of 16 pixels
    return (high * 4 // 3) * 16, high * 16


def make_clip(config: WorldConfig, index: int) -> Clip:
    """Clip number `index`: 4 to 8 seconds, one motion, up to two bystanders."""
    draws = Draws(config.seed, index, "clip")
    width, height = clip_size(config)
    seconds = draws.integer(4, 8)
    motion = draws.choice(MOTIONS)
    looks = _different_looks(draws, 2 + draws.integer(0, 2))
    mover, other = _paths(draws, motion, width, height, seconds * FRAMES_PER_SECOND)
    still = [((x, y),) * len(mover) for x, y in _corners(draws, width, height)]
    tracks = (mover, other, *still)[: len(looks)]
    radius = height * 9 // 100
    things = tuple(
        Thing(*look, "small", *track[0], radius, 5 * draws.integer(-3, 3))
        for look, track in zip(looks, tracks, strict=True)
    )
    return Clip(index, width, height, seconds, draws.choice(tuple(BACKGROUNDS)), motion, things, tracks)


def _different_looks(draws: Draws, count: int) -> list[tuple[str, str, str]]:
    """(shape, colour, texture) of things that never share both colour and shape."""
    looks: dict[tuple[str, str], str] = {}
    while len(looks) < count:
        looks.setdefault((draws.choice(SHAPES), draws.choice(tuple(COLOURS))), draws.choice(TEXTURES))
    return [(*look, texture) for look, texture in looks.items()]


def _corners(draws: Draws, width: int, height: int) -> list[tuple[int, int]]:
    """Places for bystanders outside the paths, which stay in the middle."""
    spots = [(width * x // 100, height * y // 100) for x in (9, 91) for y in (12, 88)]
    return draws.shuffled(spots)[:2]


def _paths(draws: Draws, motion: str, width: int, height: int, frames: int) -> tuple[Track, Track]:
    """Where the mover and the other thing are in each frame; mirrored at random."""
    last = frames - 1
    middle = height // 2 + draws.integer(-height // 20, height // 20)
    far, close = width * 20 // 100, width * 60 // 100
    target = width * 76 // 100
    match motion:
        case "towards" | "away_from":
            mover = [(far + (close - far) * t // last, middle) for t in range(frames)]
            if motion == "away_from":
                mover.reverse()
            other = [(target, middle)] * frames
        case "past":
            lane = middle - height * 12 // 100
            mover = [(far + (target - far) * t // last, lane) for t in range(frames)]
            other = [(width // 2, lane + height * 24 // 100)] * frames
        case "after":
            gap, way = width * 26 // 100, width * 34 // 100
            mover = [(far + way * t // last, middle) for t in range(frames)]
            other = [(x + gap, y) for x, y in mover]
        case _:
            reach = height * 27 // 100
            mover = [_on_circle(width // 2, height // 2, reach, 360 * t // last) for t in range(frames)]
            other = [(width // 2, height // 2)] * frames
    if draws.chance(0.5):
        mover, other = ([(width - 1 - x, y) for x, y in track] for track in (mover, other))
    return tuple(mover), tuple(other)


def _on_circle(x: int, y: int, radius: int, degrees: int) -> tuple[int, int]:
    cosine = round(16384 * math.cos(math.radians(degrees)))
    sine = round(16384 * math.sin(math.radians(degrees)))
    return x + radius * cosine // 16384, y + radius * sine // 16384


def render_clip(config: WorldConfig, clip: Clip) -> Iterator[Pixels]:
    """The frames of a clip. The mover is painted last, on top."""
    ground = render_background(config.seed, clip.index, clip.width, clip.height, clip.background)
    for frame in range(clip.num_frames):
        pixels = ground.copy()
        for thing, track in reversed(list(zip(clip.things, clip.tracks, strict=True))):
            x, y = track[frame]
            paint(pixels, replace(thing, x=x, y=y))
        yield pixels


def encode_clip(config: WorldConfig, clip: Clip) -> bytes:
    """MP4 bytes of a clip."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"flags": "+bitexact", "dct": "fastint", "idct": "simple", "threads": "1", "qscale": "4"}
        stream = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.codec_context.gop_size = 8
        stream.codec_context.bit_rate = 400_000
        stream.codec_context.time_base = Fraction(1, FRAMES_PER_SECOND)
        for number, pixels in enumerate(render_clip(config, clip)):
            frame = av.VideoFrame.from_ndarray(to_yuv420(pixels), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def to_yuv420(pixels: Pixels) -> NDArray[np.uint8]:
    """BT.601 studio range in integers, chroma averaged over 2 x 2 pixels; planes stacked as PyAV expects them."""
    red, green, blue = (pixels[:, :, channel].astype(np.int32) for channel in range(3))
    width = red.shape[1]
    luma = (66 * red + 129 * green + 25 * blue + 128) // 256 + 16
    means = [
        (plane[0::2, 0::2] + plane[1::2, 0::2] + plane[0::2, 1::2] + plane[1::2, 1::2] + 2) // 4
        for plane in (red, green, blue)
    ]
    blue_difference = (-38 * means[0] - 74 * means[1] + 112 * means[2] + 128) // 256 + 128
    red_difference = (112 * means[0] - 94 * means[1] - 18 * means[2] + 128) // 256 + 128
    planes = [plane.reshape(-1, width) for plane in (luma, blue_difference, red_difference)]
    return np.concatenate(planes).astype(np.uint8)
