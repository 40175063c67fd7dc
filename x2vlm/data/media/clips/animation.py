"""Animated GIF, WebP and PNG in rows of kind video: read by Pillow as a clip that is played once."""

import itertools
import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from x2vlm.data.media.clips.budget import Budget, ClipLimits
from x2vlm.data.media.clips.containers import ANIMATIONS
from x2vlm.data.media.clips.decoding import SampledClip, Wanted
from x2vlm.data.media.clips.frames import shrink
from x2vlm.data.media.images import BROKEN_FILE_ERRORS
from x2vlm.errors import InvalidSample

COST = 40  # Pillow draws each frame over the whole image, which takes as long as 40 frames of FFmpeg
SHORTEST_SECONDS, DEFAULT_SECONDS = 0.011, 0.1  # browsers show a frame of 10 ms and less for 100 ms


def decode_animation(data: bytes, kind: str, wanted: Wanted, limits: ClipLimits) -> SampledClip:
    """The frame that is shown at start, start + 1/rate, ... before the end; transparency on white.

    Raises InvalidSample with rule not_a_video for a still image, and as `x2vlm.data.media.video.sample_clip` does.
    """
    budget = Budget(limits, min(wanted.end - wanted.start, limits.max_seconds))
    try:
        with Image.open(BytesIO(data), formats=(kind.upper(),)) as image:
            if not getattr(image, "is_animated", False):
                raise InvalidSample("not_a_video", f"a still image ({ANIMATIONS[kind]})")
            if image.width * image.height > limits.max_pixels:
                raise InvalidSample("too_many_pixels", f"frames of {image.width} x {image.height}")
            clip = _sample(image, wanted, budget, _is_cut(data, kind))
    except Image.DecompressionBombError as error:
        raise InvalidSample("too_many_pixels", str(error)) from None
    except MemoryError as error:
        raise InvalidSample("out_of_memory", str(error)) from None
    except BROKEN_FILE_ERRORS as error:
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None
    if clip is None:
        raise InvalidSample("clip_out_of_range", f"no frame from {wanted.start} seconds on")
    return clip


def _sample(image: Image.Image, wanted: Wanted, budget: Budget, cut: str) -> SampledClip | None:
    images: list[Image.Image] = []
    times: list[float] = []
    size, step = (0, 0), 0
    for begins, ends, frame in _frames(image, budget):
        if begins >= wanted.end:
            break
        if begins - wanted.start > budget.limits.max_seconds + 1.0:
            raise InvalidSample("too_long", f"{begins - wanted.start:.0f} seconds and no end")
        while (target := wanted.start + step / wanted.frames_per_second) < min(ends, wanted.end):
            if target >= begins:
                shown = shrink(_on_white(frame), frame.size, wanted.max_short_edge)
                budget.keep(shown.width * shown.height, wanted.frames_per_second)
                images.append(shown)
                times.append(begins)
                size = frame.size
            step += 1
    else:
        if cut:
            raise InvalidSample("decode_failed", f"the file breaks off: {cut}")
    if not images:
        return None
    chosen = range(len(images)) if wanted.choose is None else wanted.choose(len(images))
    return SampledClip(tuple(images[n] for n in chosen), tuple(times[n] for n in chosen), *size)


def _frames(image: Image.Image, budget: Budget) -> Iterator[tuple[float, float, Image.Image]]:
    """(seconds when it appears, seconds when the next one does, frame), each drawn over what came before."""
    begins = 0.0
    for number in itertools.count():
        try:
            image.seek(number)
        except EOFError:
            return
        if number >= budget.limits.max_decoded_frames:
            raise InvalidSample("too_long", f"more than {budget.limits.max_decoded_frames} frames")
        budget.spend_frame(COST * image.width * image.height)
        image.load()
        seconds = float(image.info.get("duration") or 0.0) / 1000
        ends = begins + (DEFAULT_SECONDS if seconds < SHORTEST_SECONDS else seconds)
        yield begins, ends, image
        begins = ends


def _is_cut(data: bytes, kind: str) -> str:
    """What shows that an animation lacks its end, "" if nothing does."""
    if kind == "gif":
        return "" if data.rstrip(b"\0")[-1:] == b";" else "its end mark is missing"
    if kind == "webp":
        missing = 8 + struct.unpack_from("<I", data, 4)[0] - len(data) if len(data) >= 8 else 1
        return f"it lacks {missing} bytes" if missing > 0 else ""
    return "" if b"IEND\xae\x42\x60\x82" in data[-64:] else "its end mark is missing"


def _on_white(frame: Image.Image) -> Image.Image:
    if frame.mode == "RGB" and "transparency" not in frame.info:
        return frame.copy()
    rgba = frame.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")
