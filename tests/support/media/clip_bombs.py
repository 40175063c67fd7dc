"""Clips that are small to send and dear to decode, one of each kind that a public bug report or a format allows."""

import functools
import random
import struct
import zlib
from io import BytesIO

import av
from PIL import Image

from tests.support.media.clips import (
    avc1,
    box,
    encode,
    flat_keyframe,
    length_prefixed,
    mp4_repeating,
    remux,
)

BUDGET, PIXELS, LONG = "decode_budget_exceeded", "too_many_pixels", "too_long"


@functools.cache
def clip_bombs() -> dict[str, tuple[bytes, set[str]]]:
    """Name -> the file, and the rules by which it may be dropped."""
    return {
        "200,000 large frames, mp4": (large_frames(200_000, 400), {BUDGET, LONG}),
        "90,000 large frames, mp4": (large_frames(90_000, 200), {BUDGET}),
        "100,000 large frames, matroska": (static_matroska(100_000), {BUDGET}),
        "a late clip behind one keyframe": (static_matroska(20_000, (1920, 1080), 0.025), {BUDGET}),
        "an index of 4 thousand million": (announcing(0xFFFFFFFF), {BUDGET}),
        "an index of 50 million": (announcing(50_000_000), {BUDGET}),
        "10,000 tracks": (many_tracks(10_000), {BUDGET}),
        "boxes in boxes": (nested_boxes(200_000), {"not_a_video"}),
        "2 million boxes": (encode("mp4", "libx264", 3) + box(b"free") * 2_000_000, {BUDGET}),
        "frames that become 16k": (growing(16_000), {PIXELS, "decode_failed"}),
        "frames that become 42 million pixels": (grown(), {PIXELS}),
        "frames of 200 by 16,000": (ribbons(), {BUDGET}),
        "150 attached fonts": (many_attachments(150), {"ok"}),
        "packed packets": (packed_packets(400), {BUDGET}),
        "times of years": (years(), {LONG, "ok"}),
        "granules that lie": (lying_granules(), {LONG, "ok"}),
        "GIF of many frames": (gif_frames(20_000, 4_000), {BUDGET}),
        "APNG of many frames": (apng_frames(30_000, 3_000), {BUDGET}),
    }


def large_frames(num_frames: int, rate: int) -> bytes:
    frame, extradata = flat_keyframe(4096, 2304)
    return mp4_repeating(length_prefixed(frame), avc1(4096, 2304, extradata), num_frames, rate)


def announcing(num_samples: int) -> bytes:
    frame, extradata = flat_keyframe(64, 48)
    return mp4_repeating(length_prefixed(frame), avc1(64, 48, extradata), 5, 10, announced=num_samples)


@functools.cache
def _still(width: int, height: int) -> tuple[bytes, list[bytes]]:
    """A clip of one colour, and its packets: a keyframe, and frames in which nothing moves."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "x264-params": "keyint=infinite:scenecut=0:bframes=0:ref=1"}
        for number in range(4):
            frame = av.VideoFrame(width, height, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with av.open(BytesIO(buffer.getvalue())) as source:
        return buffer.getvalue(), [bytes(packet) for packet in source.demux(video=0) if packet.size]


def static_matroska(num_frames: int, size: tuple[int, int] = (4096, 2304), seconds_each: float = 0.005) -> bytes:
    template, packets = _still(*size)
    return remux([packets[0], *[packets[1]] * num_frames], template, seconds_each=seconds_each)


def many_tracks(count: int) -> bytes:
    video = encode("mp4", "libx264", 3)
    at = video.index(b"moov") - 4
    moov = video[at + 8 : at + struct.unpack_from(">I", video, at)[0]]
    start = moov.index(b"trak") - 4
    trak = moov[start : start + struct.unpack_from(">I", moov, start)[0]]
    return video[:at] + box(b"moov", moov[:start], trak * count)


def nested_boxes(depth: int) -> bytes:
    inner = b"".join(struct.pack(">I4s", 8 * (depth - level), b"trak") for level in range(depth))
    return box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4s", 8 + len(inner), b"moov") + inner


def growing(edge: int) -> bytes:
    """Motion JPEG whose second picture announces a far larger size than the first."""
    small, giant = BytesIO(), BytesIO()
    Image.new("RGB", (64, 48), "teal").save(small, "JPEG")
    Image.new("RGB", (64, 48), "teal").save(giant, "JPEG")
    data = bytearray(giant.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, edge, edge)
    return remux([small.getvalue(), bytes(data), bytes(data)], encode("matroska", "mjpeg", 2), seconds_each=0.5)


def grown() -> bytes:
    """As `growing`, with a second picture that is there."""
    small, large = BytesIO(), BytesIO()
    Image.new("RGB", (64, 48), "teal").save(small, "JPEG")
    Image.new("RGB", (7_000, 6_000), "teal").save(large, "JPEG")
    return remux([small.getvalue(), large.getvalue()], encode("matroska", "mjpeg", 2), seconds_each=0.5)


def ribbons() -> bytes:
    """Frames of 3 million pixels that shrinking leaves as they are, one a second for ten minutes."""
    template, packets = _still(16_000, 200)
    return remux([packets[0], *[packets[1]] * 590], template, seconds_each=1.0)


def many_attachments(count: int) -> bytes:
    video = encode("matroska", "libx264", 5)
    noise = random.Random(0).randbytes(2_000)
    files = b"".join(
        _element(
            0x61A7,
            _element(0x466E, b"f.ttf")
            + _element(0x4660, b"font/ttf")
            + _element(0x46AE, bytes([1 + n % 250, n // 250 + 1]))
            + _element(0x465C, noise),
        )
        for n in range(count)
    )
    at = video.index(b"\x1f\x43\xb6\x75")
    return _with_unknown_segment(video[:at]) + _element(0x1941A469, files) + video[at:]


def packed_packets(count: int) -> bytes:
    """Matroska may pack its blocks: each of these has 10 kB and becomes 9 MB."""
    video = encode("matroska", "mjpeg", 2, options={"write_crc32": "0"})  # which may hold the name of an element
    packed = zlib.compress(bytes(9_000_000), 9)
    encoding = _element(0x6D80, _element(0x6240, _element(0x5034, _element(0x4254, b"\0"))))
    at = video.index(b"\x1f\x43\xb6\x75")
    tracks = video.rindex(b"\x16\x54\xae\x6b", 0, at)  # the first one is in the table of contents
    entry_at = video.index(b"\xae", tracks + 4)
    length = 9 - video[entry_at + 1].bit_length()
    size = int.from_bytes(video[entry_at + 1 : entry_at + 1 + length], "big") & ((1 << 7 * length) - 1)
    entry = video[entry_at + 1 + length : entry_at + 1 + length + size]
    head = _with_unknown_segment(video[:tracks]) + _element(0x1654AE6B, _element(0xAE, entry + encoding))
    clusters = b"".join(
        _element(0x1F43B675, _element(0xE7, struct.pack(">I", 40 * n)) + _element(0xA3, b"\x81\0\0\x80" + packed))
        for n in range(count)
    )
    return head + clusters


def _element(kind: int, content: bytes) -> bytes:
    name = kind.to_bytes((kind.bit_length() + 7) // 8, "big")
    return name + (len(content) | 1 << 56).to_bytes(8, "big") + content


def _with_unknown_segment(head: bytes) -> bytes:
    """The beginning of a Matroska file whose segment goes to its end, without its other elements."""
    at = head.index(b"\x18\x53\x80\x67")
    rest = head[at + 12 :]
    info = rest.rfind(b"\x15\x49\xa9\x66")
    return head[: at + 4] + b"\x01" + b"\xff" * 7 + rest[info:]


def years() -> bytes:
    video = bytearray(encode("mov", "mpeg4", 5))
    at = video.index(b"stts") + 8
    struct.pack_into(">I", video, at + 8, 0x7FFFFFF0)
    return bytes(video)


def lying_granules() -> bytes:
    video = bytearray(encode("ogg", "libvpx", 60, options={"page_duration": "100000"}))
    at = video.find(b"OggS", len(video) // 2)
    struct.pack_into("<q", video, at + 6, 1 << 60)
    return bytes(video)


def gif_frames(count: int, edge: int) -> bytes:
    """Frames of one pixel on a screen of `edge` by `edge`, each drawn over all of it."""
    head = b"GIF89a" + struct.pack("<HHBBB", edge, edge, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    pixel = b"\x21\xf9\x04\x08\x02\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    return head + pixel * count + b";"


def apng_frames(count: int, edge: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = zlib.compress(bytes((1 + (edge + 7) // 8) * edge), 9)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", count, 0)))
    number = 0
    for frame in range(count):
        one = edge if not frame else 1
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, one, one, 0, 0, 1, 50, 1, 0)))
        number += 1
        if not frame:
            parts.append(chunk(b"IDAT", pixels))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number) + zlib.compress(b"\0\0")))
            number += 1
    return b"".join([*parts, chunk(b"IEND", b"")])
