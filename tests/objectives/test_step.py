"""Every way of carrying out a step gives the losses and gradients of the plain, padded one."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import Data2VecTextConfig, Data2VecTextModel

from tests.support.models.golden_cases import LOSS_NAMES, read_case, read_model, to_batch
from tests.support.training.steps import gradients, mixed_step, padded_losses, step_model
from x2vlm.models.blocks import packing
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import swap_text_encoder
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.step import pretrain_losses, step_losses

SWITCHES = ("share_image_keys", "pack_texts", "one_fusion_call", "prune_last_layer", "only_masked_words")


@pytest.fixture(scope="module")
def plain():
    model, (batches, negatives) = step_model(), mixed_step()
    losses = padded_losses(model, batches, negatives)
    return losses, gradients(model, losses)


@pytest.mark.parametrize("values", list(itertools.product([True, False], repeat=5)))
def test_every_combination_of_savings_is_exact(plain, values):
    model, (batches, negatives) = step_model(), mixed_step()
    execution = ExecutionConfig(**dict(zip(SWITCHES, values, strict=True)))
    assert_equal(model, step_losses(model, batches, negatives=negatives, execution=execution), plain)


def test_nothing_but_rounding_is_left_in_double_precision(plain):
    model, (batches, negatives) = step_model().double(), mixed_step()
    batches = {label: _double(batch) for label, batch in batches.items()}
    losses = padded_losses(model, batches, negatives)
    expected = losses, gradients(model, losses)
    # The losses themselves are computed in float32, whatever the model is.
    assert_equal(model, step_losses(model, batches, negatives=negatives), expected, 1e-6, 2e-6)


def _double(batch):
    return batch if batch.pixels is None else replace(batch, pixels=batch.pixels.double())


def test_a_batch_alone_and_one_whose_lengths_the_device_knows_give_the_same(plain):
    model, (batches, negatives) = step_model(), mixed_step(known=False)
    assert_equal(model, step_losses(model, batches, negatives=negatives), plain)
    alone = {label: pretrain_losses(model, batch, negatives.get(label)) for label, batch in batches.items()}
    assert_equal(model, alone, plain)


@pytest.mark.parametrize("architecture", ["xlm-roberta", "data2vec-text"])
@pytest.mark.parametrize("packs", [True, False])
def test_other_text_towers_are_exact_too(architecture, packs):
    """XLM-R numbers its positions from after the padding; a tower we cannot pack runs padded in a packed step."""
    batches, negatives = mixed_step()
    batches = {label: _pad_with_one(batch) for label, batch in batches.items()}
    if architecture == "xlm-roberta":
        model = step_model(architecture=architecture, pad_id=1, type_vocab_size=1)
    else:
        config = Data2VecTextConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=48, type_vocab_size=1, pad_token_id=1,
        )  # fmt: skip
        model = swap_text_encoder(step_model(), Data2VecTextModel(config, add_pooling_layer=False)).eval()
    assert model.text.can_pack == (architecture == "xlm-roberta")
    losses = padded_losses(model, batches, negatives)
    expected = losses, gradients(model, losses)
    assert_equal(
        model, step_losses(model, batches, negatives=negatives, execution=ExecutionConfig(pack_texts=packs)), expected
    )


@pytest.mark.parametrize("packs", [True, False])
def test_clips_that_look_over_time_are_exact_beside_images_and_regions(packs):
    """Two streams of clips, whose frames go through the tower together but apart from the images."""
    model, (batches, negatives) = step_model("attention"), mixed_step()
    clips = batches["clips"]
    batches["more clips"] = replace(clips, pixels=clips.pixels.flip(0, 1))
    negatives["more clips"] = negatives["clips"]
    losses = padded_losses(model, batches, negatives)
    assert losses["clips"]["contrastive"] != losses["more clips"]["contrastive"]
    expected = losses, gradients(model, losses)
    assert expected[1]["vision.temporal.blocks.0.qkv.weight"].abs().max() > 0
    calls = []
    model.vision.register_forward_hook(lambda _, inputs, tokens: calls.append((len(inputs[0]), inputs[2])))
    execution = ExecutionConfig() if packs else ExecutionConfig(**dict.fromkeys(SWITCHES, False))
    assert_equal(model, step_losses(model, batches, negatives=negatives, execution=execution), expected)
    assert calls == [(6 + 4, 1), (6 + 6, 2)]


def test_clips_of_two_lengths_do_not_mix():
    model, (batches, negatives) = step_model("attention"), mixed_step()
    clips = batches["clips"]
    whole = model.encode_video(clips.pixels)
    batches = {"clips": clips, "stills": replace(clips, pixels=clips.pixels[:, :1])}
    pins = {label: negatives["clips"] for label in batches}
    expected = padded_losses(model, batches, pins)
    assert not torch.equal(model.encode_video(clips.pixels[:, :1]).summary_BD, whole.summary_BD)
    assert_equal(model, step_losses(model, batches, negatives=pins), (expected, gradients(model, expected)))


def _pad_with_one(batch):
    mask = batch.text_mask_BL.bool()
    ids, masked = batch.text_ids_BL.masked_fill(~mask, 1), batch.masked_ids_BL.masked_fill(~mask, 1)
    return replace(batch, text_ids_BL=ids, masked_ids_BL=masked)


@pytest.mark.parametrize("name", ["image", "regions", "text_only"])
def test_plain_execution_equals_the_reference_too(golden_dir, name):
    """test_objectives.py holds the defaults to the reference's numbers; this is the padded way."""
    model, case = read_model(golden_dir), read_case(golden_dir / name)
    negatives = case.negatives if "out.image_neg_idx" in case.tensors else None
    plain = ExecutionConfig(**dict.fromkeys(SWITCHES, False))
    for execution in (ExecutionConfig(), plain):
        losses = pretrain_losses(model, to_batch(case), negatives, execution=execution)
        recorded = case.info["losses_f64"]
        for key, value in losses.items():
            assert value.item() == pytest.approx(recorded[LOSS_NAMES[key]], abs=2e-5), key


def test_streams_without_a_matching_loss_and_streams_alone():
    model, (batches, negatives) = step_model(), mixed_step()
    expected = padded_losses(model, batches, negatives)
    quiet = {"images": ObjectiveConfig(matching=False), "regions": ObjectiveConfig(matching=False)}
    losses = step_losses(model, batches, quiet, negatives=negatives)
    assert set(losses["images"]) == {"contrastive", "masked_lm"}
    assert set(losses["regions"]) == {"contrastive", "masked_lm", "box_l1", "box_giou"}
    assert set(losses["clips"]) == {"contrastive", "matching", "masked_lm"}
    assert set(losses["texts"]) == {"masked_lm"}
    for label, parts in losses.items():
        for name, value in parts.items():
            assert value.item() == pytest.approx(expected[label][name].item(), rel=1e-5), (label, name)


def test_a_step_without_any_masked_token_has_zero_mlm_loss_and_a_graph():
    model, (batches, negatives) = step_model(), mixed_step()
    batches = {
        label: replace(
            batch,
            masked_labels_BK=torch.full_like(batch.masked_labels_BK, -100),
            num_masked=(0,) * batch.num_rows,
        )
        for label, batch in batches.items()
    }
    for one_call in (True, False):
        execution = ExecutionConfig(one_fusion_call=one_call)
        losses = step_losses(model, batches, negatives=negatives, execution=execution)
        assert all(parts["masked_lm"].item() == 0 for parts in losses.values())
        found = gradients(model, losses)
        assert all(value.isfinite().all() for value in found.values())
        assert found["word_head.transform.weight"].abs().max() == 0


def test_bfloat16_steps_point_the_same_way(plain):
    model, (batches, negatives) = step_model(), mixed_step()
    with torch.autocast("cpu", torch.bfloat16):
        losses = step_losses(model, batches, negatives=negatives)
    for label, parts in plain[0].items():
        for name, value in parts.items():
            assert losses[label][name].dtype == torch.float32
            assert losses[label][name].item() == pytest.approx(value.item(), rel=0.02, abs=0.05), (label, name)
    found = torch.cat([value.flatten() for value in gradients(model, losses).values()])
    expected = torch.cat([value.flatten() for value in plain[1].values()])
    assert cosine_similarity(found, expected, dim=0) >= 0.99


def test_dropout_is_applied_in_training_only_and_everywhere_at_its_rate():
    model, (batches, negatives) = step_model(dropout=0.2, attention_dropout=0.3), mixed_step()
    fractions: dict[str, list[float]] = {}

    def watch(name):
        def hook(_, inputs, output):
            fractions.setdefault(name, []).append(((output == 0) & (inputs[0] != 0)).float().mean().item())

        return hook

    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout) and part.p]
    for name, part in parts:
        part.register_forward_hook(watch(name))

    def run():
        return step_losses(model, batches, negatives=negatives)["images"]["matching"].item()

    assert run() == run()
    assert max(fraction for found in fractions.values() for fraction in found) == 0
    fractions.clear()
    model.train()
    assert run() != run()
    # Dropouts of attention probabilities are rates handed to the attention cores, never modules that run.
    applied = {name for name, _ in parts if not name.endswith("attention.self.dropout")}
    assert fractions.keys() == applied
    for name, found in fractions.items():
        rate = dict(parts)[name].p
        # 16 x 300 numbers or more: 5 standard deviations are 0.03.
        assert sum(found) / len(found) == pytest.approx(rate, abs=0.03), name


def test_attention_dropout_reaches_every_attention_core(monkeypatch):
    model, (batches, negatives) = step_model(attention_dropout=0.3), mixed_step()
    rates: list[float] = []
    ours = packing.scaled_dot_product_attention

    def watched(*states, dropout_p, **options):
        rates.append(dropout_p)
        return ours(*states, dropout_p=dropout_p, **options)

    monkeypatch.setattr(packing, "scaled_dot_product_attention", watched)
    step_losses(model, batches, negatives=negatives)
    assert set(rates) == {0.0}
    rates.clear()
    step_losses(model.train(), batches, negatives=negatives)
    assert set(rates) == {0.3, model.config.fusion.attention_dropout}


def test_texts_that_cannot_be_laid_out_are_refused():
    model, (batches, negatives) = step_model(), mixed_step(known=False)
    batch = batches["images"]
    for mask, message in (
        (batch.text_mask_BL.roll(1, dims=1), "padding must stand at the end"),
        (batch.text_mask_BL & (torch.arange(6) != 2)[:, None], "row 2 has no token"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain_losses(model, replace(batch, text_mask_BL=mask), negatives["images"])
    with pytest.raises(ValueError, match="6 texts has 2 lengths"):
        replace(batch, lengths=(3, 4))
    with pytest.raises(ValueError, match="go up to 41"):
        replace(batch, lengths=(41, 4, 4, 4, 4, 4))


def assert_equal(model, losses, plain, tolerance=1e-5, gradient_tolerance=1e-4):
    """Every loss and the gradient of every parameter, each within its relative tolerance."""
    expected_losses, expected = plain
    assert losses.keys() == expected_losses.keys()
    for label, parts in expected_losses.items():
        assert losses[label].keys() == parts.keys()
        for name, value in parts.items():
            assert losses[label][name].item() == pytest.approx(value.item(), rel=tolerance), (label, name)
    found = gradients(model, losses)
    assert found.keys() == expected.keys()
    largest = max(value.norm() for value in expected.values())
    worst = {}
    for name, value in expected.items():
        # Biases of keys move all scores of a query alike: their gradient is rounding around zero.
        scale = max(value.norm(), gradient_tolerance * largest)
        worst[name] = ((found[name] - value).norm() / scale).item()
    name = max(worst, key=worst.get)
    assert worst[name] <= gradient_tolerance, (name, worst[name])
    return worst
