"""JPEGs that lack only their end, and JPEGs that break off."""

import numpy as np
import pytest
from PIL import Image

from pipelines.s1_download.media.encoding import OriginalBytes, Reencoded, media_to_store
from tests.hostile.image_bombs import encode
from x2vlm.data.media.decode import decode_image
from x2vlm.data.media.images import draft_image, open_image, reencode_image
from x2vlm.errors import InvalidSample

COARSE = np.random.default_rng(3).integers(0, 255, (15, 20, 3), dtype=np.uint8)
PHOTO = Image.fromarray(COARSE).resize((323, 241), Image.Resampling.BICUBIC)
KINDS = {
    "baseline": {"quality": 85},
    "progressive": {"quality": 85, "progressive": True},
    "full colour": {"quality": 95, "subsampling": 0},
    "optimised": {"quality": 40, "optimize": True},
    "restarts": {"quality": 85, "restart_marker_rows": 3},
    "progressive, restarts": {"quality": 70, "progressive": True, "restart_marker_blocks": 7},
}


def jpeg(kind: str, mode: str = "RGB") -> bytes:
    return encode(PHOTO.convert(mode), "JPEG", **KINDS[kind])


def verdict(data: bytes) -> bytes | str:
    try:
        return open_image(data).tobytes()
    except InvalidSample as error:
        return error.rule


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_without_its_last_two_bytes_has_all_its_pixels(kind: str, mode: str) -> None:
    data = jpeg(kind, mode)
    whole = open_image(data)
    for cut in (data[:-1], data[:-2], data[:-2] + b"\xff\xff\xff"):
        assert open_image(cut).tobytes() == whole.tobytes()
        assert (decode_image(cut).numpy() == np.asarray(whole)).all()
    assert draft_image(data[:-2], (80, 60)).tobytes() == draft_image(data, (80, 60)).tobytes()
    assert reencode_image(data[:-2], 100, 90) == reencode_image(data, 100, 90)


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_breaks_off_is_refused(kind: str) -> None:
    data = jpeg(kind)
    scans = [position for position in range(len(data)) if data[position : position + 2] == b"\xff\xda"]
    restarts = [n for n in range(len(data) - 1) if data[n] == 0xFF and 0xD0 <= data[n + 1] <= 0xD7]
    # Cut off at every kind of place: just before the end, before each scan, at a restart mark, anywhere.
    lengths = {*range(len(data) - 8, len(data) - 3), *scans[1:], *restarts[::9], *range(700, len(data) - 3, 997)}
    whole = open_image(data).tobytes()
    verdicts = {length: verdict(data[:length]) for length in lengths}
    assert set(verdicts.values()) <= {"decode_failed", whole}  # all pixels, if padding alone was cut off
    assert sum(one == "decode_failed" for one in verdicts.values()) >= len(lengths) - 1


def test_the_download_keeps_it_whichever_way_it_stores() -> None:
    data = jpeg("baseline")[:-2]
    for store in (OriginalBytes(), OriginalBytes(check="decode"), Reencoded(kind="reencoded", short_edge=100)):
        media, payload, _ = media_to_store(data, store, strips_metadata=True)
        assert (media.width, media.height) == PHOTO.size
        open_image(payload)
    with pytest.raises(InvalidSample):
        media_to_store(data[: len(data) // 2], OriginalBytes(check="decode"), strips_metadata=True)
