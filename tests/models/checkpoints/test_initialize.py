"""Start values from small backbones made here, written to disk and read back."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import BertModel

from tests.support.models.backbones import (
    XLM_TEXT,
    bert_sized_model,
    small_beit,
    small_bert,
    small_xlmr,
    text_folder,
)
from tests.support.models.tiny import region_batch, tiny_model
from x2vlm.errors import ConfigError
from x2vlm.inference.pretrained import from_pretrained, save_pretrained
from x2vlm.models.blocks.position_bias import resize_position_bias
from x2vlm.models.checkpoints.initialize import initialize, layer_sources, text_state, vision_state
from x2vlm.models.config import VisionConfig
from x2vlm.objectives.step import pretrain_losses
from x2vlm.train.optim import new_parameter_names


@pytest.mark.parametrize("wrapper", ["model", "module", None, "safetensors"])
def test_image_tower_computes_what_the_backbone_did(tmp_path, wrapper):
    beit, model = small_beit().eval(), bert_sized_model()
    if wrapper == "safetensors":
        path = tmp_path / "beit.safetensors"
        save_file(beit.state_dict(), path)
    else:
        path = tmp_path / "beit.pth"
        torch.save({wrapper: beit.state_dict()} if wrapper else beit.state_dict(), path)
    report = initialize(model, vision=path)
    assert sorted(report.unexpected) == ["head.bias", "head.weight"]
    assert not [name for name in report.missing if name.startswith("vision_encoder")]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        hidden = beit.patch_embed(pixels)
        hidden = torch.cat([beit.cls_token.expand(2, -1, -1), hidden], dim=1)
        for block in beit.blocks:
            hidden = block(hidden)
        # Ours is LayerNorm with eps 1e-6 as in the reference; timm's default here is the same.
        expected = torch.nn.functional.layer_norm(hidden[:, 1:], (24,), beit.fc_norm.weight, beit.fc_norm.bias, 1e-6)
        assert_close(model.encode_image(pixels).patches_MPD, expected, atol=1e-4, rtol=1e-4)


def test_a_shared_table_goes_into_every_block_at_the_new_resolution(tmp_path):
    beit = small_beit(shared=True)
    path = tmp_path / "beit.safetensors"
    save_file(beit.state_dict(), path)
    model = tiny_model(vision=VisionConfig(image_res=96, width=24, depth=2, num_heads=2))
    report = initialize(model, vision=path)
    assert len(report.resized) == 2
    expected = resize_position_bias(beit.rel_pos_bias.relative_position_bias_table.detach(), 124)
    for block in model.vision.trunk.blocks:
        assert_close(block.attn.relative_position_bias_table.detach(), expected)


def test_text_and_fusion_layers_start_from_bert(tmp_path):
    bert, model = small_bert().eval(), bert_sized_model()
    bert.save_pretrained(tmp_path)
    report = initialize(model, text=tmp_path)
    raw, ours = bert.state_dict(), model.state_dict()
    for name in ("attention.self.query.weight", "attention.output.LayerNorm.bias", "output.dense.weight"):
        assert torch.equal(ours[f"text.encoder.encoder.layer.1.{name}"], raw[f"bert.encoder.layer.1.{name}"])
    assert torch.equal(
        ours["fusion.layers.0.self_attention.value.weight"], raw["bert.encoder.layer.1.attention.self.value.weight"]
    )
    assert torch.equal(
        ours["fusion.layers.0.feed_forward.norm.bias"], raw["bert.encoder.layer.1.output.LayerNorm.bias"]
    )
    assert torch.equal(ours["word_head.bias"], raw["cls.predictions.bias"])
    new = set(new_parameter_names(model))
    assert {name for name in report.missing if not name.startswith("vision_encoder")} == new
    with torch.no_grad():
        ids, mask = torch.randint(5, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
        states = model.encode_text(ids, mask)
        assert_close(states, bert.bert(ids, attention_mask=mask).last_hidden_state, atol=1e-5, rtol=1e-5)
        logits = model.word_head(states, model.text.word_embeddings.weight)
        assert_close(logits, bert(ids, attention_mask=mask).logits, atol=1e-4, rtol=1e-4)


def test_a_bert_without_word_head_leaves_it_new():
    raw = BertModel(small_bert().config).state_dict()
    state, unused = text_state(raw, 2, 1)
    assert [name for name in unused if name.startswith("pooler")]
    assert not [name for name in state if ".cls." in name]


def test_old_layer_norm_names_are_understood():
    raw = {
        "bert.encoder.layer.0.output.LayerNorm.gamma": torch.ones(1),
        "bert.embeddings.LayerNorm.beta": torch.ones(1),
    }
    state, _ = text_state(raw, 1, 0)
    assert set(state) == {
        "text_encoder.bert.encoder.layer.0.output.LayerNorm.weight",
        "text_encoder.bert.embeddings.LayerNorm.bias",
    }


def test_multilingual_start_takes_only_the_text_layers(tmp_path):
    report = initialize(tiny_model(text=XLM_TEXT, tie_words=False), text=text_folder(tmp_path, small_xlmr()))
    assert {name.split(".")[0] for name in report.loaded} == {"text_encoder"}
    assert "mlm_head.predictions.bias" in report.missing
    assert "cross_encoder.encoder.layer.0.attention.self.query.weight" in report.missing


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((12, 12, 6), [*range(12), *range(6, 12)]),
        ((24, 12, 6), [*range(1, 24, 2), *range(13, 24, 2)]),
        ((12, 6, 6), list(range(12))),
        ((24, 6, 6), list(range(1, 24, 2))),
        ((24, 9, 3), list(range(1, 24, 2))),
        ((36, 12, 6), list(range(1, 36, 2))),
        ((18, 12, 6), list(range(18))),
        ((4, 4, 0), list(range(4))),
    ],
)
def test_which_raw_layer_starts_which(sizes, expected):
    assert layer_sources(*sizes) == expected


@pytest.mark.parametrize("sizes", [(10, 12, 6), (24, 18, 2), (2, 2, 3)])
def test_depths_nobody_defined_are_refused(sizes):
    with pytest.raises(ConfigError, match="text backbone"):
        layer_sources(*sizes)


def test_backbone_keys_without_a_place_are_refused(tmp_path):
    state = small_beit().state_dict() | {"pos_embed": torch.zeros(1, 17, 24)}
    save_file(state, tmp_path / "beit.safetensors")
    with pytest.raises(ConfigError, match="pos_embed"):
        initialize(bert_sized_model(), vision=tmp_path / "beit.safetensors")
    assert "vision_encoder.pos_embed" in vision_state(state, 2)[0]


@pytest.mark.parametrize("image_res", [224, 96])
def test_a_clip_tower_starts_from_timm_and_computes_the_same(tmp_path, image_res):
    """timm's weights fill it and its patches are timm's, at another resolution with resampled positions."""
    torch.manual_seed(1)
    clip = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224", embed_dim=24, depth=2, num_heads=2, num_classes=5, img_size=224
    ).eval()
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    vision = VisionConfig(backbone="clip_vit", image_res=image_res, width=24, depth=2, num_heads=2, layer_norm_eps=1e-5)
    model = tiny_model(vision=vision)
    report = initialize(model, vision=tmp_path / "clip.safetensors")
    assert sorted(report.unexpected) == ["head.bias", "head.weight"]
    assert not [name for name in report.missing if name.startswith("vision_encoder")]
    assert report.resized == ([] if image_res == 224 else ["vision_encoder.pos_embed"])
    pixels = torch.randn(2, 3, image_res, image_res)
    if image_res != 224:
        clip.set_input_size(img_size=(image_res, image_res))
    with torch.no_grad():
        vision_tokens = model.encode_image(pixels)
        assert_close(vision_tokens.patches_MPD, clip.forward_features(pixels)[:, 1:], atol=1e-5, rtol=1e-5)
        assert_close(vision_tokens.summary_BD, vision_tokens.patches_MPD.mean(1))


@pytest.mark.parametrize("image_res", [224, 384])
def test_a_swin_tower_starts_from_timm_and_computes_the_same(tmp_path, image_res):
    torch.manual_seed(2)
    swin = timm.create_model(
        "swin_base_patch4_window7_224", embed_dim=8, depths=(2, 2, 1, 2), num_heads=(1, 2, 4, 8), num_classes=5
    ).eval()
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(swin.state_dict(), tmp_path / "swin.safetensors")
    sizes = {"backbone": "swin", "patch_size": 32, "width": 64, "depth": 7, "num_heads": 8, "layer_norm_eps": 1e-5}
    model = tiny_model(vision=VisionConfig(image_res=image_res, **sizes))
    report = initialize(model, vision=tmp_path / "swin.safetensors")
    assert not [name for name in report.missing if name.startswith("vision_encoder")]
    assert len(report.resized) == (0 if image_res == 224 else 7)
    pixels = torch.randn(1, 3, image_res, image_res)
    with torch.no_grad():
        patches = model.encode_image(pixels).patches_MPD
        assert patches.shape == (1, (image_res // 32) ** 2, 64)
        if image_res == 224:
            assert_close(patches, swin.forward_features(pixels).flatten(1, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {"backbone": "clip_vit", "width": 24, "depth": 2, "num_heads": 2, "image_res": 64},
        {"backbone": "swin", "width": 64, "depth": 7, "num_heads": 8, "image_res": 64, "patch_size": 32},
    ],
)
def test_other_towers_train_regions_and_come_back_from_a_folder(tmp_path, sizes):
    model = tiny_model(vision=VisionConfig(**sizes))
    num_patches = (64 // sizes.get("patch_size", 16)) ** 2
    batch = region_batch(patch_mask_RP=torch.ones(3, num_patches, dtype=torch.bool))
    sum(pretrain_losses(model, batch).values()).backward()
    assert all(parameter.grad is not None for parameter in model.vision.parameters())
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    with torch.no_grad():
        first, second = (m.encode_image(batch.pixels).tokens_BND for m in (model, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize("change", [{"patch_size": 16}, {"depth": 6}, {"num_heads": 4}])
def test_swin_sizes_that_do_not_exist_are_refused(change):
    sizes = {"backbone": "swin", "patch_size": 32, "width": 64, "depth": 7, "num_heads": 8} | change
    with pytest.raises(ValueError, match=r"Swin|multiple"):
        VisionConfig(**sizes)


def test_the_report_says_where_every_value_came_from(tmp_path):
    save_file(small_beit(shared=True).state_dict(), tmp_path / "beit.safetensors")
    small_bert().save_pretrained(tmp_path / "bert")
    report = initialize(bert_sized_model(), vision=tmp_path / "beit.safetensors", text=tmp_path / "bert")
    assert set(report.origins) == set(report.loaded)
    table = report.origins["vision_encoder.blocks.1.attn.relative_position_bias_table"]
    assert table == f"{tmp_path}/beit.safetensors: rel_pos_bias.relative_position_bias_table"
    fused = report.origins["text_encoder.bert.encoder.layer.2.output.dense.weight"]
    assert fused == f"{tmp_path}/bert: bert.encoder.layer.1.output.dense.weight"
