"""Images and clips from anywhere, and what is said of files that are neither."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.models.folders import CLIPS, PHOTOS, SAMPLE
from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.media.images import open_image
from x2vlm.data.media.video import sample_clip
from x2vlm.errors import InvalidSample, SourceUnavailable
from x2vlm.inference.visuals import MAX_FILE_BYTES, Skipped, list_files, read_visual, read_visuals


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
@pytest.mark.parametrize("num_frames", [1, 3, 30])
def test_frames_are_those_of_evaluation(clip, num_frames):
    sampled = sample_clip(clip.read_bytes(), 1.0)
    chosen = choose_frames(len(sampled.frames), num_frames)
    visual = read_visual(str(clip), num_frames)
    assert visual.is_clip
    assert len(visual.frames) == num_frames
    assert all(same(frame, sampled.frames[number]) for frame, number in zip(visual.frames, chosen, strict=True))
    assert visual.size == (sampled.width, sampled.height)


def test_the_first_bytes_decide_not_the_name(tmp_path):
    disguised = tmp_path / "photo.mp4"
    disguised.write_bytes(PHOTOS[0].read_bytes())
    visual = read_visual(disguised)
    assert not visual.is_clip
    assert same(visual.frames[0], open_image(PHOTOS[0].read_bytes()))


def test_opened_images_lose_transparency_and_are_turned(tmp_path):
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    assert read_visual(clear).frames[0].getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert read_visual(opened).size == (2, 4)
    assert read_visual(Image.new("L", (4, 2), 7)).frames[0].getpixel((0, 0)) == (7, 7, 7)


def test_a_broken_opened_image_is_named():
    with Image.open(SAMPLE / "media" / "bad" / "truncated.jpg") as opened, pytest.raises(InvalidSample) as caught:
        read_visual(opened)
    assert caught.value.rule == "decode_failed"
    assert "truncated.jpg" in str(caught.value)


def test_files_that_cannot_be_read_are_named_with_a_rule(tmp_path):
    huge = tmp_path / "huge.mp4"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a hole: no bytes on disk
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\nfile:///etc/passwd\n")
    cases = {
        huge: "too_many_bytes",
        playlist: "not_media",
        tmp_path: "unreadable",
        tmp_path / "nowhere.jpg": "unreadable",
        "http://sample.invalid/a.jpg": "unreadable",
        "nul\0.jpg": "unreadable",
        b"": "empty_body",
        b"\xff\xd8\xff": "decode_failed",
    }
    found = list(read_visuals(cases))
    assert [item.rule for item in found if isinstance(item, Skipped)] == list(cases.values())
    assert found[3].name == str(tmp_path / "nowhere.jpg")


def test_folders_are_listed_in_order_without_hidden_files(tmp_path):
    for name in ("b.jpg", "a/c.jpg", ".git/x.jpg", ".DS_Store", "a/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [str(path.relative_to(tmp_path)) for path in list_files(tmp_path)] == ["a/c.jpg", "b.jpg"]
    with pytest.raises(SourceUnavailable, match="no such folder"):
        list_files(tmp_path / "b.jpg")


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def channels_first(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda image: np.asarray(image), id="array"),
        pytest.param(lambda image: np.asarray(image)[:, ::-1][:, ::-1], id="array-with-other-strides"),
        pytest.param(lambda image: np.asarray(image) / 255, id="array-of-fractions"),
        pytest.param(lambda image: np.asarray(image.convert("RGBA")), id="array-rgba"),
        pytest.param(channels_first, id="tensor"),
        pytest.param(lambda image: (channels_first(image) / 255).requires_grad_(), id="tensor-of-fractions"),
        pytest.param(lambda image: channels_first(image).to(torch.uint8).contiguous(), id="tensor-contiguous"),
        pytest.param(lambda image: io.BytesIO(png(image)), id="bytesio"),
        pytest.param(lambda image: bytearray(png(image)), id="bytearray"),
        pytest.param(lambda image: memoryview(png(image)), id="memoryview"),
    ],
)
def test_every_form_of_an_image_is_the_same_image(photo, form):
    visual = read_visual(form(photo))
    assert not visual.is_clip
    assert same(visual.frames[0], photo)


@pytest.mark.parametrize(
    "grey", [np.full((4, 5), 9, np.uint8), np.full((4, 5, 1), 9, np.uint8), torch.full((1, 4, 5), 9, dtype=torch.uint8)]
)
def test_grey_arrays_are_images(grey):
    assert same(read_visual(grey).frames[0], Image.new("RGB", (5, 4), (9, 9, 9)))


def test_an_open_file_is_read_from_where_it_stands(tmp_path, photo):
    path = tmp_path / "two.bin"
    path.write_bytes(b"head" + png(photo))
    with path.open("rb") as file:
        file.seek(4)
        assert same(read_visual(file).frames[0], photo)
    with CLIPS[0].open("rb") as file:
        assert read_visual(file).is_clip
    with path.open("r", encoding="latin-1") as file, pytest.raises(InvalidSample, match=r"two\.bin.*'rb'"):
        read_visual(file)
    with pytest.raises(InvalidSample, match="closed"):
        read_visual(file)


@pytest.mark.parametrize(
    ("value", "rule", "words"),
    [
        (None, "not_a_source", "NoneType"),
        (3, "not_a_source", "int"),
        ({"image": 1}, "not_a_source", "dict"),
        (np.zeros((3, 8, 8), np.uint8), "array_shape", r"\(3, 8, 8\)"),
        (torch.zeros(8, 8, 3), "array_shape", r"\(3, H, W\).*\(8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), "array_shape", "0, 8, 3"),
        (np.zeros((2, 8, 8, 3), np.uint8), "array_shape", "2, 8, 8, 3"),
        (np.zeros((8, 8, 3), np.uint16), "array_values", "uint16"),
        (np.full((8, 8, 3), 255.0), "array_values", "255"),
        (torch.full((3, 8, 8), -1.5), "array_values", "normalisation"),
        (np.full((8, 8, 3), np.nan), "array_values", "nan"),
        (np.array([["a", "b"]]), "array_values", "<U1"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:12],
)
def test_what_is_no_image_is_refused_by_name(value, rule, words):
    with pytest.raises(InvalidSample, match=words) as caught:
        read_visual(value)
    assert caught.value.rule == rule
