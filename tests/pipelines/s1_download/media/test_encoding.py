"""What the download stage stores of an image: original bytes that nobody decoded, or a smaller upright JPEG."""

import hashlib
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from PIL import Image

import x2vlm.data.media.images
from pipelines.experiment import load_experiment
from pipelines.flow.fingerprint import canonical_json
from pipelines.graph import build_graph
from pipelines.project import PROJECT_ROOT
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.media import encoding as store
from pipelines.s1_download.media.encoding import OriginalBytes, Reencoded, media_to_store
from tests.support.download.stage import download, make_samples
from x2vlm.data.media.images import open_image, probe, reencode_image, shrunk_size
from x2vlm.errors import InvalidSample

SECRET = b"secret-place"


def scene(width: int = 300, height: int = 200) -> Image.Image:
    """Four flat quarters of different colours: red, green, blue, white."""
    image = Image.new("RGB", (width, height), "white")
    for colour, x, y in (("red", 0, 0), ("lime", 1, 0), ("blue", 0, 1)):
        image.paste(colour, (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2))
    return image


def jpeg_of(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x013B] = SECRET.decode()
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif, comment=SECRET)
    return buffer.getvalue()


def served(folder: Path, files: dict[str, bytes], **config: Any) -> Any:
    """The stage run over files that a folder of its own serves."""
    (folder / "media").mkdir()
    for name, data in files.items():
        (folder / "media" / name).write_bytes(data)
    base = "http://sample.invalid"
    samples = make_samples([f"{base}/{name}" for name in files])
    return download(folder, samples, url_base={"from": base, "serve": str(folder / "media")}, **config)


@pytest.fixture(scope="module")
def reencoded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run that re-encodes: as stored, turned, small, a PNG with transparency, and one that breaks off."""
    transparent = Image.new("RGBA", (150, 120), (0, 0, 0, 0))
    buffer = BytesIO()
    transparent.save(buffer, "PNG")
    files = {
        "plain.jpg": jpeg_of(scene()),
        "turned.jpg": jpeg_of(scene(), orientation=6),
        "small.jpg": jpeg_of(scene(60, 40)),
        "clear.png": buffer.getvalue(),
        "cut.jpg": jpeg_of(scene())[:-900],
    }
    config = {"store": {"kind": "reencoded", "short_edge": 100, "quality": 90}}
    return served(tmp_path_factory.mktemp("reencoded"), files, **config), files


def test_reencoded_images_are_small_upright_jpegs_and_their_record_is_of_the_original(reencoded: Any) -> None:
    run, files = reencoded
    by_name = {sample.url.rsplit("/", 1)[1]: sample for sample in run.kept}
    assert {name for name in files} - set(by_name) == {"cut.jpg"}
    sizes = {"plain.jpg": ((300, 200), (150, 100)), "turned.jpg": ((200, 300), (100, 150))}
    sizes |= {"small.jpg": ((60, 40), (60, 40)), "clear.png": ((150, 120), (125, 100))}
    for name, (original, stored) in sizes.items():
        media = by_name[name].media
        payload = run.pack.read(media.sha256)
        assert (media.width, media.height) == original
        assert (media.sha256, media.bytes) == (hashlib.sha256(files[name]).hexdigest(), len(files[name]))
        header = probe(payload)
        assert (header.format, header.width, header.height, header.orientation) == ("jpeg", *stored, 1)
        assert media.format == "jpeg"
        assert SECRET not in payload
        whole = np.asarray(open_image(files[name]).resize(stored, Image.Resampling.BOX), dtype=float)
        assert np.abs(np.asarray(open_image(payload), dtype=float) - whole).mean() < 3, name


def test_what_does_not_decode_is_a_counted_drop_where_it_is_decoded(reencoded: Any) -> None:
    run, _ = reencoded
    assert run.result.counts["rows"].dropped == {"decode_failed": 1}
    assert [row["status"] for row in run.ledger] == ["kept"] * 4 + ["decode_failed"]


def test_original_bytes_are_stored_without_decoding_unless_asked(tmp_path: Path) -> None:
    files = {"good.jpg": jpeg_of(scene()), "cut.jpg": jpeg_of(scene())[:-900], "page.jpg": b"<html>"}
    run = served(tmp_path, files, strip_metadata=False)
    assert [row["status"] for row in run.ledger] == ["kept", "kept", "not_an_image"]
    for sample in run.kept:
        assert (sample.media.width, sample.media.height) == (300, 200)
        assert run.pack.read(sample.media.sha256) == files[sample.url.rsplit("/", 1)[1]]


def test_nothing_is_decoded_for_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image) -> None:
        raise AssertionError("decoded")

    data = jpeg_of(scene(), orientation=8)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    media, payload, digest = media_to_store(data, OriginalBytes(), strips_metadata=True)
    assert (media.width, media.height, media.sha256) == (200, 300, hashlib.sha256(data).hexdigest())
    assert SECRET not in payload
    assert digest == hashlib.sha256(payload).hexdigest()
    with pytest.raises(AssertionError, match="decoded"):
        media_to_store(data, OriginalBytes(check="decode"), strips_metadata=True)
    with pytest.raises(AssertionError, match="decoded"):
        media_to_store(data, Reencoded(kind="reencoded"), strips_metadata=True)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_in_the_pixels_of_what_is_reencoded(orientation: int, scaled: bool) -> None:
    data = jpeg_of(scene(1200, 800), orientation)
    small = open_image(reencode_image(data, 100, 95, scaled))
    upright = open_image(data)
    assert small.size == ((150, 100) if orientation < 5 else (100, 150))
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        there = small.getpixel((int(x * small.width), int(y * small.height)))
        assert (
            np.abs(np.subtract(there, upright.getpixel((int(x * upright.width), int(y * upright.height))))).max() < 12
        )


def test_reencoding_gives_equal_bytes_in_every_process() -> None:
    data = jpeg_of(scene(640, 480))
    script = (
        "import hashlib, sys; from x2vlm.data.media.images import reencode_image; data = sys.stdin.buffer.read(); "
        "print(*[hashlib.sha256(reencode_image(data, 256, 95, scaled)).hexdigest() for scaled in (False, True)])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, input=data, capture_output=True, check=True)
    here = [hashlib.sha256(reencode_image(data, 256, 95, scaled)).hexdigest() for scaled in (False, True)]
    assert done.stdout.decode().split() == here


def test_scaled_decoding_leaves_pixels_out(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    whole = x2vlm.data.media.images.as_rgb
    monkeypatch.setattr(x2vlm.data.media.images, "as_rgb", lambda image: decoded.append(image.size) or whole(image))
    for scaled in (False, True):
        reencode_image(jpeg_of(scene(1200, 800)), 190, 95, scaled)
    assert decoded == [(1200, 800), (300, 200)]  # a quarter is the least that still has 190


def test_scaled_decoding_is_near_the_full_way_on_real_photos(project_root: Path) -> None:
    ratios = []
    for path in sorted((project_root / "datasets/sample/media/photos").glob("0000000*.jpg"))[:12]:
        image = open_image(path.read_bytes())
        buffer = BytesIO()
        image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        full, scaled = (open_image(reencode_image(buffer.getvalue(), 256, 95, scaled)) for scaled in (False, True))
        error = np.mean((np.asarray(full, dtype=float) - np.asarray(scaled, dtype=float)) ** 2)
        ratios.append(10 * np.log10(255**2 / error))
    assert min(ratios) > 28  # decibels: another image lies at 10
    assert Reencoded(kind="reencoded").scaled_decode is False  # since 35 is not reached by all: see reencode_image


@pytest.mark.parametrize("data", [b"", b"GIF89a", jpeg_of(scene())[:700]])
def test_reencoding_refuses_by_rule(data: bytes) -> None:
    with pytest.raises(InvalidSample) as refused:
        reencode_image(data, 100, 90)
    assert refused.value.rule in ("empty_body", "decode_failed")


@pytest.mark.parametrize(
    ("size", "short_edge", "expected"),
    [
        ((300, 200), 100, (150, 100)),
        ((200, 300), 100, (100, 150)),
        ((100, 300), 100, (100, 300)),
        ((99, 300), 100, (99, 300)),
        ((797, 1200), 256, (256, 385)),
        ((20_000, 101), 100, (19_802, 100)),
    ],
)
def test_the_short_edge_decides_and_nothing_is_enlarged(
    size: tuple[int, int], short_edge: int, expected: tuple[int, int]
) -> None:
    assert shrunk_size(*size, short_edge) == expected


def test_what_is_stored_counts_in_fingerprints() -> None:
    stores: list[Any] = [
        {"kind": "original"},
        {"kind": "original", "check": "decode"},
        {"kind": "reencoded"},
        {"kind": "reencoded", "short_edge": 224},
        {"kind": "reencoded", "quality": 90},
        {"kind": "reencoded", "scaled_decode": True},
    ]
    forms = [canonical_json(DownloadConfig.model_validate({"store": item})) for item in stores]
    assert len(set(forms)) == len(stores)
    assert forms[0] == canonical_json(DownloadConfig()) == b"{}"
    for wrong in ({"kind": "original", "quality": 90}, {"kind": "thumbnail"}, {"kind": "reencoded", "check": "header"}):
        with pytest.raises(pydantic.ValidationError):
            DownloadConfig.model_validate({"store": wrong})


def test_a_store_reaches_the_child_whole(tmp_path: Path) -> None:
    from pipelines.s1_download.child.protocol import read_job, write_job

    config = DownloadConfig(store=Reencoded(kind="reencoded", short_edge=99), threads=3)
    write_job(tmp_path, config, config.policy(), [])
    assert read_job(tmp_path)[0] == config


def test_held_out_images_are_kept_as_they_came_and_decoded_at_once() -> None:
    experiment = load_experiment("sample")
    changed = {"download": experiment.download.model_copy(update={"store": Reencoded(kind="reencoded")})}
    graph = build_graph(experiment.model_copy(update=changed))
    stores = {node.key: node.config.store for node in graph.values() if node.key.startswith("download/")}
    assert stores.pop("download/coco_heldout") == OriginalBytes(check="decode")
    assert set(map(type, stores.values())) == {Reencoded}


def test_without_metadata_an_image_keeps_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_of(scene())
    monkeypatch.setattr(store, "strip_metadata", lambda *arguments: jpeg_of(scene(302, 200)))
    with pytest.raises(InvalidSample, match="another size"):
        store.without_metadata(data, probe(data))
