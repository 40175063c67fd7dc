"""What must hold for any batch: padding, order and company of regions change nothing; half precision little."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad
from torch.testing import assert_close

from tests.support.models.golden_cases import read_case, read_model, to_batch
from tests.support.models.tiny import tiny_model
from x2vlm.data.loading.batch import Batch
from x2vlm.objectives.step import pretrain_losses

EXACT = {"atol": 2e-6, "rtol": 0.0}
NUM_PATCHES = 16


def region_rows(seed: int, num_rows: int) -> Batch:
    """Random regions of two images; texts of 3 to 7 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    lengths = whole(3, 8, num_rows, 1)
    mask = torch.arange(7)[None] < lengths
    cover = torch.rand(num_rows, NUM_PATCHES, generator=generator) < 0.4
    cover[torch.arange(num_rows), whole(0, NUM_PATCHES, num_rows)] = True
    return Batch(
        kind="region",
        keys=[str(row) for row in range(num_rows)],
        text_ids_BL=whole(5, 50, num_rows, 7) * mask,
        text_mask_BL=mask,
        masked_ids_BL=whole(5, 50, num_rows, 7) * mask,
        masked_positions_BK=whole(1, 3, num_rows, 2),
        masked_labels_BK=whole(5, 50, num_rows, 2),
        pixels=torch.randn(2, 3, 64, 64, generator=generator),
        image_of_R=whole(0, 2, num_rows),
        patch_mask_RP=cover,
        box_cxcywh_R4=torch.rand(num_rows, 4, generator=generator) * 0.4 + 0.3,
        is_whole_image_R=torch.zeros(num_rows, dtype=torch.bool),
    )


ROW_FIELDS = (
    "text_ids_BL", "text_mask_BL", "masked_ids_BL", "masked_positions_BK", "masked_labels_BK", "image_of_R",
    "patch_mask_RP", "box_cxcywh_R4", "is_whole_image_R",
)  # fmt: skip


def rows_of(batch: Batch, rows: torch.Tensor) -> Batch:
    fields = {name: getattr(batch, name)[rows] for name in ROW_FIELDS}
    return replace(batch, keys=[batch.keys[row] for row in rows], **fields)


@torch.no_grad()
def outputs(model, batch: Batch) -> dict[str, torch.Tensor]:
    """Everything a row gets on its own: features, match with its region, box, words."""
    images = model.encode_image(batch.pixels)
    regions = model.pool_regions(images, batch.image_of_R, batch.patch_mask_RP)
    text = model.encode_text(batch.text_ids_BL, batch.text_mask_BL)
    image_feature, text_feature = model.project(regions, text)
    masked = model.fuse(model.encode_text(batch.masked_ids_BL, batch.text_mask_BL), batch.text_mask_BL, regions)
    whole = model.fuse(text, batch.text_mask_BL, images.select(batch.image_of_R))
    return {
        "image": image_feature,
        "text": text_feature,
        "match": model.match(model.fuse(text, batch.text_mask_BL, regions)),
        "words": model.predict_words(masked, batch.masked_positions_BK),
        "box": model.locate(whole),
    }


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=3))
def test_order_and_duplicates_of_regions_change_no_row(seed, order, repeats):
    model, batch = tiny_model(), region_rows(seed, 5)
    expected = outputs(model, batch)
    rows = torch.tensor([*order, *repeats])
    for name, value in outputs(model, rows_of(batch, rows)).items():
        assert_close(value, expected[name][rows], **EXACT, msg=name)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 49))
def test_padding_of_texts_changes_no_loss(seed, num_more, filler):
    model, batch = tiny_model(), region_rows(seed, 4)
    negatives = (torch.tensor([1, 2, 3, 0]), torch.tensor([3, 0, 1, 2]))
    longer = replace(
        batch,
        text_ids_BL=pad(batch.text_ids_BL, (0, num_more), value=filler),
        masked_ids_BL=pad(batch.masked_ids_BL, (0, num_more), value=filler),
        text_mask_BL=pad(batch.text_mask_BL, (0, num_more)),
        masked_positions_BK=pad(batch.masked_positions_BK, (0, 2)),
        masked_labels_BK=pad(batch.masked_labels_BK, (0, 2), value=-100),
    )
    expected = pretrain_losses(model, batch, negatives)
    for name, value in pretrain_losses(model, longer, negatives).items():
        assert_close(value, expected[name], atol=1e-5, rtol=0, msg=name)


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_a_region_of_all_patches_is_the_image_to_the_last_bit(seed, num_rows):
    model = tiny_model()
    torch.manual_seed(seed)
    images = model.encode_image(torch.randn(2, 3, 64, 64))
    image_of = torch.randint(0, 2, (num_rows,))
    everything = torch.ones(num_rows, NUM_PATCHES, dtype=torch.bool)
    for whole, wanted in ((images, image_of), (images.select(torch.tensor([1, 0])), 1 - image_of)):
        regions = model.pool_regions(whole, wanted, everything)
        assert torch.equal(regions.tokens_BND, images.tokens_BND[image_of])


@torch.no_grad()
def test_regions_of_regions_are_pooled_from_patches_not_from_summaries():
    model = tiny_model()
    images = model.encode_image(torch.randn(1, 3, 64, 64))
    half = torch.arange(NUM_PATCHES)[None] < 8
    rows = model.pool_regions(images, torch.tensor([0]), half)
    again = model.pool_regions(rows, torch.tensor([0]), torch.ones(1, NUM_PATCHES, dtype=torch.bool))
    assert_close(again.summary_BD, images.summary_BD, atol=1e-6, rtol=0)


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_a_clip_of_one_frame_is_the_image_plus_its_frame_position(seed):
    model = tiny_model(num_frames=3)
    torch.manual_seed(seed)
    pixels = torch.randn(2, 3, 64, 64)
    expected = model.encode_image(pixels).tokens_BND + model.frame_position[:, 0]
    assert_close(model.encode_video(pixels[:, None]).tokens_BND, expected, **EXACT)


@pytest.mark.parametrize("name", ["image", "regions", "text_only"])
def test_bfloat16_stays_close_to_float32(golden_dir, name):
    """Loss within 1 % and the whole gradient's cosine above 0.999, on the recorded batches."""
    case = read_case(golden_dir / name)
    negatives = case.negatives if "out.image_neg_idx" in case.tensors else None
    totals, gradients = [], []
    for is_half in (False, True):
        model = read_model(golden_dir)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            losses = pretrain_losses(model, to_batch(case), negatives)
        total = sum(losses.values())
        total.backward()
        totals.append(total.item())
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in grads]).double())
    assert totals[1] == pytest.approx(totals[0], rel=0.01)
    assert torch.cosine_similarity(*gradients, dim=0).item() >= 0.999
