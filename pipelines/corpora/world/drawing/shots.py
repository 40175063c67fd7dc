"""Shots: the image or clip that a row points at, with at most one planted defect of the row.

The kind of row-level noise is a function of the scene's number, so duplicates can point at rows that are known to be
clean without generating them.
"""

import hashlib
from dataclasses import dataclass, replace

from pipelines.corpora.world.config import (
    BOX_SOURCES,
    CLIP_SOURCES,
    EVALUATION,
    EVALUATION_EVERY,
    WorldConfig,
    is_held_out,
    source_of,
)
from pipelines.corpora.world.drawing.clips import Clip, clip_size, encode_clip, make_clip
from pipelines.corpora.world.drawing.render import Pixels, encode_jpeg, render_scene
from pipelines.corpora.world.drawing.scene import Scene, draw_size, make_scene
from pipelines.corpora.world.records import KEPT, Truth
from x2vlm.data.randomness import Draws

HOST = "http://world.invalid"
FIRST_IMAGE_ID = 100_000
VARIANTS = {  # how an image is repeated, and what can find it
    "exact": "sha256",
    "reencoded": "phash",
    "half_size": "phash",
    "cropped": "embedding",
    "flipped": "embedding",
}
STAGES = ("read", "download", "filter", "partition", "")  # in their order; "" is the end: kept
SAME_GEOMETRY = ("exact", "reencoded")
ATTEMPTS = 60
EVALUATION_ROUND = ("image", "image", "image", "image", "image", "multilingual", "clip", "pair")


@dataclass(frozen=True)
class Shot:
    """The image or clip of a row. `scene` is shown; `text_scene` is the one of its text (another if mismatched)."""

    index: int
    source: str
    planted: str
    detail: str
    url: str
    file: str  # below media/, "" where nothing is stored
    data: bytes
    width: int
    height: int
    scene: Scene | None = None
    text_scene: Scene | None = None
    clip: Clip | None = None
    text_clip: Clip | None = None
    expected_stage: str = ""
    expected_rule: str = KEPT
    variant: str = ""

    @property
    def image_id(self) -> int:
        return image_id(self.index)

    @property
    def image(self) -> Scene:
        """The scene of an image."""
        assert self.scene is not None
        return self.scene

    @property
    def described(self) -> Scene:
        """The scene that an image's text is about."""
        assert self.text_scene is not None
        return self.text_scene

    @property
    def seen_clip(self) -> Clip:
        """The clip that is shown."""
        assert self.clip is not None
        return self.clip

    @property
    def described_clip(self) -> Clip:
        """The clip that a clip's text is about."""
        assert self.text_clip is not None
        return self.text_clip

    def row(self, row_key: str, source: str = "") -> list[Truth]:
        """The truth about the row itself, and about its media if they repeat another row's."""
        truth = Truth(
            source or self.source,
            row_key,
            "row",
            self.index,
            planted=self.planted,
            detail=self.detail,
            expected_stage=self.expected_stage,
            expected_rule=self.expected_rule,
        )
        if self.planted not in ("duplicate", "test_leak"):
            return [truth]
        stage = "deduplicate" if self.planted == "duplicate" else "decontaminate"
        rule = VARIANTS[self.variant]
        return [truth, replace(truth, unit="media", expected_stage=stage, expected_rule=rule)]

    def item(
        self,
        row_key: str,
        unit: str,
        item: str,
        planted: str = "",
        detail: str = "",
        expected: tuple[str, str] = ("", KEPT),
        source: str = "",
    ) -> Truth:
        """The truth about a concept or caption. It is dropped with its row, unless an earlier stage drops it."""
        if self.expected_rule != KEPT and STAGES.index(expected[0]) >= STAGES.index(self.expected_stage):
            expected = (self.expected_stage, "row_dropped")
        return Truth(source or self.source, row_key, unit, self.index, item, planted, detail, *expected)


def image_id(index: int) -> int:
    """The number of a scene in file names and upstream ids."""
    return FIRST_IMAGE_ID + index


def evaluation_kind(index: int) -> str:
    """The kind of evaluation that a held-out scene is used for."""
    return EVALUATION_ROUND[index // EVALUATION_EVERY % len(EVALUATION_ROUND)]


def row_noise(config: WorldConfig, index: int) -> str:
    """The kind of row-level noise of a training row, "" for none."""
    source, rates = source_of(config, index), config.noise
    clip, boxes = source in CLIP_SOURCES, source in BOX_SOURCES
    chances = {
        "dead_link": 0.0 if source in ("howto100m", "yttemporal") else rates.dead_link,
        "small_image": 0.0 if clip else rates.small_image,
        "extreme_aspect": 0.0 if clip else rates.extreme_aspect,
        "duplicate": 0.0 if clip else rates.duplicate,
        "test_leak": 0.0 if clip or config.scenes < EVALUATION_EVERY else rates.test_leak,
        "mismatched_caption": 0.0 if boxes else rates.mismatched_caption,
        "foreign_text": rates.foreign_text if source == "laion_en" else 0.0,
        "empty_text": 0.0 if boxes or source in ("howto100m", "yttemporal") else rates.empty_text,
        "one_word_text": rates.one_word_text if source == "webvid" else 0.0,
        "rotated": rates.rotated if source == "openimages" else 0.0,
    }
    left = Draws(config.seed, index, "noise").uniform()
    for kind, chance in chances.items():
        if left < chance:
            return kind
        left -= chance
    return ""


def take_shot(config: WorldConfig, index: int) -> Shot:
    """The shot of training row number `index`, with its media unless the config has none."""
    source = source_of(config, index)
    kind = row_noise(config, index)
    return (
        _clip_shot(config, index, source, kind) if source in CLIP_SOURCES else _image_shot(config, index, source, kind)
    )


def _image_shot(config: WorldConfig, index: int, source: str, kind: str) -> Shot:
    draws = Draws(config.seed, index, "shot")
    shown, variant, detail = index, "", ""
    if kind in ("duplicate", "test_leak"):
        origin = _origin(config, index, kind, draws)
        if origin is None:
            kind = ""
        else:
            shown = origin
            variant = draws.choice(SAME_GEOMETRY if source in BOX_SOURCES else tuple(VARIANTS))
            detail = f"{variant} of scene {shown} ({source_of(config, shown)})"
    scene = make_scene(config, shown, _unusual_size(config, kind, draws))
    width, height = variant_size(scene.width, scene.height, variant)
    text_scene = scene
    if kind == "mismatched_caption":
        text_scene = unrelated_scene(config, scene, draws)
        detail = f"the text is about scene {text_scene.index}"
    name = f"{'gone-' if kind == 'dead_link' else ''}{image_id(index):012d}.jpg"
    data = b"" if config.media == "none" or kind == "dead_link" else image_bytes(config, scene, variant)
    if kind in ("small_image", "extreme_aspect"):
        detail = f"{width} x {height}"
    stage, rule = _expectation(kind, width, height)
    url = f"{HOST}/images/{name}"
    file = f"images/{name}" if data else ""
    return Shot(
        *(index, source, kind, detail, url, file, data, width, height, scene, text_scene),
        expected_stage=stage,
        expected_rule=rule,
        variant=variant,
    )


def _clip_shot(config: WorldConfig, index: int, source: str, kind: str) -> Shot:
    draws = Draws(config.seed, index, "shot")
    clip = text_clip = make_clip(config, index)
    detail = ""
    if kind == "mismatched_caption":
        text_clip = _unrelated_clip(config, clip, draws)
        detail = f"the text is about scene {text_clip.index}"
    gone = kind == "dead_link"
    name = clip_name(config, index, source)
    data = b"" if config.media == "none" or gone else encode_clip(config, clip)
    stage, rule = _expectation(kind, None, None)
    return Shot(
        *(index, source, kind, detail, f"{HOST}/clips/{'gone-' if gone else ''}{name}.mp4"),
        *(f"clips/{name}.mp4" if data else "", data, *clip_size(config)),
        clip=clip,
        text_clip=text_clip,
        expected_stage=stage,
        expected_rule=rule,
    )


def clip_name(config: WorldConfig, index: int, source: str) -> str:
    """A clip's file name without its ending; an eleven-character YouTube id for YouTube sources."""
    if source == "webvid":
        return f"{image_id(index):012d}"
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    draws = Draws(config.seed, index, "video id")
    return "".join(draws.choice(letters) for _ in range(11))


def _expectation(kind: str, width: int | None, height: int | None) -> tuple[str, str]:
    """The expected decision of the default rules about a row: (stage, rule)."""
    fixed = {
        "dead_link": ("download", "http_404"),
        "empty_text": ("read", "empty_caption"),
        "rotated": ("read", "rotation_unclear"),
        "one_word_text": ("filter", "min_video_words"),
    }
    if kind in fixed:
        return fixed[kind]
    if width is None or height is None:
        return ("partition", "min_clip_score") if kind == "mismatched_caption" else ("", KEPT)
    if min(width, height) < 224:
        return "filter", "min_short_edge"
    if max(width, height) > 3 * min(width, height):
        return "filter", "max_aspect_ratio"
    # A detector must see that the text is not English; then no caption is left.
    return ("filter", "nothing_left") if kind == "foreign_text" else ("", KEPT)


def _unusual_size(config: WorldConfig, kind: str, draws: Draws) -> tuple[int, int] | None:
    if kind == "small_image":
        short = draws.integer(96, min(223, max(97, config.image_size)))
        return (short, short * 5 // 4) if draws.chance(0.5) else (short * 5 // 4, short)
    if kind == "extreme_aspect":
        long = config.image_size * draws.integer(305, 400) // 100 + 1
        return (long, config.image_size) if draws.chance(0.5) else (config.image_size, long)
    return None


def own_scene(config: WorldConfig, index: int) -> Scene:
    """The scene of training image number `index` unless it repeats another one."""
    return make_scene(config, index, _unusual_size(config, row_noise(config, index), Draws(config.seed, index, "shot")))


def _origin(config: WorldConfig, index: int, kind: str, draws: Draws) -> int | None:
    """A clean training image, or a held-out one, that the row repeats; None if none is found."""
    for _ in range(ATTEMPTS):
        other = draws.integer(0, config.scenes - 1)
        if kind == "test_leak":
            if is_held_out(other) and evaluation_kind(other) == "image":
                return other
        elif other != index and _is_clean_image(config, other):
            return other
    return None


def _is_clean_image(config: WorldConfig, index: int) -> bool:
    held_out, source = is_held_out(index), source_of(config, index)
    return not held_out and source not in CLIP_SOURCES and row_noise(config, index) == ""


def unrelated_scene(config: WorldConfig, scene: Scene, draws: Draws) -> Scene:
    """A scene that shares no shape in the same colour with `scene`, so that its text is false of it."""
    looks = {(thing.shape, thing.colour) for thing in scene.things}
    while True:
        other = make_scene(config, draws.integer(0, 10 * config.scenes + 100))
        if not looks & {(thing.shape, thing.colour) for thing in other.things}:
            return other


def _unrelated_clip(config: WorldConfig, clip: Clip, draws: Draws) -> Clip:
    looks = {(thing.shape, thing.colour) for thing in clip.things}
    while True:
        other = make_clip(config, draws.integer(0, 10 * config.scenes + 100))
        if not looks & {(thing.shape, thing.colour) for thing in other.things}:
            return other


def variant_size(width: int, height: int, variant: str) -> tuple[int, int]:
    """Width and height of an image that is repeated as `variant`."""
    if variant == "half_size":
        return width // 2, height // 2
    if variant == "cropped":
        return width - 2 * (width // 40), height - 2 * (height // 40)
    return width, height


def image_bytes(config: WorldConfig, scene: Scene, variant: str = "") -> bytes:
    """JPEG bytes of a scene's image, or of a variant of it."""
    pixels = vary(render_scene(config.seed, scene), variant)
    return encode_jpeg(pixels, 50 if variant == "reencoded" else config.jpeg_quality)


def vary(pixels: Pixels, variant: str) -> Pixels:
    """An image without 5 % of its width and height, at half its size, or mirrored."""
    height, width, _ = pixels.shape
    match variant:
        case "half_size":
            quads = pixels[: height // 2 * 2, : width // 2 * 2].astype("uint16")
            total = quads[0::2, 0::2] + quads[1::2, 0::2] + quads[0::2, 1::2] + quads[1::2, 1::2]
            means: Pixels = ((total + 2) // 4).astype("uint8")
            return means
        case "cropped":
            top, left = height // 40, width // 40
            return pixels[top : height - top, left : width - left].copy()
        case "flipped":
            return pixels[:, ::-1].copy()
    return pixels


def held_out_shot(config: WorldConfig, index: int, folder: str = "val2014") -> Shot:
    """The shot of a held-out image: always clean. `folder` of COCO is a part of its name."""
    scene = make_scene(config, index)
    width, height = draw_size(config, index)
    name = f"COCO_{folder}_{image_id(index):012d}.jpg"
    data = b"" if config.media == "none" else image_bytes(config, scene)
    file = f"images/{name}" if data else ""
    return Shot(index, EVALUATION, "", "", f"{HOST}/images/{name}", file, data, width, height, scene, scene)


def digest(name: str, data: bytes) -> str:
    """A hexadecimal checksum of media, "" where the world has none."""
    return hashlib.new(name, data, usedforsecurity=False).hexdigest() if data else ""
