"""Clips as tests need them: every container, times and metadata that a muxer would not choose, and files as bombs."""

import functools
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48


def grey(number: int, width: int = WIDTH, height: int = HEIGHT) -> av.VideoFrame:
    """Frame `number`: grey, of brightness 2 x number, noise in its lower third so that it takes some bytes."""
    pixels = np.full((height, width, 3), 2 * number % 256, dtype=np.uint8)
    pixels[2 * height // 3 :] = np.random.default_rng(number).integers(0, 255, (height - 2 * height // 3, width, 3))
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def encode(
    container: str,
    codec: str,
    num_frames: int = 100,
    rate: int = 10,
    keyframe_every: int = 30,
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    pixel_aspect: Fraction | None = None,
    sound_seconds: float = 0.0,
) -> bytes:
    """A clip of frames as `grey` makes them, at 1/rate or at `times` (seconds), with sound or without."""
    with tempfile.TemporaryDirectory() as folder:  # some muxers read again what they wrote
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=container, options=options or {}) as output:
            stream = output.add_stream(codec, rate=rate)
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = keyframe_every
            stream.bit_rate = 1_000_000
            if codec == "libvpx":
                stream.options = {"deadline": "realtime", "cpu-used": "8"}
            if codec == "libx264":
                stream.options = {"sc_threshold": "0", "preset": "veryfast"}
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if pixel_aspect is not None:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            sound = (
                output.add_stream("libopus" if container in ("webm", "matroska") else "aac", rate=48000)
                if sound_seconds
                else None
            )
            for number in range(num_frames):
                frame = grey(number)
                if times is None:
                    frame.pts, frame.time_base = number, Fraction(1, rate)
                else:
                    frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
            if sound is not None:
                for at in range(0, int(48000 * sound_seconds), 960):
                    silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
                    silence.pts, silence.time_base, silence.sample_rate = at, Fraction(1, 48000), 48000
                    output.mux(sound.encode(silence))
                output.mux(sound.encode())
        return path.read_bytes()


CLIPS: dict[str, tuple[str, str, dict[str, str]]] = {  # name -> container, codec, options of the muxer
    "mp4": ("mp4", "libx264", {}),
    "mp4, index first": ("mp4", "libx264", {"movflags": "faststart"}),
    "fragmented mp4": ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "mov": ("mov", "mpeg4", {}),
    "mkv": ("matroska", "libx264", {}),
    "mkv, index first": ("matroska", "libx264", {"reserve_index_space": "4000"}),
    "webm": ("webm", "libvpx", {}),
    "live webm": ("webm", "libvpx", {"live": "1"}),
    "avi": ("avi", "mpeg4", {}),
    "flv": ("flv", "flv", {}),
    "flv, H.264": ("flv", "libx264", {}),
    "ogg": ("ogg", "libvpx", {}),
    "asf": ("asf", "wmv2", {}),
    "ts": ("mpegts", "libx264", {}),
    "ts, MPEG-2": ("mpegts", "mpeg2video", {}),
    "m2ts": ("mpegts", "libx264", {"mpegts_m2ts_mode": "1"}),
    "program stream": ("mpeg", "mpeg2video", {}),
    "raw MPEG-2": ("mpeg2video", "mpeg2video", {}),
    "raw MPEG-1": ("mpeg1video", "mpeg1video", {}),
}


@functools.cache
def clip_in(name: str) -> bytes:
    """5.2 seconds in one of `CLIPS`, a keyframe every 1.2 seconds or so, 25 frames a second."""
    container, codec, options = CLIPS[name]
    return encode(container, codec, 130, 25, 31, options)


def flat_keyframe(width: int, height: int, codec: str = "libx264") -> tuple[bytes, bytes]:
    """One encoded frame of one colour and the extradata that its container needs."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base = Fraction(1, 25)
    context.flags |= 1 << 22  # parameters apart, not in the packets
    context.options = {"preset": "ultrafast", "x264-params": "keyint=1:scenecut=0"} if codec == "libx264" else {}
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane, value in zip(frame.planes, (90, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.pts = 0
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets), bytes(context.extradata or b"")


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, *content: bytes) -> bytes:
    return box(kind, bytes(4), *content)


def mp4_repeating(
    frame: bytes, sample_entry: bytes, num_frames: int, frames_per_second: int, announced: int | None = None
) -> bytes:
    """An MP4 whose index names the same bytes again and again; `announced` is what the index says instead."""
    ftyp = box(b"ftyp", b"isom", bytes(4), b"isomavc1")
    count = num_frames if announced is None else announced
    offset = struct.pack(">I", len(ftyp) + 8)
    stbl = box(
        b"stbl",
        full_box(b"stsd", struct.pack(">I", 1), sample_entry),
        full_box(b"stts", struct.pack(">3I", 1, count, 1)),
        full_box(b"stsc", struct.pack(">4I", 1, 1, 1 if announced is None else announced, 1)),
        full_box(b"stsz", struct.pack(">2I", len(frame), count)),
        full_box(b"stco", struct.pack(">I", num_frames), offset * num_frames),
    )
    trak = _track(stbl, num_frames, frames_per_second, b"vide")
    mvhd = full_box(b"mvhd", struct.pack(">4I", 0, 0, frames_per_second, num_frames), bytes(80))
    return ftyp + box(b"mdat", frame) + box(b"moov", mvhd, trak)


def _track(stbl: bytes, duration: int, timescale: int, handler: bytes) -> bytes:
    unity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    tkhd = box(b"tkhd", b"\0\0\0\7", struct.pack(">5I", 0, 0, 1, 0, duration), bytes(16), unity, bytes(8))
    mdhd = full_box(b"mdhd", struct.pack(">4I", 0, 0, timescale, duration), bytes(4))
    hdlr = full_box(b"hdlr", bytes(4), handler, bytes(13))
    dinf = box(b"dinf", full_box(b"dref", struct.pack(">I", 1), box(b"url ", b"\0\0\0\1")))
    minf = box(b"minf", box(b"vmhd", b"\0\0\0\1", bytes(8)), dinf, stbl)
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, minf))


def avc1(width: int, height: int, parameter_sets: bytes) -> bytes:
    """The sample entry of H.264 with the parameter sets of an encoder's extradata (start codes)."""
    sets = [part for part in parameter_sets.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if part]
    sps = next(part for part in sets if part[0] & 31 == 7)
    pps = next(part for part in sets if part[0] & 31 == 8)
    avcc = bytes([1, *sps[1:4], 0xFF, 0xE1]) + struct.pack(">H", len(sps)) + sps
    avcc += b"\1" + struct.pack(">H", len(pps)) + pps
    visual = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">2H", width, height)
    visual += struct.pack(">3I", 0x480000, 0x480000, 0) + struct.pack(">H", 1) + bytes(32) + b"\0\x18\xff\xff"
    return box(b"avc1", visual, box(b"avcC", avcc))


def length_prefixed(frame: bytes) -> bytes:
    """An H.264 frame with lengths instead of start codes, as MP4 has it."""
    parts = [part for part in frame.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if part]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def remux(packets: Sequence[bytes], template: bytes, container: str = "matroska", seconds_each: float = 0.01) -> bytes:
    """`packets`, the first a keyframe, as the video of a new file with the codec parameters of `template`."""
    buffer = BytesIO()
    with av.open(BytesIO(template)) as source, av.open(buffer, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = round(1000 * seconds_each * number)
            packet.is_keyframe = not number
            output.mux(packet)
    return buffer.getvalue()
