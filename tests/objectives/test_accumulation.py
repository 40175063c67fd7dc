"""A step in chunks is the step at once: losses, gradients, negatives, whatever the number of chunks."""

from dataclasses import replace

import pytest
import torch

from tests.support.training.steps import mixed_step, step_model
from x2vlm.data.loading.batch import Batch
from x2vlm.errors import ConfigError
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives import accumulation
from x2vlm.objectives.accumulation import Accumulation, accumulate_gradients, chunk_of
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.step import step_losses


def total_of(losses):
    """A different weight for each stream."""
    return torch.stack(
        [(number + 1.0) * value for number, parts in enumerate(losses.values()) for value in parts.values()]
    ).sum()


def plan(num_chunks, **changes) -> Accumulation:
    return Accumulation(num_chunks, range(100, 100 + num_chunks), 7, total_of, **changes)


def to_double(batch: Batch) -> Batch:
    return batch._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def gradients(model):
    found = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def at_once(model, batches, objectives, pinned, execution=None):
    torch.manual_seed(7)
    losses = step_losses(model, batches, objectives, negatives=pinned, execution=execution)
    total_of(losses).backward()
    return losses, gradients(model)


def in_chunks(model, batches, objectives, pinned, num_chunks, execution=None):
    found = accumulate_gradients(model, batches, objectives, plan(num_chunks), negatives=pinned, execution=execution)
    return found, gradients(model)


def check(found, expected, tolerance):
    losses, grads = expected
    assert {label: set(parts) for label, parts in found[0].items()} == {label: set(p) for label, p in losses.items()}
    for label, parts in losses.items():
        for name, value in parts.items():
            assert not found[0][label][name].requires_grad
            torch.testing.assert_close(found[0][label][name], value, rtol=tolerance, atol=tolerance, check_dtype=False)
    largest = max(float(grad.norm()) for grad in grads.values() if grad is not None)
    for name, grad in grads.items():
        assert (grad is None) == (found[1][name] is None), name
        if grad is not None:
            assert float((found[1][name] - grad).norm()) <= tolerance * largest, name


@pytest.fixture(scope="module")
def step():
    return mixed_step()


@pytest.mark.parametrize("num_chunks", [1, 2, 3])
@pytest.mark.parametrize("pins", [True, False], ids=["pinned", "drawn"])
def test_losses_and_gradients_are_those_of_the_whole_batch(step, num_chunks, pins):
    """Images, regions, clips and texts of 3 to 40 tokens; images without regions, texts without masked tokens."""
    batches, negatives = step
    batches = {label: to_double(batch) for label, batch in batches.items()}
    if not pins:  # rows of one image, and negatives drawn from rows of all chunks
        batches["images"] = replace(batches["images"], image_ids_B=torch.tensor([0, 1, 1, 2, 3, 4]))
    model, pinned = step_model().double(), negatives if pins else None
    expected = at_once(model, batches, {}, pinned)
    assert all("matching" in expected[0][label] for label in ("images", "regions", "clips"))
    check(in_chunks(model, batches, {}, pinned, num_chunks), expected, 2e-6)  # losses themselves are in float32


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionConfig(pack_texts=False),
        ExecutionConfig(only_masked_words=False, one_fusion_call=False),
        ExecutionConfig(share_image_keys=False, prune_last_layer=False, checkpoint_vision_blocks=1),
    ],
    ids=["padded", "every-slot", "nothing-shared"],
)
def test_every_execution_can_be_cut(step, execution):
    batches, negatives = step
    model = step_model()
    expected = at_once(model, batches, {}, negatives, execution)
    check(in_chunks(model, batches, {}, negatives, 3, execution), expected, 5e-5)


def test_clips_that_look_over_time_can_be_cut(step):
    batches, negatives = step
    model = step_model("attention")
    check(in_chunks(model, batches, {}, negatives, 2), at_once(model, batches, {}, negatives), 5e-5)


def test_groups_of_negatives_and_losses_left_out(step):
    batches = {"images": step[0]["images"], "regions": step[0]["regions"]}
    objectives = {
        "images": ObjectiveConfig(negative_group_size=3),
        "regions": ObjectiveConfig(matching=False, box_loss_on_whole_images=True, parity="reference"),
    }
    model = step_model()
    found = in_chunks(model, batches, objectives, None, 3)
    check(found, at_once(model, batches, objectives, None), 5e-5)
    assert "matching" not in found[0]["regions"]


def test_chunks_without_boxes_or_masked_tokens_count_nothing(step):
    """All boxes in the first rows, all masked tokens in the last; the reference's mean over none is not met."""
    region = step[0]["regions"]
    whole = torch.tensor([False, False, True, True, True, True, True])
    labels = region.masked_labels_BK.clone()
    labels[:4] = -100
    region = replace(region, is_whole_image_R=whole, masked_labels_BK=labels, num_masked=None)
    for parity in ("fixed", "reference"):
        objectives = {"regions": ObjectiveConfig(parity=parity)}
        model, pinned = step_model(), {"regions": step[1]["regions"]}
        expected = at_once(model, {"regions": region}, objectives, pinned)
        check(in_chunks(model, {"regions": region}, objectives, pinned, 3), expected, 5e-5)
        assert expected[0]["regions"]["box_l1"].isfinite()


def test_towers_drop_the_same_paths_and_units_both_times(step, monkeypatch):
    """Else the gradients would be those of other outputs. Chunks draw differently from each other."""
    batches, negatives = step
    model = step_model(dropout=0.3, attention_dropout=0.3).train()
    assert model.config.vision.drop_path > 0
    outputs = []
    encode = accumulation._Towers._encode

    def spy(self, number):
        found = encode(self, number)
        outputs.append((number, [each.patches_MPD.detach() for each in found[0] if each], found[1].table.states_XD))
        return found

    monkeypatch.setattr(accumulation._Towers, "_encode", spy)
    in_chunks(model, batches, {}, negatives, 2)
    assert [number for number, *_ in outputs] == [0, 1, 0, 1]
    for first, second in zip(outputs[:2], outputs[2:], strict=True):
        assert torch.equal(first[2], second[2])
        torch.testing.assert_close(first[1], second[1], rtol=0, atol=1e-5)  # with a graph other kernels may run
        assert second[2].requires_grad
        assert not first[2].requires_grad
    again = in_chunks(model, batches, {}, negatives, 2)
    other = Accumulation(2, [1, 2], 7, total_of)
    changed = accumulate_gradients(model, batches, {}, other, negatives=negatives)
    model.zero_grad()
    assert torch.equal(
        again[0]["images"]["masked_lm"], in_chunks(model, batches, {}, negatives, 2)[0]["images"]["masked_lm"]
    )
    assert not torch.equal(again[0]["images"]["masked_lm"], changed["images"]["masked_lm"])


def test_half_precision_reaches_every_weight(step):
    """Autocast keeps weights that it has cast, and must not carry them from passes without a graph into others."""
    batches, negatives = step
    model = step_model()
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16):
        losses = step_losses(model, batches, negatives=negatives)
    total_of(losses).backward()
    expected = gradients(model)
    how = plan(2, precision=lambda: torch.autocast("cpu", torch.bfloat16))
    accumulate_gradients(model, batches, {}, how, negatives=negatives)
    found = gradients(model)
    inner = sum(float((found[name] * grad).sum()) for name, grad in expected.items() if grad is not None)
    sizes = [sum(float(g.square().sum()) for g in each.values() if g is not None) ** 0.5 for each in (expected, found)]
    assert inner / (sizes[0] * sizes[1]) > 0.995
    assert {name for name, grad in found.items() if grad is None} == {n for n, grad in expected.items() if grad is None}


def test_more_chunks_than_rows_are_refused(step):
    with pytest.raises(ConfigError, match=r"stream clips: 3 rows .* 4 chunks"):
        in_chunks(step_model(), step[0], {}, step[1], 4)


@pytest.mark.parametrize(("count", "num_chunks"), [(7, 3), (4, 4), (3, 5), (1024, 8)])
def test_chunks_are_even_and_cover_every_row_once(count, num_chunks):
    chunks = [chunk_of(count, number, num_chunks) for number in range(num_chunks)]
    assert [row for chunk in chunks for row in chunk] == list(range(count))
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1
