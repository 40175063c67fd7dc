"""Import and export of the reference's checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import XLMRobertaConfig, XLMRobertaModel

from tests.support.models.golden_cases import read_model
from tests.support.models.tiny import tiny_config, tiny_model
from x2vlm.errors import ConfigError
from x2vlm.models.blocks.position_bias import resize_position_bias
from x2vlm.models.checkpoints.reference import export_reference_state, load_reference_state
from x2vlm.models.config import ModelConfig, TextConfig, VisionConfig, model_config_from_reference
from x2vlm.models.x2vlm import build_model, swap_text_encoder


def tiny_state(**changes):
    return {name: value.clone() for name, value in export_reference_state(tiny_model(**changes)).items()}


def test_export_gives_back_every_entry_of_the_reference(golden_dir):
    state = export_reference_state(read_model(golden_dir))
    original = load_file(golden_dir / "model.safetensors")
    assert set(state) == set(original)
    for name, value in original.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name


def test_base_model_has_the_reference_names_shapes_and_count(golden_dir):
    expected = json.loads((golden_dir / "base_state_dict.json").read_text())
    with torch.device("meta"):
        model = build_model(ModelConfig())
    assert model_config_from_reference(expected["config"]) == ModelConfig()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["n_trainable"] == 254_758_401
    state = export_reference_state(model)
    ours = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()}
    assert ours == expected["state_dict"]


def test_large_model_with_three_frames_has_the_published_count():
    with torch.device("meta"):
        model = build_model(
            ModelConfig(
                vision=VisionConfig(width=1024, depth=24, num_heads=16),
                text=TextConfig(width=1024, num_heads=16, intermediate=4096),
                fusion={"num_heads": 16, "intermediate": 4096},
                num_frames=3,
            )
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == 592_952_129
    assert len(export_reference_state(model)) == 792


def test_unexplained_keys_are_listed_and_nothing_is_changed():
    model, state = tiny_model(), tiny_state()
    before = model.vision_proj.weight.clone()
    state["vision_proj.weight"] = before.detach() + 1
    state |= {"surprise.weight": torch.zeros(1), "text_encoder.bert.encoder.layer.9.x": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"2 key\(s\).*surprise\.weight.*layer\.9\.x"):
        load_reference_state(model, state)
    assert torch.equal(model.vision_proj.weight, before)


def test_missing_parameters_are_reported_and_kept():
    model, state = tiny_model(), tiny_state()
    before = model.match_head[0].weight.clone()
    del state["itm_head.0.weight"]
    assert load_reference_state(model, state).missing == ["itm_head.0.weight"]
    assert torch.equal(model.match_head[0].weight, before)


def test_fine_tuned_names_fill_the_same_parameters():
    state = {name.replace("text_encoder.bert.", "text_encoder."): value for name, value in tiny_state().items()}
    state |= {"cls_head.0.weight": torch.zeros(3, 2), "text_decoder.bert.x": torch.zeros(1)}
    torch.manual_seed(7)
    model = build_model(tiny_config())
    report = load_reference_state(model, state)
    assert report.unexpected == ["cls_head.0.weight", "text_decoder.bert.x"]
    assert not report.missing
    for name, value in tiny_state().items():
        assert torch.equal(export_reference_state(model)[name], value), name


def test_separate_encoders_round_trip():
    torch.manual_seed(0)
    config = tiny_config(
        text=TextConfig(
            architecture="xlm-roberta", width=16, num_layers=2, num_heads=2, intermediate=32, vocab_size=50,
            max_positions=20, type_vocab_size=1, pad_id=1,
        ),
        tie_words=False,
    )  # fmt: skip
    model = build_model(config)
    state = {name: value.clone() for name, value in export_reference_state(model).items()}
    assert "cross_encoder.encoder.layer.1.crossattention.self.query.weight" in state
    assert state["mlm_head.predictions.decoder.weight"].shape == (50, 16)
    assert state["text_encoder.embeddings.position_ids"].shape == (1, 20)
    assert not torch.equal(
        state["mlm_head.predictions.decoder.weight"], state["text_encoder.embeddings.word_embeddings.weight"]
    )
    other = build_model(config)
    report = load_reference_state(other, state)
    assert not report.missing
    assert not report.unexpected
    assert all(torch.equal(value, export_reference_state(other)[name]) for name, value in state.items())


def test_pretrained_fusion_layers_move_into_separate_encoders():
    """The cross-lingual start: image side, fusion and heads from X2-VLM, text side from elsewhere."""
    swapped = swap_text_encoder(tiny_model(), XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=20, type_vocab_size=2,
        ),
        add_pooling_layer=False,
    ))  # fmt: skip
    state = tiny_state()
    load_reference_state(swapped, state)
    expected = state["text_encoder.bert.encoder.layer.3.crossattention.self.key.weight"]
    assert torch.equal(swapped.fusion.layers[1].cross_attention.key.weight, expected)


def test_position_tables_of_another_resolution_are_resized():
    source = tiny_state()
    torch.manual_seed(3)
    key = "vision_encoder.blocks.1.attn.relative_position_bias_table"
    source[key] = torch.randn_like(source[key])
    model = tiny_model(vision=VisionConfig(image_res=96, width=24, depth=2, num_heads=2))
    report = load_reference_state(model, source)
    assert key in report.resized
    assert len(report.resized) == 2
    table = model.vision.trunk.blocks[1].attn.relative_position_bias_table
    assert_close(table.detach(), resize_position_bias(source[key], 11 * 11 + 3))


@pytest.mark.parametrize(("stored", "wanted"), [(2, 3), (3, 2)])
def test_frame_positions_are_cut_to_the_common_count(stored, wanted):
    state = tiny_state(num_frames=stored)
    state["absolute_frame_pos_embed"].fill_(5.0)
    model = tiny_model(num_frames=wanted)
    own = model.frame_position.detach().clone()
    report = load_reference_state(model, state)
    assert report.resized == ["absolute_frame_pos_embed"]
    assert (model.frame_position[:, :2] == 5.0).all()
    assert torch.equal(model.frame_position[:, 2:], own[:, 2:])


def test_a_model_without_frames_refuses_frame_positions():
    with pytest.raises(ConfigError, match="absolute_frame_pos_embed"):
        load_reference_state(tiny_model(), tiny_state(num_frames=2))


def test_other_shapes_are_refused():
    state = tiny_state()
    state["vision_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(ConfigError, match=r"vision_proj.weight has shape \(3, 3\)"):
        load_reference_state(tiny_model(), state)


def test_tied_entries_that_disagree_are_refused():
    state = tiny_state()
    state["text_encoder.cls.predictions.decoder.weight"] += 1
    with pytest.raises(ConfigError, match="one parameter"):
        load_reference_state(tiny_model(), state)


def test_one_of_two_tied_entries_is_enough():
    state = tiny_state()
    expected = state.pop("text_encoder.cls.predictions.bias")
    state["text_encoder.cls.predictions.decoder.bias"] = expected + 2
    model = tiny_model()
    assert not load_reference_state(model, state).missing
    assert torch.equal(model.word_head.bias, expected + 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_abs_pos": True}, "vision_abs_pos"),
        ({"embed_dim": None}, "embed_dim"),
        ({"patch_size": 15}, "multiple"),
    ],
)
def test_reference_configs_this_model_cannot_do_are_refused(golden_dir, change, message):
    values = json.loads((golden_dir / "config.json").read_text()) | change
    with pytest.raises(ConfigError, match=message):
        model_config_from_reference(values)


def test_reference_config_lacking_a_size_names_it(golden_dir):
    values = json.loads((golden_dir / "config.json").read_text())
    del values["vision_heads"]
    with pytest.raises(ConfigError, match="vision_heads"):
        model_config_from_reference(values)
