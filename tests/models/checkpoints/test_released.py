"""Checkpoint files of every kind the reference writes: exact round trips, and refusals that name the entry."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.support.models import reference_shapes as tables
from tests.support.models.reference_shapes import SMOOTHED_TARGETS, START_ID, TIED, TINY, TINY_XLM, random_state
from x2vlm.errors import ConfigError
from x2vlm.models.blocks.position_bias import resize_position_bias
from x2vlm.models.checkpoints.reference import export_reference_state, load_reference_state
from x2vlm.models.checkpoints.released import (
    KINDS,
    CheckpointFile,
    export_checkpoint,
    kind_of,
    load_checkpoint,
)
from x2vlm.models.checkpoints.released_sizes import read_sizes
from x2vlm.models.checkpoints.task_parts import is_smoothed_targets, smoothed_targets
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.x2vlm import build_model

FILES = {
    "pretraining": (tables.pretrained, TINY),
    "pretraining_frames": (tables.pretrained, replace(TINY, frames=3)),
    "captioning": (tables.captioning, TINY),
    "retrieval": (tables.retrieval, TINY),
    "grounding": (tables.grounding, TINY),
    "classification": (tables.classification, TINY),
    "classification_two_images": (tables.two_images, TINY),
    "question_answering": (tables.question_answering, TINY),
    "multilingual_pretraining": (tables.multilingual, TINY_XLM),
    "multilingual_retrieval": (tables.multilingual_retrieval, TINY_XLM),
    "multilingual_classification": (tables.multilingual_classification, TINY_XLM),
    "multilingual_classification_two_images": (tables.multilingual_two_images, TINY_XLM),
    "multilingual_question_answering": (tables.multilingual_question_answering, TINY_XLM),
}


def state_of(name: str) -> dict[str, torch.Tensor]:
    shapes, sizes = FILES[name]
    return random_state(shapes(sizes), sizes)


def file_of(state, config=None) -> CheckpointFile:
    return CheckpointFile(state, config or {}, "checkpoint.th")


def load(state, config=None, **options):
    return load_checkpoint(file_of(state, config), text_heads=2, **options)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", ["th", "safetensors"])
def test_every_kind_comes_back_bit_for_bit(tmp_path, name, suffix):
    state, path = state_of(name), tmp_path / f"checkpoint.{suffix}"
    if suffix == "th":
        torch.save({"model": state, "config": {"embed_dim": 8, "image_res": 64, "optimizer": {"lr": 1e-4}}}, path)
    else:
        save_file(state, path)
    loaded = load_checkpoint(path, text_heads=2)
    assert name.startswith(loaded.kind)
    back = export_checkpoint(loaded)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        assert torch.equal(back[key], value), key


def test_all_kinds_are_tried():
    assert {kind_of(file_of(state_of(name))) for name in FILES} == set(KINDS)


@pytest.mark.parametrize(
    "name", ["pretraining_frames", "captioning", "question_answering", "multilingual_question_answering"]
)
def test_a_removed_renamed_or_resized_entry_is_named(name):
    """Entries all over the file."""
    check_entries(name, slice(None, None, 40))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if name != "pretraining"])  # the one with frames has all of it
def test_every_removed_renamed_or_resized_entry_is_named(name):
    check_entries(name, slice(None))


def check_entries(name, some):
    """Takes away, renames and resizes entries, one at a time. Constants and second names of tied ones may be absent."""
    state = state_of(name)
    for key in sorted(state)[some]:
        value = state.pop(key)
        if key.endswith(("position_ids", "relative_position_index", SMOOTHED_TARGETS)) or key in TIED:
            load_and_expect_absent(state, key)
        else:
            refused(state, key)
        refused(state | {f"{key}_old": value}, key)
        longer = torch.nn.functional.pad(value, (0, 1)) if value.ndim else torch.zeros(1)
        refused(state | {key: longer}, key)
        state[key] = value


def load_and_expect_absent(state, key):
    loaded = load(state)
    assert key in loaded.absent
    assert export_checkpoint(loaded).keys() == state.keys()


def refused(state, key):
    frames = {"add_frame_pos": True} if key == "absolute_frame_pos_embed" else {}
    with pytest.raises(ConfigError) as caught:
        load(state, frames)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "shapes", "count"),
    [
        (tables.BASE, tables.pretrained, 254_758_401),
        (tables.BASE_FRAMES, tables.pretrained, 254_758_401 + 3 * 768),
        (tables.LARGE, tables.pretrained, 592_952_129 - 3 * 1024),
        (tables.LARGE_FRAMES, tables.pretrained, 592_952_129),
        (tables.MULTILINGUAL_BASE, tables.multilingual, 615_540_825),
        (tables.MULTILINGUAL_LARGE, tables.multilingual, None),
    ],
)
def test_the_six_released_sizes_have_a_place_for_every_entry(sizes, shapes, count):
    """Names and shapes on the meta device, against the table written from the reference's description."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes(sizes).items()}
        kind = KINDS[kind_of(file_of(state))]
        config, _ = read_sizes(state, kind.layout, {}, None, "table")
        model = build_model(config)
    assert {n: v.shape for n, v in export_reference_state(model).items()} == {n: v.shape for n, v in state.items()}
    assert config.text.num_heads == sizes.text // 64
    if count is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_values_go_where_their_names_say():
    state = state_of("question_answering")
    loaded = load(state)
    fused = state["text_encoder.encoder.layer.3.crossattention.self.key.weight"]
    assert torch.equal(loaded.model.fusion.layers[1].cross_attention.key.weight, fused)
    assert set(loaded.task_state) == {name for name in state if name.startswith("text_decoder.")}
    assert {name.split(".")[0] for name in loaded.report.missing} == {
        "vision_proj", "text_proj", "temp", "itm_head", "bbox_head", "text_encoder"
    }  # fmt: skip
    assert not loaded.model.training


def test_a_shallower_decoder_is_understood():
    state = {n: v for n, v in state_of("question_answering").items() if ".layer.1." not in n or "decoder" not in n}
    assert export_checkpoint(load(state)).keys() == state.keys()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pretraining", "vision_encoder.blocks.1.", "vision_encoder.blocks.999999999."),
        ("pretraining", "text_encoder.bert.encoder.layer.3.", "text_encoder.bert.encoder.layer.999999999."),
        ("multilingual_retrieval", "cross_encoder.encoder.layer.1.", "cross_encoder.encoder.layer.999999999."),
        ("question_answering", "text_decoder.bert.encoder.layer.1.", "text_decoder.bert.encoder.layer.999999999."),
    ],
)
def test_layer_numbers_with_a_gap_are_refused_before_anything_is_built(name, old, new):
    state = {key.replace(old, new): value for key, value in state_of(name).items()}
    with pytest.raises(ConfigError, match="999999999"):
        load(state)


def test_a_decoder_of_a_multilingual_model_has_positions_and_types_of_its_own():
    """It is built from the description of the cross encoder: of the text tower's 22 positions it has 20."""
    state = state_of("multilingual_question_answering")
    embeddings = "text_decoder.bert.embeddings"
    loaded = load(state)
    assert loaded.model.config.text.max_positions == 22
    assert loaded.task_state[f"{embeddings}.position_embeddings.weight"].shape == (20, 16)
    assert loaded.task_state[f"{embeddings}.token_type_embeddings.weight"].shape == (2, 16)
    report = load_reference_state(loaded.model, state)
    assert set(report.unexpected) >= set(loaded.task_state) - {f"{embeddings}.position_ids"}
    refused(state | {f"{embeddings}.position_ids": torch.arange(22)[None]}, f"{embeddings}.position_ids")
    narrow = {f"{embeddings}.position_embeddings.weight": torch.zeros(20, 15)}
    refused(state | narrow, f"{embeddings}.position_embeddings.weight has shape (20, 15) instead of (20, 16)")


def test_smoothed_targets_follow_from_vocabulary_start_token_and_smoothing():
    """The rule of the loss: the target has 1 - e, the rest of the tokens but the start token share e."""
    for smoothing in (0.1, 0.25, 1.0):
        targets = smoothed_targets(50, START_ID, smoothing)
        assert is_smoothed_targets(targets)
        target = 20
        targets[0, target] = 1 - smoothing
        assert targets[0, START_ID] == 0
        assert targets.double().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(state_of("captioning")[SMOOTHED_TARGETS], smoothed_targets(50, START_ID))
    assert is_smoothed_targets(smoothed_targets(30522).half())


@pytest.mark.parametrize(
    "change", [lambda t: t * 0, lambda t: t * 11, lambda t: -t, lambda t: t.long(), lambda t: t.fill_(0.1),
               lambda t: t.index_fill(1, torch.tensor([3]), 0.5), lambda t: t * float("nan")],
    ids=["zero", "more_than_one", "negative", "integer", "no_start_token", "one_differs", "nan"],
)  # fmt: skip
def test_smoothed_targets_that_no_loss_has_are_refused(change):
    state = state_of("captioning")
    with pytest.raises(ConfigError, match=SMOOTHED_TARGETS):
        load(state | {SMOOTHED_TARGETS: change(state[SMOOTHED_TARGETS].clone())})


def test_a_captioning_file_of_a_model_of_ours_has_the_released_targets():
    """A model that never was a captioning file: its export has the buffer that the reference's loader expects."""
    loaded = load(state_of("captioning"))
    with pytest.raises(ConfigError, match="start token 101 is not in a vocabulary of 50"):
        export_checkpoint(replace(loaded, task_state={}))
    larger = replace(TINY, vocab=120)
    state = random_state(tables.captioning(larger), larger)
    exported = export_checkpoint(replace(load(state), task_state={}))
    assert exported.keys() == state.keys()
    assert torch.equal(exported[SMOOTHED_TARGETS], smoothed_targets(120))
    assert load(exported).kind == "captioning"


def test_a_fixed_temperature_comes_from_the_config():
    state = state_of("pretraining")
    del state["temp"]
    loaded = load(state, {"fix_temp": True, "temp": 0.03})
    assert loaded.model.temperature.item() == pytest.approx(0.03)
    assert "temp" not in export_checkpoint(loaded)


def test_another_resolution_resizes_every_table():
    state = state_of("retrieval")
    loaded = load(state, image_res=96)
    name = "vision_encoder.blocks.1.attn.relative_position_bias_table"
    expected = resize_position_bias(state[name], 11 * 11 + 3)
    assert torch.equal(loaded.model.vision.trunk.blocks[1].attn.relative_position_bias_table, expected)
    assert len(loaded.report.resized) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_res": 384}, "image_res: 384, shapes say 64"),
        ({"embed_dim": 256}, "embed_dim"),
        ({"text_fusion_start_at": 12}, "text_fusion_start_at"),
        ({"text_num_hidden_layers": 18}, "text_num_hidden_layers"),
        ({"add_frame_pos": True, "frame_len": 3}, "missing absolute_frame_pos_embed"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        load(state_of("pretraining"), config)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text", {"vocab_size": 51}, "text.vocab_size is 50, expected 51"),
        ("text", {"width": 32}, "text.width is 16, expected 32"),
        ("vision", {"image_res": 96}, "vision.image_res is 64, expected 96"),
    ],
)
def test_another_model_than_expected_is_refused(part, change, message):
    expected = ModelConfig(
        vision=VisionConfig(image_res=64, width=24, depth=2, num_heads=3),
        text=TextConfig(width=16, num_layers=2, num_heads=2, intermediate=40, vocab_size=50, max_positions=20),
        fusion=FusionConfig(num_layers=2, num_heads=2, intermediate=40),
        embed_dim=8,
    )
    load(state_of("pretraining"), expect=expected)
    changed = expected.model_copy(update={part: getattr(expected, part).model_copy(update=change)})
    with pytest.raises(ConfigError, match=message):
        load(state_of("pretraining"), expect=changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("itm_head.0.bias", torch.full((32,), float("nan"))),
        ("itm_head.0.bias", torch.zeros(32, dtype=torch.long)),
        ("vision_encoder.blocks.1.attn.relative_position_index", torch.zeros(17, 17, dtype=torch.long)),
        ("text_encoder.bert.embeddings.position_ids", torch.ones(1, 20, dtype=torch.long)),
        ("text_encoder.cls.predictions.decoder.weight", torch.zeros(50, 16)),
    ],
)
def test_values_that_cannot_be_right_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        load(state_of("pretraining") | {key: value})


def test_a_mix_of_parts_nobody_wrote_is_refused():
    state = state_of("pretraining")
    with pytest.raises(ConfigError, match="no known kind"):
        load({name: value for name, value in state.items() if not name.startswith("itm_head.")})


def test_state_of_another_width_or_vocabulary_does_not_fill_a_model():
    with pytest.raises(ConfigError, match=r"vision_encoder\.cls_token has shape"):
        load_reference_state(load(state_of("pretraining")).model, random_state(
            tables.pretrained(replace(TINY, vision=48)), replace(TINY, vision=48)
        ))  # fmt: skip
    with pytest.raises(ConfigError, match=r"word_embeddings\.weight has shape"):
        load_reference_state(load(state_of("pretraining")).model, random_state(
            tables.pretrained(replace(TINY, vocab=51)), replace(TINY, vocab=51)
        ))  # fmt: skip


@pytest.mark.slow
def test_a_base_file_of_full_size_comes_back_bit_for_bit(tmp_path):
    state = random_state(tables.pretrained(tables.BASE_FRAMES), tables.BASE_FRAMES)
    path = tmp_path / "model_state_epoch_80.th"
    torch.save({"model": state, "config": {"frame_len": 3, "add_frame_pos": True, "image_res": 224}}, path)
    back = export_checkpoint(load_checkpoint(path, expect=ModelConfig(num_frames=3)))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
