"""Attention over the frames of a clip: against loops over positions and frames, and against the model without it."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from tests.support.models.tiny import tiny_config, tiny_model
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.inference.pretrained import from_pretrained, save_pretrained
from x2vlm.models.checkpoints.reference import (
    export_reference_state,
    load_reference_state,
    named_state,
    reference_names,
)
from x2vlm.models.config import ModelConfig, VisionConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.train.config import OptimizerConfig
from x2vlm.train.optim import new_parameter_names, parameter_groups

VISION = {"image_res": 64, "width": 24, "depth": 2, "num_heads": 2}
NUM_FRAMES = 3


def model_of(temporal, num_frames=NUM_FRAMES, **vision):
    return tiny_model(num_frames=num_frames, vision=VisionConfig(temporal=temporal, **(VISION | vision)))


def attentive_model(scale=0.3, **vision):
    """Weights far from the start, so that what attention over time adds is of the size of the patches."""
    model = model_of("attention", **vision)
    with torch.no_grad():
        for parameter in model.vision.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model


def clips(num_clips=2, num_frames=NUM_FRAMES, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_clips, num_frames, 3, 64, 64, generator=generator)


def temporal_names(model):
    return [name for name, _ in model.named_parameters() if ".temporal." in name]


@torch.no_grad()
def test_the_start_is_the_model_that_averages_frames_to_the_last_bit():
    mean, attention = model_of("mean"), model_of("attention")
    ours = dict(attention.named_parameters())
    assert len(temporal_names(attention)) == 1 + 2 * 6
    assert set(ours) - set(temporal_names(attention)) == set(dict(mean.named_parameters()))
    assert all(torch.equal(ours[name], value) for name, value in mean.named_parameters())
    found, expected = attention.encode_video(clips()), mean.encode_video(clips())
    assert torch.equal(found.tokens_BND, expected.tokens_BND)
    # Not because attention over time is skipped: its keys are no zeros, only the map behind it is.
    assert attention.vision.temporal.blocks[1].qkv.weight.std() == pytest.approx(0.02, rel=0.2)
    attention.vision.temporal.blocks[1].proj.weight.normal_()
    assert (attention.encode_video(clips()).tokens_BND - expected.tokens_BND).abs().max() > 1e-3


@torch.no_grad()
def test_the_order_of_frames_matters_only_to_attention():
    """With zero embeddings frames are a set even to attention: it is the embedding that tells first from last."""
    mean, attention, pixels = model_of("mean"), attentive_model(), clips()
    there, back = (mean.encode_video(each).tokens_BND for each in (pixels, pixels.flip(1)))
    assert_close(there, back, atol=1e-6, rtol=0)
    there, back = (attention.encode_video(each).tokens_BND for each in (pixels, pixels.flip(1)))
    assert (there - back).abs().max() > 0.01
    attention.vision.temporal.frame_embedding.zero_()
    there, back = (attention.encode_video(each).tokens_BND for each in (pixels, pixels.flip(1)))
    assert_close(there, back, atol=1e-5, rtol=0)


def by_loops(model, clip_FCHW):
    """Patches (F, P, D) of one clip behind the tower, position by position, head by head, query by query."""
    trunk, temporal = model.vision.trunk, model.vision.temporal
    num_frames = len(clip_FCHW)
    states = []  # of each frame: class token and patches
    for frame in range(num_frames):
        patches = trunk.patch_embed(clip_FCHW[frame : frame + 1])[0]
        states.append(torch.cat([trunk.cls_token[0], patches + temporal.frame_embedding[0, frame]]))
    for block, over_time in zip(trunk.blocks, temporal.blocks, strict=True):
        moved = [state.clone() for state in states]
        for token in range(1, len(states[0])):
            normed = [torch.layer_norm(state[token], (24,), *norm_of(over_time.norm), 1e-6) for state in states]
            mapped = [over_time.qkv.weight @ each + over_time.qkv.bias for each in normed]
            for frame in range(num_frames):
                heads = []
                for head in range(2):
                    part = slice(12 * head, 12 * head + 12)
                    scores = torch.stack([mapped[frame][:24][part] @ each[24:48][part] for each in mapped]) / 12**0.5
                    weights = scores.exp() / scores.exp().sum()
                    heads.append(sum(weight * each[48:][part] for weight, each in zip(weights, mapped, strict=True)))
                moved[frame][token] += over_time.proj.weight @ torch.cat(heads) + over_time.proj.bias
        states = [block(state[None])[0] for state in moved]  # timm's own block: spatial attention and feed-forward
    return torch.stack([trunk.fc_norm(state[None, 1:])[0] for state in states])


def norm_of(norm):
    return norm.weight, norm.bias


@pytest.mark.parametrize("num_frames", [2, 3])
@torch.no_grad()
def test_attention_over_time_is_what_loops_over_positions_and_frames_compute(num_frames):
    model, pixels = attentive_model(), clips(num_frames=num_frames)
    found = model.vision(pixels.flatten(0, 1), num_frames=num_frames)
    expected = torch.cat([by_loops(model, clip) for clip in pixels])
    assert_close(found.patches_MPD, expected, atol=2e-5, rtol=0)
    video = model.encode_video(pixels)
    assert_close(
        video.patches_MPD,
        expected.unflatten(0, (2, num_frames)).mean(1) + model.frame_position[0, :num_frames].mean(0),
        atol=2e-5,
        rtol=0,
    )


@torch.no_grad()
def test_clips_do_not_see_each_other_and_a_frame_sees_all_of_its_own():
    model, pixels = attentive_model(), clips()
    whole = model.vision(pixels.flatten(0, 1), num_frames=3).patches_MPD.unflatten(0, (2, 3))
    alone = model.vision(pixels[1], num_frames=3).patches_MPD
    assert_close(whole[1], alone, atol=1e-5, rtol=0)
    pixels[1, 2] = 0
    changed = model.vision(pixels.flatten(0, 1), num_frames=3).patches_MPD.unflatten(0, (2, 3))
    assert_close(changed[0], whole[0], atol=1e-5, rtol=0)
    assert (changed[1] - whole[1]).abs().amax(dim=(1, 2)).min() > 0.05


@torch.no_grad()
def test_images_and_clips_of_one_frame_do_not_look_over_time():
    model, other = attentive_model(), attentive_model()
    for name in temporal_names(other):
        other.get_parameter(name).normal_()
    pixels = clips()[:, 0]
    image = model.encode_image(pixels).tokens_BND
    assert torch.equal(other.encode_image(pixels).tokens_BND, image)
    assert torch.equal(model.encode_video(pixels[:, None]).tokens_BND, image + model.frame_position[0, 0])


def test_gradients_reach_every_new_parameter_and_at_the_start_those_that_open_the_rest():
    def reached(model):
        model.zero_grad()
        tokens = model.encode_video(clips()).tokens_BND
        (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
        return {name for name in temporal_names(model) if model.get_parameter(name).grad.abs().max() > 1e-4}

    model = attentive_model()
    assert reached(model) == set(temporal_names(model))
    start = model_of("attention")
    opening = {name for name in temporal_names(start) if name.endswith(("frame_embedding", "proj.weight", "proj.bias"))}
    assert reached(start) == opening


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_blocks_of_clips_change_nothing_and_drop_the_same_paths(every):
    model = attentive_model(drop_path=0.4, depth=4, scale=0.1).train()
    pixels = clips(3).flatten(0, 1)

    def run(execution):
        torch.manual_seed(5)
        model.zero_grad()
        patches = model.vision(pixels, execution, 3).patches_MPD
        (patches * torch.linspace(-1, 1, patches.numel()).view_as(patches)).sum().backward()
        return patches.detach(), {name: p.grad.clone() for name, p in model.vision.named_parameters()}

    expected, found = run(ExecutionConfig()), run(ExecutionConfig(checkpoint_vision_blocks=every))
    assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    for name, value in expected[1].items():
        assert (found[1][name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name
    assert not torch.allclose(expected[0], model.eval().vision(pixels, None, 3).patches_MPD, atol=1e-3)


def test_stochastic_depth_takes_attention_over_time_from_whole_clips():
    """Identity blocks and a constant map: what is added is 0 or 1 / (share kept), the same in all of a clip."""
    model = model_of("attention", depth=2, drop_path=0.5).train()
    with torch.no_grad():
        for block in model.vision.trunk.blocks:
            block.gamma_1.zero_()
            block.gamma_2.zero_()
        model.vision.temporal.blocks[1].proj.bias.fill_(1.0)
        model.vision.trunk.fc_norm = torch.nn.Identity()
        pixels = clips(40)
        added = model.vision(pixels.flatten(0, 1), num_frames=3).patches_MPD
        added = added - model.eval().vision.trunk.patch_embed(pixels.flatten(0, 1))
    kept = added.unflatten(0, (40, 3)).flatten(1)
    assert_close(kept, kept[:, :1].expand_as(kept), atol=1e-4, rtol=0)
    assert {round(value, 3) for value in kept[:, 0].tolist()} == {0.0, 2.0}


def directed_clips(num_clips, seed):
    """Clips that get brighter or, the same frames turned around, darker; labels say which."""
    brighter = clips(num_clips, seed=seed) * 0.3 + torch.linspace(-1, 1, NUM_FRAMES)[:, None, None, None]
    return torch.cat([brighter, brighter.flip(1)]), torch.arange(2.0).repeat_interleave(num_clips)


@pytest.mark.parametrize("temporal", ["mean", "attention"])
def test_only_attention_learns_which_frame_came_first_and_it_learns_from_its_start(temporal):
    """The averaging model sees the same thing twice with two labels: no weights bring it below the entropy of a coin.

    Of the attentive one only what is new is trained, from zero.
    """
    model = model_of(temporal, drop_path=0.0).train()
    readout = torch.randn(24, generator=torch.Generator().manual_seed(3))
    trained = model.vision.temporal.parameters() if temporal == "attention" else model.vision.parameters()
    optimizer = torch.optim.Adam(trained, lr=1e-2)

    def loss_of(seed):
        pixels, labels = directed_clips(4, seed)
        logits = model.encode_video(pixels).summary_BD @ readout
        return binary_cross_entropy_with_logits(logits, labels), (logits > 0) == labels.bool()

    for _ in range(30):
        optimizer.zero_grad()
        loss_of(seed=1)[0].backward()
        optimizer.step()
    with torch.no_grad():
        loss, is_right = loss_of(seed=2)
    if temporal == "mean":
        assert loss >= math.log(2) - 1e-4
        assert is_right.sum() == 4
    else:
        assert loss < 0.2
        assert is_right.all()


@pytest.mark.slow
def test_compiled_blocks_of_clips_change_nothing_and_share_a_graph():
    from torch._dynamo.utils import counters

    model, pixels = attentive_model(depth=6, scale=0.1), clips().flatten(0, 1)
    expected = model.vision(pixels, None, 3).patches_MPD
    counters.clear()
    compiled = model.vision(pixels, ExecutionConfig(compile_blocks=True), 3).patches_MPD
    assert_close(compiled, expected, atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@torch.no_grad()
def test_bfloat16_stays_close_to_float32():
    dtype = torch.bfloat16
    model = attentive_model(scale=0.1)
    expected = model.encode_video(clips()).summary_BD
    with torch.autocast("cpu", dtype):
        mixed = model.encode_video(clips()).summary_BD
    assert (mixed - expected).norm() <= 0.02 * expected.norm()
    half = model.to(dtype).encode_video(clips().to(dtype)).summary_BD
    assert half.dtype == dtype
    assert (half.float() - expected).norm() <= 0.05 * expected.norm()


def test_weights_of_the_averaging_model_load_and_the_report_says_what_is_new():
    model = model_of("attention")
    mean = model_of("mean")
    with torch.no_grad():
        for parameter in mean.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    report = load_reference_state(model, export_reference_state(mean))
    names = reference_names(model)
    assert set(report.missing) == {names[name] for name in temporal_names(model)}
    assert all(name.startswith("vision_temporal.") for name in report.missing)
    with torch.no_grad():
        assert torch.equal(model.encode_video(clips()).tokens_BND, mean.encode_video(clips()).tokens_BND)


def test_new_parameters_learn_at_the_larger_rate():
    model = model_of("attention")
    names = reference_names(model)
    assert {names[name] for name in temporal_names(model)} <= set(new_parameter_names(model))
    groups = {
        name: group["name"]
        for config in (OptimizerConfig(), OptimizerConfig(vision_lr=1e-5, text_lr=1e-5))
        for group in parameter_groups(model, config)
        for name, _ in group["params"]
        if ".temporal." in name
    }
    assert set(groups) == set(temporal_names(model))
    for name, group in groups.items():
        assert group == ("new_no_decay" if "bias" in name or "norm" in name else "new_decay"), name


def test_weights_move_to_a_model_of_more_frames():
    source = attentive_model()
    model = model_of("attention", num_frames=5)
    report = load_reference_state(model, named_state(source))
    assert not report.missing
    assert set(report.resized) == {"absolute_frame_pos_embed", "vision_temporal.frame_embedding"}
    assert torch.equal(model.vision.temporal.frame_embedding[:, :3], source.vision.temporal.frame_embedding)
    assert model.vision.temporal.frame_embedding[:, 3:].abs().max() == 0
    with torch.no_grad():
        patches = (each.vision(clips().flatten(0, 1), num_frames=3).patches_MPD for each in (model, source))
        assert torch.equal(*patches)


def test_the_reference_cannot_have_such_a_model():
    with pytest.raises(ConfigError, match="no attention over time and would silently average"):
        export_reference_state(attentive_model())


@torch.no_grad()
def test_a_saved_model_comes_back(tmp_path):
    model = attentive_model()
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.encode_video(clips()).tokens_BND, model.encode_video(clips()).tokens_BND)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"temporal": "attention", "backbone": "clip_vit"}, "num_frames": 3}, "beit2 only, clip_vit"),
        (
            {
                "vision": {
                    "temporal": "attention", "backbone": "swin", "patch_size": 32, "width": 64, "num_heads": 8,
                    "depth": 8,
                },
                "num_frames": 3,
            },
            "beit2 only, swin",
        ),
        ({"vision": {"temporal": "attention"}}, "set num_frames to 2 or more, it is None"),
        ({"vision": {"temporal": "attention"}, "num_frames": 1}, "it is 1"),
        ({"vision": {"temporal": "conv"}, "num_frames": 3}, "'mean' or 'attention'"),
    ],
)  # fmt: skip
def test_what_cannot_look_over_time_says_so(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(ModelConfig, changes, "model")


def test_clips_of_more_frames_than_embeddings_are_refused():
    with pytest.raises(ConfigError, match="clips have 4 frames"):
        model_of("attention").encode_video(clips(num_frames=4))


def test_a_model_of_the_other_kind_is_not_built_by_accident():
    assert build_model(tiny_config(num_frames=NUM_FRAMES)).vision.temporal is None
