"""How a frame looks: turned, mirrored, in the proportions of a player, in its colours."""

import struct
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.media.clips import encode
from x2vlm.data.media.video import SampledClip, sample_clip
from x2vlm.errors import InvalidSample

WIDTH, HEIGHT = 64, 32


def corner_clip() -> bytes:
    """A wide clip whose upper left quarter is bright and whose lower left quarter is grey."""
    pixels = np.full((HEIGHT, WIDTH, 3), 16, dtype=np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = 230
    pixels[HEIGHT // 2 :, : WIDTH // 2] = 120
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def with_matrix(video: bytes, a: float, b: float, c: float, d: float) -> SampledClip:
    matrix = struct.pack(">9i", int(a * 65536), int(b * 65536), 0, int(c * 65536), int(d * 65536), 0, 0, 0, 1 << 30)
    at = video.index(b"tkhd") + 44
    return sample_clip(video[:at] + matrix + video[at + 36 :])


def seen(clip: SampledClip) -> np.ndarray:
    """The mean brightness of the quarters."""
    pixels = np.asarray(clip.frames[0].convert("L"), dtype=float)
    height, width = pixels.shape
    assert (clip.width, clip.height) == (width, height)
    rows = (slice(0, height // 2), slice(height // 2, height))
    columns = (slice(0, width // 2), slice(width // 2, width))
    return np.array([[pixels[row, column].mean() for column in columns] for row in rows])


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_each_of_the_eight_matrices_puts_pixels_where_the_standard_says(matrix: tuple[int, int, int, int]) -> None:
    """The oracle moves each quarter by the equations of ISO 14496-12: x' = a x + c y, y' = b x + d y."""
    a, b, c, d = matrix
    stored = np.array([[230.0, 16.0], [120.0, 16.0]])
    expected = np.zeros((2, 2))
    for y in (-1, 1):
        for x in (-1, 1):
            expected[(b * x + d * y + 1) // 2, (a * x + c * y + 1) // 2] = stored[(y + 1) // 2, (x + 1) // 2]
    clip = with_matrix(corner_clip(), *matrix)
    assert (clip.width, clip.height) == ((WIDTH, HEIGHT) if a else (HEIGHT, WIDTH))
    np.testing.assert_allclose(seen(clip), expected, atol=12)


@pytest.mark.parametrize(("degrees", "quarters"), [(89.4, 1), (10, 0), (60, 1), (185, 2), (-80, 3)])
def test_other_turns_are_rounded_to_quarters(degrees: float, quarters: int) -> None:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = with_matrix(corner_clip(), cosine, sine, -sine, cosine)
    exact = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][quarters]
    assert turned.frames[0] == with_matrix(corner_clip(), *exact).frames[0]


def test_a_matrix_that_maps_an_axis_to_nothing_is_ignored() -> None:
    for matrix in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)):
        assert with_matrix(corner_clip(), *matrix).frames[0] == with_matrix(corner_clip(), 1, 0, 0, 1).frames[0]


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("mpegts", "mpeg2video"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize(("aspect", "width"), [("16/11", 93), ("4/3", 85), ("1/2", 32), ("12/11", 70), ("1/1", 64)])
def test_pixels_that_are_not_square(container: str, codec: str, aspect: str, width: int) -> None:
    if codec == "mpeg2video" and aspect != "4/3":  # MPEG-2 knows the aspects of screens alone
        aspect, width = "1/1", 64
    clip = sample_clip(encode(container, codec, 12, 25, pixel_aspect=Fraction(aspect)))
    assert (clip.width, clip.height) == (width, 48)
    assert clip.frames[0].size == (width, 48)


def test_a_turned_clip_with_wide_pixels_and_a_limit() -> None:
    video = encode("mp4", "libx264", 12, 25, pixel_aspect=Fraction(4, 3))
    at = video.index(b"tkhd") + 44
    video = video[:at] + struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30) + video[at + 36 :]
    clip = sample_clip(video, max_short_edge=24)
    assert (clip.width, clip.height) == (48, 85)
    assert clip.frames[0].size == (24, 42)


@pytest.mark.parametrize("aspect", ["100/1", "1/50"])
def test_an_aspect_beyond_belief_is_ignored(aspect: str) -> None:
    assert sample_clip(encode("mp4", "libx264", 12, 25, pixel_aspect=Fraction(aspect))).width == 64


COLOURS = [(40, 90, 200), (250, 250, 250), (0, 0, 0), (200, 30, 60), (30, 180, 40)]


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p10le", "yuv420p10le"])
@pytest.mark.parametrize(("matrix", "weights"), [(1, (0.2126, 0.0722)), (5, (0.299, 0.114)), (9, (0.2627, 0.0593))])
@pytest.mark.parametrize("is_full", [False, True])
def test_colours_are_those_of_the_named_matrix_and_range(
    pixels: str, matrix: int, weights: tuple[float, float], is_full: bool
) -> None:
    """The oracle is the arithmetic of ITU-R BT.601, 709 and 2020, for one colour all over."""
    bits = 10 if "10" in pixels else 8
    red, blue = weights
    buffer = BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=1)  # no loss
        stream.width, stream.height, stream.pix_fmt = 32, 32, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if is_full else 1
        for number, colour in enumerate(COLOURS):
            r, g, b = (value / 255 for value in colour)
            y = red * r + (1 - red - blue) * g + blue * b
            u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
            scale = 1 << (bits - 8)
            top = (1 << bits) - 1
            coded = (y * top, u * top + 128 * scale, v * top + 128 * scale)
            if not is_full:
                coded = ((16 + 219 * y) * scale, (128 + 224 * u) * scale, (128 + 224 * v) * scale)
            frame = av.VideoFrame(32, 32, pixels)
            for plane, value in zip(frame.planes, coded, strict=True):
                rounded = min(top, round(value))
                plane.update(
                    np.full(
                        plane.buffer_size * 8 // (16 if bits > 8 else 8), rounded, np.uint16 if bits > 8 else np.uint8
                    ).tobytes()
                )
            frame.colorspace, frame.color_range, frame.pts = matrix, 2 if is_full else 1, number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    clip = sample_clip(buffer.getvalue())
    shown = [frame.getpixel((16, 16)) for frame in clip.frames]
    np.testing.assert_allclose(np.array(shown, dtype=int), np.array(COLOURS), atol=3)


def animation(kind: str, durations: list[int], mode: str = "RGB", edge: int = 24) -> bytes:
    """An animation whose frame k is red, of brightness 40 + 30 k."""
    frames = [Image.new(mode, (edge, edge), (40 + 30 * k, 0, 0, 255)[: len(mode)]) for k in range(len(durations))]
    buffer = BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_clips_that_are_played_once(kind: str) -> None:
    video = animation(kind, [1000, 500, 2000, 1500])  # shown from 0, 1, 1.5 and 3.5 seconds on, until 5
    clip = sample_clip(video)
    assert clip.timestamps == pytest.approx([0, 1, 1.5, 1.5, 3.5], abs=0.05)
    reds = [frame.getpixel((5, 5))[0] for frame in clip.frames]  # type: ignore[index]
    assert reds == pytest.approx([40, 70, 100, 100, 130], abs=2)
    part = sample_clip(video, start_seconds=3.0, end_seconds=3.4)
    assert part.timestamps == pytest.approx([1.5], abs=0.05)
    with pytest.raises(InvalidSample, match="clip_out_of_range"):
        sample_clip(video, start_seconds=6.0)
    with pytest.raises(InvalidSample, match="decode_failed"):
        sample_clip(video[: len(video) * 2 // 3])
    assert len(sample_clip(video, choose=lambda count: [0, count - 1]).frames) == 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "JPEG", "BMP", "TIFF", "JPEG2000", "AVIF"])
def test_a_still_picture_is_no_video_and_the_drop_says_which(kind: str) -> None:
    buffer = BytesIO()
    Image.new("RGB", (24, 24), "red").save(buffer, kind)
    with pytest.raises(InvalidSample, match="not_a_video: a still image") as caught:
        sample_clip(buffer.getvalue())
    assert {"JPEG2000": "jp2"}.get(kind, kind.lower()) in caught.value.message.lower()


@pytest.mark.parametrize("start", [b".RMF\0\0\0\x12", b"DKIF\0\0 \0VP80", b"\0\0\0\x01\x67\x42\0\x1e", b"FWS\x09\0\0"])
def test_a_video_that_is_not_read_is_named(start: bytes) -> None:
    with pytest.raises(InvalidSample, match="format_unsupported"):
        sample_clip(start + bytes(100))


def test_a_codec_that_is_not_in_the_table_is_named() -> None:
    for codec, pixels in (("asv1", "yuv420p"), ("asv2", "yuv420p"), ("flashsv", "bgr24")):
        buffer = BytesIO()
        with av.open(buffer, "w", format="avi") as output:
            stream = output.add_stream(codec, rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            output.mux(stream.encode(av.VideoFrame(64, 48, pixels)))
            output.mux(stream.encode())
        with pytest.raises(InvalidSample, match=f"format_unsupported: video codec {codec}"):
            sample_clip(buffer.getvalue())
