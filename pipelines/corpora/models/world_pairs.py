"""Images of a training world with their texts, and which text is true of which image.

A text names things by colour and shape ("striped red star"). It is true of every image that shows all of them, and
false of every image that shows none: so a batch has thousands of labelled pairs, not one per image. Texts that are
partly true are unlabelled, texts that name nothing ("and that is it") are true of any image.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.clips import Clip, make_clip, render_clip
from pipelines.corpora.world.drawing.render import Pixels, encode_jpeg, render_scene
from pipelines.corpora.world.drawing.scene import Thing, make_scene
from pipelines.corpora.world.drawing.texts import a, captions, texture_colour_shape
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES
from pipelines.corpora.world.sources.video import describe_clip, spoken_segments
from x2vlm.data.randomness import Draws

CAPTIONS_OF_A_SCENE = 4
CLIPS_IN_FIVE = 4
JPEG_QUALITIES = (60, 90)  # frames are stored with 90; lower ones simulate the losses of a video codec

Look = tuple[str, str]  # colour, shape
_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(sorted(SHAPES, key=len, reverse=True))
_COLOUR_SHAPE = re.compile(rf"\b({_COLOUR}) ({_SHAPE})(?:s|es)?\b")
_SHAPE_IS_COLOUR = re.compile(rf"\b({_SHAPE}) that is ({_COLOUR})\b")


@dataclass(frozen=True)
class Example:
    """An image, true texts about it, and the colours and shapes it shows."""

    image: Image.Image
    texts: tuple[str, ...]
    looks: frozenset[Look]
    is_clip: bool
    things: tuple["Seen", ...]


@dataclass(frozen=True)
class Seen:
    """A single thing: its name, and its centre in fractions of the image's width and height."""

    text: str
    x: float
    y: float


def named_looks(text: str) -> frozenset[Look]:
    """The colours with shapes that an English text of the world names."""
    lower = text.lower()
    turned = ((colour, shape) for shape, colour in _SHAPE_IS_COLOUR.findall(lower))
    return frozenset((*_COLOUR_SHAPE.findall(lower), *turned))


def examples(config: WorldConfig) -> Iterator[Example]:
    """Every scene of a world, rendered, with JPEG's losses: of five, four as a frame of a clip and one as an image."""
    for index in range(config.scenes):
        draws = Draws(config.seed, index, "world clip")
        yield _of_clip(config, index, draws) if index % 5 < CLIPS_IN_FIVE else _of_image(config, index, draws)


def _of_clip(config: WorldConfig, index: int, draws: Draws) -> Example:
    clip = make_clip(config, index)
    spoken = [text for text, _, _ in spoken_segments(clip, clip.seconds, draws)]
    texts = (describe_clip(clip, draws), describe_clip(clip, draws), *spoken)
    number = draws.integer(0, clip.num_frames - 1)
    things = [
        Seen(a(texture_colour_shape(thing)), track[number][0] / clip.width, track[number][1] / clip.height)
        for thing, track in zip(clip.things, clip.tracks, strict=True)
    ]
    return Example(_as_stored(_frame(config, clip, number), draws), texts, _looks(clip.things), True, tuple(things))


def _of_image(config: WorldConfig, index: int, draws: Draws) -> Example:
    scene = make_scene(config, index)
    texts = tuple(captions(scene, draws, CAPTIONS_OF_A_SCENE))
    things = [
        Seen(a(texture_colour_shape(thing)), thing.x / scene.width, thing.y / scene.height) for thing in scene.things
    ]
    pixels = render_scene(config.seed, scene)
    return Example(_as_stored(pixels, draws), texts, _looks(scene.things), False, tuple(things))


def _frame(config: WorldConfig, clip: Clip, number: int) -> Pixels:
    """A single frame: a clip whose tracks are cut to that frame."""
    return next(render_clip(config, replace(clip, tracks=tuple((track[number],) for track in clip.tracks))))


def _as_stored(pixels: Pixels, draws: Draws) -> Image.Image:
    return Image.open(io.BytesIO(encode_jpeg(pixels, draws.integer(*JPEG_QUALITIES)))).convert("RGB")


def _looks(things: Sequence[Thing]) -> frozenset[Look]:
    return frozenset((thing.colour, thing.shape) for thing in things)


class Truth:
    """Which texts are true of which images, as bit tables over pairs of colour and shape."""

    def __init__(self, found: Sequence[Example]) -> None:
        self.texts = [text for example in found for text in example.texts]
        self.owner = np.array([number for number, example in enumerate(found) for _ in example.texts])
        self._shown = _bits([example.looks for example in found])
        self._named = _bits([named_looks(text) for text in self.texts])

    def judge(self, images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(true, wrong) of every pair, two boolean tables of images by texts; pairs that are neither are unlabelled."""
        shown, named = self._shown[images].astype(np.float32), self._named[texts].astype(np.float32)
        common, total = shown @ named.T, named.sum(axis=1)
        own = self.owner[texts][None, :] == images[:, None]
        is_true = own | ((total > 0) & (common == total))
        is_wrong = ~own & (total > 0) & (common == 0)
        return is_true, is_wrong


def _bits(looks: Sequence[frozenset[Look]]) -> np.ndarray:
    number = {(colour, shape): place for place, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES)}
    table = np.zeros((len(looks), len(number)), dtype=bool)
    for row, found in enumerate(looks):
        table[row, [number[look] for look in found]] = True
    return table
