"""An image that was stored smaller than it came: crops and boxes, in pixels of the original, still hold."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipelines.s1_download.media.encoding import OriginalBytes, Reencoded, media_to_store
from tests.support.training.corpus import TOKENIZER
from x2vlm.data.loading.batch import normalised
from x2vlm.data.loading.examples import ExampleConfig, Recipe, plan_regions, region_pixels
from x2vlm.data.loading.transforms import AugmentConfig, cut_and_resize, cut_smaller_copy
from x2vlm.data.shards.rows import row_of
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box, Concept, Grain, Sample

RECIPE = Recipe(ExampleConfig(augment=AugmentConfig(num_ops=0)), TOKENIZER, image_res=64, patch_size=16, seed=3)
WIDTH, HEIGHT, BOX = 1200, 800, Box(610.0, 130.0, 240.0, 330.0)


def image_with_a_box(orientation: int) -> bytes:
    """A grey ramp, 1200 x 800 when upright, with BOX in red, stored as a camera held that way stores it."""
    ramp = np.linspace(60, 180, WIDTH, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (HEIGHT, WIDTH, 3)).copy())
    image.paste("red", tuple(int(edge) for edge in (BOX.x, BOX.y, BOX.x + BOX.w, BOX.y + BOX.h)))
    if orientation == 6:  # the viewer will turn it clockwise by 90 degrees
        image = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def stored(body: bytes, **decision: object) -> tuple[Sample, bytes]:
    """The sample and the payload that the download stage makes of `body`."""
    store = Reencoded.model_validate({"kind": "reencoded", **decision}) if decision else OriginalBytes()
    media, payload, _ = media_to_store(body, store, strips_metadata=True)
    concept = Concept(Grain.OBJECT, "square", BOX)
    return Sample("ab" * 16, "drawn", "1", "train", "image", "", concepts=(concept,), media=media), payload


@pytest.mark.parametrize("scaled_decode", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_region_of_a_smaller_copy_shows_what_it_shows_in_the_original(orientation: int, scaled_decode: bool) -> None:
    body = image_with_a_box(orientation)
    original, whole = stored(body)
    smaller, small = stored(body, short_edge=256, scaled_decode=scaled_decode)
    assert Image.open(BytesIO(small)).size == (384, 256)
    assert smaller.media is not None
    assert replace(smaller.media, format="jpeg") == original.media
    for epoch in range(12):
        plan = plan_regions(row_of(smaller), epoch, RECIPE)
        assert plan.image == plan_regions(row_of(original), epoch, RECIPE).image
        first = normalised(region_pixels(row_of(original), whole, plan, RECIPE).pixels).numpy()
        second = normalised(region_pixels(row_of(smaller), small, plan, RECIPE).pixels).numpy()
        assert np.abs(first - second).mean() < 0.06  # of a deviation; edges of the box blur
        (row,) = plan.rows
        cx, cy, w, h = (64 * value for value in row.box_cxcywh)
        inside = np.zeros((64, 64), dtype=bool)
        inside[round(cy - h / 2) : round(cy + h / 2), round(cx - w / 2) : round(cx + w / 2)] = True
        is_red = second[0] - second[2] > 1.5
        assert (is_red & inside).sum() / (is_red | inside).sum() > 0.9  # intersection over union


def test_a_crop_of_a_smaller_copy_begins_between_its_pixels() -> None:
    columns = np.repeat(np.arange(100, dtype=np.uint8), 4)
    large = Image.fromarray(np.broadcast_to(columns[None, :, None], (400, 400, 3)).copy())
    small = large.resize((100, 100), Image.Resampling.BOX)
    for crop in ((0, 0, 400, 400), (102, 0, 302, 200), (399, 399, 400, 400), (1, 3, 398, 399)):
        for flipped in (False, True):
            expected = np.asarray(cut_and_resize(large, crop, flipped, 50), dtype=float)
            actual = np.asarray(cut_smaller_copy(small, large.size, crop, flipped, 50), dtype=float)
            assert np.abs(actual - expected).max() <= 1.5, (crop, flipped)


@pytest.mark.parametrize("size", [(384, 257), (385, 256), (1201, 800), (256, 384)])
def test_an_image_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    sample, whole = stored(image_with_a_box(1))
    buffer = BytesIO()
    Image.open(BytesIO(whole)).resize(size).save(buffer, "JPEG")
    row = row_of(sample)
    with pytest.raises(InvalidSample) as refused:
        region_pixels(row, buffer.getvalue(), plan_regions(row, 0, RECIPE), RECIPE)
    assert refused.value.rule == "size_changed"
