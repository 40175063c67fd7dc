"""Frames of a clip: sampling them from an untrusted video, and the blob in which they are stored.

A blob is a magic number, the number of frames, then (time, size) of each frame, then the JPEG payloads, little-endian.
"""

import math
import struct
from collections.abc import Callable, Sequence
from io import BytesIO

from x2vlm.data.media.clips.animation import decode_animation
from x2vlm.data.media.clips.budget import DEFAULT_LIMITS, ClipLimits
from x2vlm.data.media.clips.containers import other_media, sniff_animation, sniff_container
from x2vlm.data.media.clips.decoding import SampledClip, Wanted, decode_clip
from x2vlm.errors import InvalidSample

__all__ = [
    "ClipLimits",
    "SampledClip",
    "decode_frames",
    "encode_frames",
    "frames_blob",
    "sample_clip",
    "sniff_container",
]

MAGIC = b"X2FRAME1"
HEADER = struct.Struct("<8sI")
ENTRY = struct.Struct("<dI")
JPEG_QUALITY = 90


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
    limits: ClipLimits = DEFAULT_LIMITS,
    choose: Callable[[int], Sequence[int]] | None = None,
) -> SampledClip:
    """The frames nearest to start, start + 1/rate, ... before `end_seconds`, at least one, as a player shows them.

    Seconds count from the first frame; where the file's sound begins more than a second before it, from there. Frames
    are upright and scaled to square pixels. Of an animated GIF, WebP or PNG the frame shown at each time is
    taken. `choose` says, of how many frames, which ones are wanted: the others never take memory.

    The whole clip is decoded, so that a truncated file is detected. Raises InvalidSample with rule empty_body,
    not_a_video, format_unsupported, too_many_pixels, too_long, clip_out_of_range, decode_failed,
    decode_budget_exceeded (see `ClipLimits`) or out_of_memory (of this process at this time).
    """
    if not data:
        raise InvalidSample("empty_body", "0 bytes")
    start, end = start_seconds or 0.0, math.inf if end_seconds is None else end_seconds
    if not (0 <= start < end):
        raise InvalidSample("clip_out_of_range", f"from {start} to {end} seconds")
    if end != math.inf and end - start > limits.max_seconds:
        raise InvalidSample("too_long", f"{end - start} seconds, at most {limits.max_seconds}")
    wanted = Wanted(start, end, frames_per_second, max_short_edge, choose)
    if demuxer := sniff_container(data):
        return decode_clip(data, demuxer, wanted, limits)
    if kind := sniff_animation(data):
        return decode_animation(data, kind, wanted, limits)
    raise InvalidSample(*other_media(data))


def frames_blob(clip: SampledClip) -> bytes:
    """`clip` as a blob of JPEGs of quality 90."""
    jpegs = []
    for frame in clip.frames:
        buffer = BytesIO()
        frame.save(buffer, "JPEG", quality=JPEG_QUALITY)
        jpegs.append(buffer.getvalue())
    return encode_frames(jpegs, clip.timestamps)
