"""The model against the reference's numbers, and facts that hold for any weights."""

import pytest
import torch
from torch.testing import assert_close
from transformers import XLMRobertaConfig, XLMRobertaModel

from tests.support.models.golden_cases import read_case, read_model, to_batch
from tests.support.models.tiny import tiny_config, tiny_model, tiny_text
from x2vlm.errors import ConfigError
from x2vlm.models.config import FusionConfig, VisionConfig
from x2vlm.models.x2vlm import build_model, swap_text_encoder

TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


@torch.no_grad()
def test_image_case_step_by_step(golden_dir):
    model, case = read_model(golden_dir), read_case(golden_dir / "image")
    batch, out = to_batch(case), lambda name: case.tensors["out." + name]
    vision = model.encode_image(batch.pixels)
    assert_close(vision.tokens_BND, out("vision_embeds"), **TOLERANCE)
    assert torch.equal(vision.mask_BN, out("vision_atts").bool())
    text = model.encode_text(batch.text_ids_BL, batch.text_mask_BL)
    assert_close(text, out("text_embeds"), **TOLERANCE)
    image_feature, text_feature = model.project(vision, text)
    assert_close(image_feature, out("image_feat"), **TOLERANCE)
    assert_close(text_feature, out("text_feat"), **TOLERANCE)
    positive = model.fuse(text, batch.text_mask_BL, vision)
    assert_close(positive, out("fused_match_pos"), **TOLERANCE)
    image_negative, text_negative = case.negatives
    rows = torch.arange(len(text))
    text_rows, image_rows = torch.cat([rows, text_negative]), torch.cat([image_negative, rows])
    negative = model.fuse(text[text_rows], batch.text_mask_BL[text_rows], vision.select(image_rows))
    assert_close(negative, out("fused_match_neg"), **TOLERANCE)
    assert_close(model.match(torch.cat([positive, negative])), out("itm_logits"), **TOLERANCE)
    masked = model.fuse(model.encode_text(batch.masked_ids_BL, batch.text_mask_BL), batch.text_mask_BL, vision)
    assert_close(model.predict_words(masked, batch.masked_positions_BK), out("mlm_logits"), **TOLERANCE)


@torch.no_grad()
def test_regions_case_step_by_step(golden_dir):
    model, case = read_model(golden_dir), read_case(golden_dir / "regions")
    batch, out = to_batch(case), lambda name: case.tensors["out." + name]
    images = model.encode_image(batch.pixels)
    regions = model.pool_regions(images, batch.image_of_R, batch.patch_mask_RP)
    whole = images.select(batch.image_of_R)
    assert_close(regions.tokens_BND, out("vision_embeds"), **TOLERANCE)
    assert_close(whole.tokens_BND, out("vision_embeds_full"), **TOLERANCE)
    assert torch.equal(regions.mask_BN, out("vision_atts").bool())
    text = model.encode_text(batch.text_ids_BL, batch.text_mask_BL)
    assert_close(model.fuse(text, batch.text_mask_BL, regions), out("fused_match_pos"), **TOLERANCE)
    fused = model.fuse(text, batch.text_mask_BL, whole)
    assert_close(fused, out("fused_bbox"), **TOLERANCE)
    assert_close(model.locate(fused), out("pred_bbox_cxcywh"), **TOLERANCE)


@torch.no_grad()
def test_text_only_case_skips_cross_attention(golden_dir):
    model, case = read_model(golden_dir), read_case(golden_dir / "text_only")
    batch = to_batch(case)
    fused = model.fuse(model.encode_text(batch.masked_ids_BL, batch.text_mask_BL), batch.text_mask_BL, None)
    logits = model.predict_words(fused, batch.masked_positions_BK)
    assert_close(logits, case.tensors["out.mlm_logits"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_changes_real_tokens(causal):
    model = tiny_model()
    ids, mask = tiny_text()
    vision = model.encode_image(torch.randn(3, 3, 64, 64))
    fused = model.fuse(model.encode_text(ids, mask), mask, vision, causal)
    noise = torch.where(mask, ids, torch.randint(5, 50, ids.shape))
    longer, longer_mask = torch.nn.functional.pad(noise, (0, 4), value=7), torch.nn.functional.pad(mask, (0, 4))
    other = model.fuse(model.encode_text(longer, longer_mask), longer_mask, vision, causal)
    assert_close(other[:, : ids.shape[1]][mask], fused[mask], atol=1e-6, rtol=0)


@torch.no_grad()
def test_causal_fusion_sees_nothing_that_comes_later():
    model = tiny_model()
    mask = torch.ones(2, 6, dtype=torch.bool)
    text = torch.randn(2, 6, 16)
    changed = text.clone()
    changed[:, 4:] = torch.randn(2, 2, 16)  # not a shift: LayerNorm would remove it
    first, second = (model.fuse(states, mask, None, causal=True) for states in (text, changed))
    assert_close(first[:, :4], second[:, :4], atol=1e-6, rtol=0)
    assert (first[:, 4:] - second[:, 4:]).abs().max() > 1e-2


@torch.no_grad()
def test_a_region_of_all_patches_is_the_image():
    model = tiny_model()
    images = model.encode_image(torch.randn(2, 3, 64, 64))
    image_of = torch.tensor([1, 0, 1])
    regions = model.pool_regions(images, image_of, torch.ones(3, 16, dtype=torch.bool))
    assert_close(regions.tokens_BND, images.tokens_BND[image_of], atol=1e-6, rtol=0)
    assert regions.mask_BN.all()


@torch.no_grad()
def test_a_region_of_one_patch_is_that_patch_and_masks_the_others():
    model = tiny_model()
    images = model.encode_image(torch.randn(2, 3, 64, 64))
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    region = model.pool_regions(images, torch.tensor([1]), mask)
    assert_close(region.summary_BD[0], images.patches_MPD[1, 5], atol=1e-6, rtol=0)
    ids, text_mask = tiny_text(rows=1)
    fused = model.fuse(model.encode_text(ids, text_mask), text_mask, region)
    images.patches_MPD[1, 6] += 10.0
    assert_close(model.fuse(model.encode_text(ids, text_mask), text_mask, region), fused, atol=1e-6, rtol=0)
    images.patches_MPD[1, 5] += 10.0
    assert (model.fuse(model.encode_text(ids, text_mask), text_mask, region) - fused).abs().max() > 1e-3


@torch.no_grad()
def test_regions_of_already_selected_rows_lie_in_the_right_image():
    model = tiny_model()
    images = model.encode_image(torch.randn(3, 3, 64, 64))
    mask = torch.ones(1, 16, dtype=torch.bool)
    region = model.pool_regions(images.select(torch.tensor([2, 0])), torch.tensor([0]), mask)
    assert_close(region.tokens_BND[0], images.tokens_BND[2], atol=1e-6, rtol=0)


@torch.no_grad()
def test_one_frame_is_the_image_plus_its_frame_position():
    model = tiny_model(num_frames=3)
    pixels = torch.randn(2, 3, 64, 64)
    expected = model.encode_image(pixels).tokens_BND + model.frame_position[0, 0]
    assert_close(model.encode_video(pixels[:, None]).tokens_BND, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_clip_is_the_mean_over_frames_in_any_order():
    model = tiny_model(num_frames=3)
    clip = torch.randn(2, 3, 3, 64, 64)
    video = model.encode_video(clip).tokens_BND
    by_hand = [model.encode_image(clip[:, f]).tokens_BND + model.frame_position[0, f] for f in range(3)]
    assert_close(video, torch.stack(by_hand).mean(dim=0), atol=1e-6, rtol=0)
    assert_close(model.encode_video(clip.flip(1)).tokens_BND, video, atol=1e-6, rtol=0)


def test_more_frames_than_positions_is_an_error():
    with pytest.raises(ConfigError, match="num_frames"):
        tiny_model(num_frames=1).encode_video(torch.randn(1, 2, 3, 64, 64))


@torch.no_grad()
def test_shared_memory_equals_fusing_every_row_alone():
    model = tiny_model()
    images = model.encode_image(torch.randn(2, 3, 64, 64))
    image_of, mask = torch.tensor([0, 1, 1]), torch.rand(3, 16) > 0.4
    regions, whole = model.pool_regions(images, image_of, mask), images.select(image_of)
    ids, text_mask = tiny_text()
    text = model.encode_text(ids, text_mask)
    for rows in (regions, whole):
        fused = model.fuse(text, text_mask, model.image_memory(rows).select(torch.arange(3)))
        for row in range(3):
            one = torch.tensor([row])
            alone = model.fuse(text[one], text_mask[one], rows.select(one))
            assert_close(fused[one], alone, atol=1e-6, rtol=0)


def test_temperature_is_clamped_to_its_range():
    model = tiny_model()
    model.temperature.data.fill_(7.0)
    model.clamp_temperature()
    assert model.temperature.item() == pytest.approx(0.5)


@torch.no_grad()
def test_swapped_text_encoder_speaks_to_the_same_fusion_layers():
    model = tiny_model()
    encoder = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
            max_position_embeddings=30, type_vocab_size=1, pad_token_id=1,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    swapped = swap_text_encoder(model, encoder).eval()
    assert swapped.fusion is model.fusion
    assert not any(parameter.is_meta for parameter in swapped.parameters())
    assert swapped.config.text.vocab_size == 90
    vision = swapped.encode_image(torch.randn(2, 3, 64, 64))
    ids = torch.tensor([[0, 50, 60, 2], [0, 70, 2, 1]])
    mask = ids != 1
    fused = swapped.fuse(swapped.encode_text(ids, mask), mask, vision)
    assert swapped.predict_words(fused, torch.tensor([[1, 2], [1, 0]])).shape == (2, 2, 90)
    by_transformers = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert_close(swapped.encode_text(ids, mask)[mask], by_transformers[mask], atol=1e-6, rtol=0)


def test_swapping_in_another_width_is_an_error():
    encoder = XLMRobertaModel(XLMRobertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ConfigError, match="width 32"):
        swap_text_encoder(tiny_model(), encoder)


def test_training_mode_drops_and_evaluation_mode_does_not():
    model = tiny_model(vision=VisionConfig(image_res=64, width=24, depth=2, num_heads=2, drop_path=0.5)).train()
    ids, mask = tiny_text()
    pixels = torch.randn(3, 3, 64, 64)

    def run():
        return model.fuse(model.encode_text(ids, mask), mask, model.encode_image(pixels))

    assert not torch.equal(run(), run())
    model.eval()
    assert torch.equal(run(), run())


def test_start_values_follow_the_published_distributions():
    torch.manual_seed(0)
    model = build_model(tiny_config(num_frames=3, fusion=FusionConfig(num_layers=1, num_heads=4, intermediate=4000)))
    parameters = dict(model.named_parameters())
    for name in ("fusion.layers.0.feed_forward.inner.weight", "frame_position"):
        assert parameters[name].mean().item() == pytest.approx(0, abs=0.008), name
        assert parameters[name].std().item() == pytest.approx(0.02, abs=0.004), name
    assert parameters["fusion.layers.0.cross_attention.key.bias"].abs().max() == 0
    assert (parameters["vision.trunk.blocks.1.gamma_2"] == 0.1).all()
    assert parameters["temperature"].item() == pytest.approx(0.07)
    # Default start of a PyTorch linear layer: uniform within 1 / sqrt(inputs).
    assert 0.9 / 16**0.5 < parameters["match_head.0.weight"].abs().max() <= 1 / 16**0.5
    assert (parameters["box_head.1.weight"] == 1).all()
