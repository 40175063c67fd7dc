"""Every tricky image and every clip of the samples, through one process that reads good files all along."""

from pathlib import Path

import pytest

from pipelines.s1_download.child.protocol import Item
from pipelines.s1_download.child.runner import fetch_items
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.loopback import serve_folder
from pipelines.s1_download.media.encoding import OriginalBytes
from tests.hostile.payloads import clip, jpeg, jpeg_giant, png_bomb, webp_giant
from x2vlm.data.media.images import open_image
from x2vlm.data.media.video import decode_frames, sample_clip
from x2vlm.errors import InvalidSample

IMAGE_RULES = {"empty_body", "not_an_image", "format_unsupported", "too_many_pixels", "decode_failed"}
VIDEO_RULES = {"empty_body", "not_a_video", "format_unsupported", "too_many_pixels", "too_long", "decode_failed"}


@pytest.fixture(scope="module")
def samples(excerpts_dir: Path) -> list[Path]:
    folder = excerpts_dir
    return [path for name in ("tricky", "videos") for path in sorted((folder / name).iterdir())]


def image_verdict(data: bytes) -> str:
    """ "ok", or the rule that refuses `data` as an image."""
    try:
        image = open_image(data)
    except InvalidSample as error:
        return error.rule
    assert image.mode == "RGB"
    return "ok"


def video_verdict(data: bytes) -> str:
    """ "ok", or the rule that refuses `data` as a video."""
    try:
        sampled = sample_clip(data, max_short_edge=64)
    except InvalidSample as error:
        return error.rule
    assert len(sampled.frames) == len(sampled.timestamps) >= 1
    return "ok"


def test_each_is_a_sample_or_a_named_drop_as_what_it_is_and_as_what_it_is_not(samples: list[Path]) -> None:
    good, moving = jpeg(), clip(5)
    for path in samples:
        data = path.read_bytes()
        is_video = path.parent.name == "videos"
        moves = is_video or any(word in path.name for word in ("apng", "anim", "gif"))
        assert image_verdict(data) in (IMAGE_RULES if is_video else IMAGE_RULES | {"ok"}), path.name
        assert video_verdict(data) in (VIDEO_RULES | {"ok"} if moves else VIDEO_RULES), path.name
        assert (image_verdict(good), video_verdict(moving)) == ("ok", "ok"), f"after {path.name}"


@pytest.mark.parametrize("bomb", [png_bomb, jpeg_giant, webp_giant])
def test_giants_are_refused_by_their_header(bomb) -> None:  # type: ignore[no-untyped-def]
    data = bomb()
    assert len(data) < 64_000
    assert image_verdict(data) == "too_many_pixels"


@pytest.mark.slow
def test_one_child_of_the_stage_takes_them_all(samples: list[Path], tmp_path: Path) -> None:
    folder, scratch = tmp_path / "served", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    for path in samples:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "~good.jpg").write_bytes(jpeg())
    (folder / "~good.mp4").write_bytes(clip(5))
    images = [path.name for path in samples if path.parent.name == "tricky"] + ["~good.jpg"]
    videos = [path.name for path in samples if path.parent.name == "videos"] + ["~good.mp4"]
    with serve_folder(folder) as (address, port):
        base = f"http://{address}:{port}"
        items = [Item(index, "image", f"{base}/{name}") for index, name in enumerate(images)]
        items += [Item(len(images) + index, "video", f"{base}/{name}") for index, name in enumerate(videos)]
        store = OriginalBytes(check="decode")
        config = DownloadConfig(store=store, host_requests_per_second=0.0, reads_robots=False, threads=4)
        results = fetch_items(items, scratch, config, config.policy(((address, port),)))
    assert [path.name for path in scratch.glob("child-*")] == ["child-0"]  # none died
    for item, name in zip(items, images + videos, strict=True):
        result, data = results[item.id], (folder / name).read_bytes()
        verdict = image_verdict(data) if item.kind == "image" else video_verdict(data)
        assert result.status in ({"kept", "metadata_unreadable"} if verdict == "ok" else {verdict}), name
        if result.status == "kept":
            assert result.stored is not None
            with Path(result.stored.path).open("rb") as stream:
                stream.seek(result.stored.offset)
                payload = stream.read(result.stored.bytes)
            assert decode_frames(payload) if item.kind == "video" else open_image(payload)
    kept = {name for item, name in zip(items, images + videos, strict=True) if results[item.id].status == "kept"}
    assert {"~good.jpg", "~good.mp4"} <= kept
    assert len(kept) >= 50 + 14
