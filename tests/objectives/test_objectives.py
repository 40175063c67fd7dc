"""The five losses against the reference's numbers, naive versions, and two real processes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from tests.support.models.golden_cases import LOSS_NAMES, read_case, read_model, to_batch
from tests.support.models.tiny import region_batch, tiny_batch, tiny_model
from tests.support.training import rank_worker
from x2vlm.models.checkpoints.reference import reference_names
from x2vlm.objectives.across_ranks import Gather, NegativeGroup
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.losses import contrastive, masked_lm, matching
from x2vlm.objectives.negatives import draw_negatives, negative_weights
from x2vlm.objectives.step import pretrain_losses

TOLERANCE = {"atol": 2e-5, "rtol": 0.0}


@pytest.mark.parametrize("name", ["image", "regions", "text_only"])
def test_losses_and_gradients_equal_the_reference(golden_dir, name):
    model, case = read_model(golden_dir), read_case(golden_dir / name)
    negatives = case.negatives if "out.image_neg_idx" in case.tensors else None
    losses = pretrain_losses(model, to_batch(case), negatives)
    assert {LOSS_NAMES[key] for key in losses} == set(case.info["losses"])
    for key, value in losses.items():
        assert value.item() == pytest.approx(case.info["losses_f64"][LOSS_NAMES[key]], abs=2e-5), key
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    gradients = {theirs: parameters[ours].grad for ours, theirs in reference_names(model).items()}
    assert set(gradients) == set(case.info["grad_norms"])
    for key, expected in case.info["grad_norms"].items():
        norm = 0.0 if gradients[key] is None else gradients[key].norm().item()
        assert norm == pytest.approx(expected or 0.0, rel=1e-3, abs=1e-6), key
    for key, expected in case.tensors.items():
        if key.startswith("grad."):
            assert_close(gradients[key.removeprefix("grad.")], expected, atol=2e-5, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["image", "regions"])
def test_negative_weights_equal_the_reference(golden_dir, name):
    case = read_case(golden_dir / name)
    similarity = case.tensors["out.sim_over_temp"]
    same = torch.eye(len(similarity), dtype=torch.bool)
    assert_close(negative_weights(similarity, same), case.tensors["out.text_negative_weights"], **TOLERANCE)
    assert_close(negative_weights(similarity.T, same), case.tensors["out.image_negative_weights"], **TOLERANCE)


def test_matching_can_be_switched_off(golden_dir):
    model, case = read_model(golden_dir), read_case(golden_dir / "image")
    losses = pretrain_losses(model, to_batch(case), config=ObjectiveConfig(matching=False))
    assert set(losses) == {"contrastive", "masked_lm"}
    sum(losses.values()).backward()
    assert model.match_head[0].weight.grad is None


def test_one_model_does_all_losses_of_a_clip():
    model = tiny_model(num_frames=2)
    batch = tiny_batch("video", torch.randn(3, 2, 3, 64, 64))
    losses = pretrain_losses(model, batch)
    sum(losses.values()).backward()
    assert set(losses) == {"contrastive", "matching", "masked_lm"}
    assert model.frame_position.grad.abs().sum() > 0


def test_batch_without_its_fields_is_refused():
    with pytest.raises(ValueError, match="region needs pixels, image_of_R"):
        tiny_batch("region")


def test_batch_moves_every_tensor():
    moved = region_batch().to("meta")
    assert moved.pixels.is_meta
    assert moved.patch_mask_RP.is_meta
    assert moved.keys == ["a", "b", "c"]
    assert moved.image_ids_B is None


def test_region_batch_without_boxes_has_zero_box_loss_and_a_graph():
    model = tiny_model()
    losses = pretrain_losses(model, region_batch(is_whole_image_R=torch.ones(3, dtype=torch.bool)))
    assert losses["box_l1"].item() == 0
    assert losses["box_giou"].item() == 0
    sum(losses.values()).backward()
    assert model.box_head[0].weight.grad.abs().max() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_reference_parity_repeats_the_division_by_zero():
    batch = region_batch(is_whole_image_R=torch.ones(3, dtype=torch.bool))
    losses = pretrain_losses(tiny_model(), batch, config=ObjectiveConfig(parity="reference"))
    assert losses["box_l1"].isnan()


def test_box_loss_on_whole_images_counts_every_row():
    model, batch = tiny_model(), region_batch()
    counted = pretrain_losses(model, batch, config=ObjectiveConfig(box_loss_on_whole_images=True))
    all_boxes = replace(batch, is_whole_image_R=torch.zeros(3, dtype=torch.bool))
    assert_close(counted["box_l1"], pretrain_losses(model, all_boxes)["box_l1"])


def test_images_seen_by_no_row_change_nothing():
    model, batch = tiny_model(), region_batch()
    negatives = (torch.tensor([2, 2, 0]), torch.tensor([2, 2, 1]))
    more = replace(batch, pixels=torch.cat([batch.pixels, torch.randn(1, 3, 64, 64)]))
    first, second = pretrain_losses(model, batch, negatives), pretrain_losses(model, more, negatives)
    for name in first:
        assert_close(second[name], first[name], atol=1e-6, rtol=0)


# Boxes


# Words


def test_masked_lm_is_the_mean_over_all_masked_tokens():
    logits, labels = torch.randn(2, 3, 11), torch.tensor([[4, -100, 2], [9, -100, -100]])
    by_hand = [-logits[b, k].log_softmax(0)[labels[b, k]] for b, k in ((0, 0), (0, 2), (1, 0))]
    assert_close(masked_lm(logits, labels), torch.stack(by_hand).mean())


def test_masked_lm_without_a_masked_token_is_zero_with_a_graph():
    logits = torch.randn(2, 3, 11, requires_grad=True)
    loss = masked_lm(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


# Matching


def features(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return normalize(torch.randn(rows, 6), dim=1), normalize(torch.randn(rows, 6), dim=1)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_negatives_never_show_the_same_image(ids):
    image, text = features(len(ids))
    image_ids = torch.tensor(ids)
    of_text, of_image, has = draw_negatives(image, text, torch.tensor(0.07), image_ids)
    assert has.tolist() == [any(other != own for other in ids) for own in ids]
    assert (image_ids[of_text] != image_ids)[has].all()
    assert (image_ids[of_image] != image_ids)[has].all()


def test_negatives_are_drawn_as_often_as_their_weights_say():
    image, text = features(4)
    temperature, generator = torch.tensor(0.5), torch.Generator().manual_seed(0)
    counts_image, counts_text = torch.zeros(4, 4), torch.zeros(4, 4)
    rows, num_draws = torch.arange(4), 4000
    for _ in range(num_draws):
        of_text, of_image, _ = draw_negatives(image, text, temperature, generator=generator)
        counts_image[rows, of_text] += 1
        counts_text[rows, of_image] += 1
    similarity, own = image @ text.T / temperature, torch.eye(4, dtype=torch.bool)
    for counts, weights in (
        (counts_text, negative_weights(similarity, own)),
        (counts_image, negative_weights(similarity.T, own)),
    ):
        # 5 standard deviations of a share over 4,000 draws are at most 0.04.
        assert_close(counts / num_draws, weights / weights.sum(dim=1, keepdim=True), atol=0.04, rtol=0)


def test_equal_generators_draw_equal_negatives():
    image, text = features(30)
    draws = [draw_negatives(image, text, torch.tensor(0.07), generator=torch.Generator().manual_seed(5)) for _ in "ab"]
    assert all(torch.equal(first, second) for first, second in zip(*draws, strict=True))


def test_a_lone_row_has_no_matching_loss():
    model = tiny_model()
    batch = replace(tiny_batch("image", torch.randn(3, 3, 64, 64)), image_ids_B=torch.tensor([4, 4, 4]))
    losses = pretrain_losses(model, batch)
    assert losses["matching"].item() == 0
    sum(losses.values()).backward()
    assert model.match_head[0].weight.grad.abs().max() == 0


def test_rows_without_a_negative_contribute_nothing():
    logits, has = torch.randn(9, 2), torch.tensor([True, False, True])
    kept = torch.tensor([0, 2, 3, 5, 6, 8])
    assert_close(matching(logits, has), matching(logits[kept]))
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert_close(matching(logits), cross_entropy(logits, labels))


# Contrastive


def test_contrastive_with_distinct_ids_equals_no_ids():
    image, text = features(5)
    temperature = torch.tensor(0.07)
    with_ids = contrastive(image, text, temperature, image_ids_B=torch.tensor([9, 3, 5, 1, 7]))
    assert_close(with_ids, contrastive(image, text, temperature))


def test_contrastive_spreads_the_target_over_equal_ids():
    image, text = features(3)
    logits = image @ text.T / 0.1
    target = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    by_hand = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    assert_close(contrastive(image, text, torch.tensor(0.1), image_ids_B=torch.tensor([2, 2, 6])), by_hand)


@pytest.mark.parametrize(("gradient", "factor"), [("true", 1.0), ("reference", 0.25), (0.125, 0.125)])
def test_feature_gradient_after_averaging_over_four_ranks(gradient, factor):
    """Four ranks played one after the other by a Gather that hands out the whole batch."""
    image, text = (f.requires_grad_() for f in features(8))
    temperature = torch.tensor(0.07, requires_grad=True)
    whole = torch.autograd.grad(contrastive(image, text, temperature), (image, text, temperature))
    averaged = [torch.zeros_like(g) for g in whole]
    for rank in range(4):
        own = slice(2 * rank, 2 * rank + 2)
        all_rows = {id_of: f.detach() for id_of, f in ((0, image), (1, text))}
        order = iter((0, 1))
        gather = Gather(rank, 4, lambda local, order=order, all_rows=all_rows: all_rows[next(order)])
        loss = contrastive(image[own], text[own], temperature, gather=gather, gradient=gradient)
        for total, part in zip(averaged, torch.autograd.grad(loss, (image, text, temperature)), strict=True):
            total += part / 4
    assert_close(averaged[0], whole[0] * factor)
    assert_close(averaged[1], whole[1] * factor)
    assert_close(averaged[2], whole[2])


def test_unknown_gradient_rule_is_refused():
    image, text = features(2)
    with pytest.raises(ValueError, match="neither"):
        contrastive(image, text, torch.tensor(0.07), gradient="half")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "world_size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_real_processes_over_gloo(world_size):
    """Averaged over ranks: `true` is the single process's gradient, `reference` 1/W of it but for the temperature."""
    layers, temperature, inputs = rank_worker.contrastive_problem()
    features = [normalize(layer(rows), dim=1) for layer, rows in zip(layers, inputs, strict=True)]
    whole = contrastive(*features, temperature)
    whole.backward()
    for rank_results in rank_worker.run_ranks(rank_worker.contrastive_gradients, world_size):
        for gradient, factor in (("true", 1.0), ("reference", 1 / world_size)):
            loss, *weights, temperature_gradient = rank_results[gradient]
            assert loss.item() == pytest.approx(whole.item(), abs=1e-6)
            for layer, weight in zip(layers, weights, strict=True):
                assert_close(weight, layer.weight.grad * factor, atol=1e-6, rtol=0)
            assert_close(temperature_gradient, temperature.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "region"])
def test_a_negative_group_over_two_processes_is_one_larger_batch(kind):
    """The matching loss and its gradients, with negatives that lie on the other rank."""
    whole = rank_worker.matching_gradients_of_one(kind)
    for results in rank_worker.run_ranks(rank_worker.matching_gradients, 2, kind):
        assert results.keys() == whole.keys()
        for name, value in whole.items():
            assert_close(results[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_negatives_of_a_group_are_those_of_the_whole_batch():
    """Two ranks played one after the other draw from the same rows, with the same chances, as one with all rows."""
    image, text = features(6)
    ids = torch.tensor([4, 4, 5, 6, 5, 4])
    similarity, temperature = image @ text.T / 0.3, torch.tensor(0.3)
    same = ids[:, None] == ids[None]
    expected = negative_weights(similarity.T, same)
    for rank in range(2):
        own = slice(3 * rank, 3 * rank + 3)
        counts = torch.zeros(3, 6)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(2000):
            order = iter((image, text, ids))
            group = Gather(rank, 2, lambda local, order=order: next(order))
            of_text, of_image, has = draw_negatives(image[own], text[own], temperature, ids[own], generator, group)
            assert has.all()
            assert (ids[of_image] != ids[own]).all()
            counts[torch.arange(3), of_text] += 1
        # 5 standard deviations of a share over 2,000 draws are at most 0.056.
        fractions = expected[own] / expected[own].sum(dim=1, keepdim=True)
        assert_close(counts / 2000, fractions, atol=0.056, rtol=0)


def test_texts_too_long_to_share_are_refused():
    group = NegativeGroup(Gather(0, 1, lambda local: local), length=4)
    with pytest.raises(ValueError, match="raise length"):
        group.gather_texts(torch.zeros(2, 5, 3), torch.ones(2, 5))


# Sentence pairs


# What a step costs


def test_no_loss_makes_the_host_wait_for_the_device():
    """On the meta device there are no values: whatever reads one on the host raises. (Drawn negatives: test_waits.)"""
    with torch.device("meta"):
        model = tiny_model(num_frames=2).train()
    known = {"lengths": (7, 5, 4), "num_masked": (2, 1, 1)}
    batches = [
        region_batch(image_ids_B=torch.tensor([4, 4, 5]), image_of=(0, 0, 1), **known),
        tiny_batch("image", torch.zeros(3, 3, 64, 64), **known),
        tiny_batch("video", torch.zeros(3, 2, 3, 64, 64), **known),
        tiny_batch("text", **known),
    ]
    negatives = (torch.tensor([2, 2, 0]), torch.tensor([2, 2, 1]))
    for batch in batches:
        losses = pretrain_losses(model, batch.to("meta"), negatives)
        sum(losses.values()).backward()
        assert all(loss.is_meta for loss in losses.values())


def test_image_keys_are_projected_once_per_image_and_summary():
    """Three regions of two images, five looks at each: 2 x 16 patches and 5 summary tokens, whatever is fused."""
    model, seen = tiny_model(), []
    for layer in model.fusion.layers:
        layer.cross_attention.key.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][..., 0].numel()))
    # Images with as many regions as each other need no padding, images with fewer one slot for each they lack.
    pretrain_losses(model, region_batch(), (torch.tensor([2, 2, 0]), torch.tensor([2, 2, 1])))
    padding = sum(seen) - len(model.fusion.layers) * (2 * 16 + 5)
    assert padding in (0, len(model.fusion.layers))


def test_losses_under_bfloat16_autocast_are_float32_and_close():
    model, batch = tiny_model().eval(), region_batch()
    negatives = (torch.tensor([2, 2, 0]), torch.tensor([2, 2, 1]))
    exact = pretrain_losses(model, batch, negatives)
    with torch.autocast("cpu", torch.bfloat16):
        rough = pretrain_losses(model, batch, negatives)
    for name, value in rough.items():
        assert value.dtype == torch.float32, name
        # bfloat16 keeps 8 bits; contrastive logits are divided by 0.07.
        assert_close(value, exact[name], atol=0.05, rtol=0.02)
    sum(rough.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
