"""Frames of a clip: sampling them from an untrusted video, and the blob in which they are stored.

A blob is a magic number, the number of frames, then (time, size) of each frame, then the JPEG payloads, little-endian.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from x2vlm.data.media.images import BROKEN_FILE_ERRORS, MAX_DECODED_PIXELS
from x2vlm.data.media.iso import still_format
from x2vlm.errors import InvalidSample

MAGIC = b"X2FRAME1"
HEADER = struct.Struct("<8sI")
ENTRY = struct.Struct("<dI")
JPEG_QUALITY = 90

TRANSPOSE_OF_ROTATION = {  # counterclockwise degrees, as FFmpeg reports the display matrix
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class ClipLimits:
    """Limits above which a clip is refused."""

    max_seconds: float = 600.0  # of the clip, not of the whole video
    max_decoded_frames: int = 200_000
    max_pixels: int = MAX_DECODED_PIXELS


@dataclass(frozen=True)
class SampledClip:
    """Upright frames with their times in the file in seconds, and the upright size of the original."""

    frames: tuple[Image.Image, ...]
    timestamps: tuple[float, ...]
    width: int
    height: int


def encode_frames(jpegs: Sequence[bytes], timestamps_seconds: Sequence[float]) -> bytes:
    """The blob of `jpegs`, each with its time. ValueError unless there is one time per frame and at least one frame."""
    if not jpegs or len(jpegs) != len(timestamps_seconds):
        raise ValueError(f"{len(jpegs)} frames, {len(timestamps_seconds)} times: want the same number, at least one")
    parts = [HEADER.pack(MAGIC, len(jpegs))]
    parts += [ENTRY.pack(time, len(jpeg)) for jpeg, time in zip(jpegs, timestamps_seconds, strict=True)]
    return b"".join([*parts, *jpegs])


def decode_frames(blob: bytes) -> tuple[list[bytes], list[float]]:
    """The JPEGs and times (seconds) in a blob; InvalidSample with rule bad_frames_blob if it is not exactly one."""
    try:
        magic, count = HEADER.unpack_from(blob)
        entries = [
            ENTRY.unpack_from(blob, HEADER.size + index * ENTRY.size) for index in range(_plausible(count, blob))
        ]
    except struct.error as error:
        raise InvalidSample("bad_frames_blob", str(error)) from None
    position = HEADER.size + len(entries) * ENTRY.size
    if magic != MAGIC or not entries or position + sum(size for _, size in entries) != len(blob):
        raise InvalidSample("bad_frames_blob", f"{len(blob)} bytes do not hold {count} frames as announced")
    jpegs, times = [], []
    for time, size in entries:
        jpegs.append(blob[position : position + size])
        times.append(time)
        position += size
    if not all(math.isfinite(time) for time in times) or times != sorted(times):
        raise InvalidSample("bad_frames_blob", "frame times are not in order")
    return jpegs, times


def _plausible(count: int, blob: bytes) -> int:
    if count * ENTRY.size > len(blob):
        raise InvalidSample("bad_frames_blob", f"announces {count} frames in {len(blob)} bytes")
    return count


def sample_clip(
    data: bytes,
    frames_per_second: float = 1.0,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    max_short_edge: int | None = None,
    limits: ClipLimits = ClipLimits(),
) -> SampledClip:
    """The frames nearest to start, start + 1/rate, ... before `end_seconds`; at least one, the display matrix applied.

    The whole clip is decoded, so that a truncated file is detected. Raises InvalidSample with rule empty_body,
    not_a_video, too_many_pixels, too_long, clip_out_of_range or decode_failed.
    """
    import av  # FFmpeg: training reads stored frames, on machines that need not have it

    if not data:
        raise InvalidSample("empty_body", "0 bytes")
    start, end = start_seconds or 0.0, math.inf if end_seconds is None else end_seconds
    if not (0 <= start < end):
        raise InvalidSample("clip_out_of_range", f"from {start} to {end} seconds")
    if end != math.inf and end - start > limits.max_seconds:
        raise InvalidSample("too_long", f"{end - start} seconds, at most {limits.max_seconds}")
    container_format = sniff_container(data)
    if not container_format:
        raise InvalidSample("not_a_video", f"starts with {data[:12]!r}")
    try:
        with av.open(BytesIO(data), format=container_format, options={"protocol_whitelist": "none"}) as container:
            return _sample(container, frames_per_second, start, end, max_short_edge, limits)
    except InvalidSample:
        raise
    except (av.error.FFmpegError, *BROKEN_FILE_ERRORS) as error:
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None


def frames_blob(clip: SampledClip) -> bytes:
    """`clip` as a blob of JPEGs of quality 90."""
    jpegs = []
    for frame in clip.frames:
        buffer = BytesIO()
        frame.save(buffer, "JPEG", quality=JPEG_QUALITY)
        jpegs.append(buffer.getvalue())
    return encode_frames(jpegs, clip.timestamps)


def sniff_container(data: bytes) -> str:
    """FFmpeg's name of the container by its first bytes, "" if it is none of those allowed.

    FFmpeg's own probing also accepts playlists, which make it open further files and URLs; these never reach it.
    """
    if still_format(data):
        return ""  # AVIF, HEIC and their like: FFmpeg would show a tile, or the alpha plane, as a clip of one frame
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith(b"FLV\x01"):
        return "flv"
    if data.startswith(b"OggS"):
        return "ogg"
    if data.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    if data[:4] in (b"\0\0\x01\xba", b"\0\0\x01\xb3"):
        return "mpeg" if data[3] == 0xBA else "mpegvideo"
    if data[:1] == b"G" and data[188:189] == b"G":
        return "mpegts"
    return ""


def _sample(
    container: Any, rate: float, start: float, end: float, max_short_edge: int | None, limits: ClipLimits
) -> SampledClip:
    if not container.streams.video:
        raise InvalidSample("not_a_video", "the file has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    origin = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
    declared = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    _check_stream(stream, min(end, declared) - start, limits)
    if start > 0:
        container.seek(int((start + origin) / stream.time_base), stream=stream)
    chosen: list[tuple[float, Image.Image]] = []
    size, last = (0, 0), None
    for time, frame in _nearest_frames(container, stream, origin, rate, start, end, limits):
        if frame is None:
            last = time
            continue
        image = _upright(frame)
        size = image.size
        chosen.append((time, _shrink(image, max_short_edge)))
    if not chosen:
        raise InvalidSample("clip_out_of_range" if start > 0 else "decode_failed", f"no frame from {start} seconds on")
    # A container with its index at the beginning can be truncated without any error.
    missing = min(end, declared) - (last or 0.0)
    if missing > max(2.0, 0.1 * declared):
        raise InvalidSample("decode_failed", f"the video ends {missing:.1f} seconds before its declared end")
    return SampledClip(tuple(image for _, image in chosen), tuple(time for time, _ in chosen), *size)


def _check_stream(stream: Any, seconds: float, limits: ClipLimits) -> None:
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > limits.max_pixels:
        raise InvalidSample("too_many_pixels", f"{pixels} pixels a frame, at most {limits.max_pixels}")
    if seconds > limits.max_seconds:
        raise InvalidSample("too_long", f"{seconds:.0f} seconds, at most {limits.max_seconds}")


def _nearest_frames(
    container: Any, stream: Any, origin: float, rate: float, start: float, end: float, limits: ClipLimits
) -> Iterator[tuple[float, Any]]:
    """(time, frame) nearest to every target, the earlier one on a tie; finally (time of the last frame, None)."""
    previous: tuple[float, Any] | None = None
    step = 0
    for index, frame in enumerate(container.decode(stream)):
        if frame.width * frame.height > limits.max_pixels:
            raise InvalidSample("too_many_pixels", f"a frame of {frame.width} x {frame.height}")
        time = _time_of(frame, stream, index, origin)
        if index >= limits.max_decoded_frames or time - start > limits.max_seconds + 1.0:
            raise InvalidSample("too_long", f"{index + 1} frames, {time - start:.0f} seconds and no end")
        target = start + step / rate
        while time >= target and target < end:
            is_previous_nearer = previous is not None and target - previous[0] <= time - target
            yield previous if previous is not None and is_previous_nearer else (time, frame)
            step += 1
            target = start + step / rate
        previous = (time, frame)
        if time >= end:
            break
    if previous is not None:
        yield previous[0], None


def _time_of(frame: Any, stream: Any, index: int, origin: float) -> float:
    """Seconds since the beginning of the video; counted where the container stores no times."""
    if frame.pts is not None:
        return float(frame.pts * frame.time_base) - origin
    return index / float(stream.average_rate or 25)


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    transpose = TRANSPOSE_OF_ROTATION.get(round(frame.rotation) % 360)
    return image if transpose is None else image.transpose(transpose)


def _shrink(image: Image.Image, max_short_edge: int | None) -> Image.Image:
    short_edge = min(image.size)
    if max_short_edge is None or short_edge <= max_short_edge:
        return image
    scale = max_short_edge / short_edge
    size = tuple(max(1, round(edge * scale)) for edge in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
