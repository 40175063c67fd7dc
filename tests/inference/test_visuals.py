"""Images and clips from anywhere, and what is said of files that are neither."""

import numpy as np
import pytest
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
