"""Held-out shards: never trained on, measured the same every time, without a trace in the training."""

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.runs import CONFIG, metrics_of
from x2vlm.data.loading.loader import StepLoader
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.weights import own_tensors
from x2vlm.models.x2vlm import build_model
from x2vlm.objectives.step import pretrain_losses
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.ranks import Ranks
from x2vlm.train.validation.held_out import split_shards
from x2vlm.train.validation.zero_shot import overlap, recalls


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), num_images=40, num_videos=12, num_shards=4)


def _fit(folder, shards, **runtime):
    trained, held_out = split_shards(shards, 0.25)
    torch.manual_seed(0)
    model = build_model(MODEL)
    config = CONFIG.model_copy(update={"steps": 4})
    loader, other = (StepLoader(files, DATA, TOKENIZER, 32, 16) for files in (trained, held_out))
    store = CheckpointStore(f"{folder}/checkpoints")
    metrics = f"{folder}/metrics.jsonl"
    fit(model, loader, config, Ranks(), store, metrics, held_out=other, runtime=TrainRuntime(**runtime))
    return model, metrics_of(folder), loader, other


def test_held_out_shards_are_never_trained_on(shards):
    trained, held_out = split_shards(shards, 0.25)
    assert (len(trained), len(held_out)) == (3, 1)
    assert [*trained, *held_out] == shards
    assert split_shards(shards, 0.0) == (shards, [])
    assert len(split_shards(shards, 0.01)[1]) == 1
    with pytest.raises(ConfigError, match="holds out 4 of 4 shards"):
        split_shards(shards, 0.8)
    seen, kept = (
        {key for step in range(30) for _, key in StepLoader(files, DATA, TOKENIZER, 32, 16).consumed(step)}
        for files in (trained, held_out)
    )
    assert seen
    assert kept
    assert not seen & kept


def test_validation_leaves_no_trace_in_the_training(shards, tmp_path):
    model, with_it, _, _ = _fit(tmp_path / "with", shards, validate_every=2, validation_batches=2)
    plain, without, _, _ = _fit(tmp_path / "without", shards)
    assert all(torch.equal(value, own_tensors(plain)[name]) for name, value in own_tensors(model).items())
    measured = [{name for name in line if name.startswith("valid/")} for line in with_it]
    assert [bool(names) for names in measured] == [False, True, False, True]
    assert {"valid/image/contrastive", "valid/region/box_l1", "valid/video/masked_lm"} <= measured[1]
    assert {"valid/image/image_of_text@1", "valid/image/text_of_image@10"} <= measured[1]
    assert {"valid/video/video_of_text@1", "valid/region/grounding@0.5", "valid/region/grounding_iou"} <= measured[1]
    for line, names in zip(with_it, measured, strict=True):
        for name in names:
            del line[name]
    assert with_it == without


def test_losses_are_means_over_held_out_batches_without_dropout(shards, tmp_path):
    """The same by hand; masked tokens draw nothing at random, so that is exact. Twice gives the same numbers twice."""
    model, lines, _, held_out = _fit(tmp_path, shards, validate_every=4, validation_batches=3)
    model.eval()
    with torch.no_grad():
        losses = [pretrain_losses(model, held_out[number].batches["region"]) for number in range(3)]
    for part in ("masked_lm", "contrastive", "box_l1"):
        expected = sum(found[part].item() for found in losses) / 3
        assert lines[-1][f"valid/region/{part}"] == pytest.approx(expected, rel=1e-6), part
    with torch.no_grad():
        ious = torch.cat([_ious(model, held_out[number].batches["region"]) for number in range(3)])
    assert 0 < ious.mean() < 1
    assert lines[-1]["valid/region/grounding_iou"] == pytest.approx(ious.mean().item(), rel=1e-5)
    assert lines[-1]["valid/region/grounding@0.5"] == pytest.approx(100 * (ious >= 0.5).double().mean().item())


def _ious(model, batch):
    """Of each region that is not the whole image: encoded alone, boxes compared by torchvision."""
    found = []
    for row in (~batch.is_whole_image_R).nonzero()[:, 0].tolist():
        vision = model.encode_image(batch.float_pixels()[batch.image_of_R[row : row + 1]])
        ids, mask = batch.text_ids_BL[row : row + 1], batch.text_mask_BL[row : row + 1]
        predicted = model.locate(model.fuse(model.encode_text(ids, mask), mask, vision))
        corners = [box_convert(box, "cxcywh", "xyxy") for box in (predicted, batch.box_cxcywh_R4[row : row + 1])]
        found.append(box_iou(*corners)[0])
    return torch.cat(found)


def test_overlap_of_boxes_by_hand():
    first = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.0, 0.0]])
    second = torch.tensor([[0.6, 0.5, 0.2, 0.2], [0.9, 0.9, 0.2, 0.2], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(overlap(first, second), torch.tensor([1 / 3, 0.0, 0.0]))


def test_recall_counts_ties_against_the_model_and_knows_several_right_answers():
    similarity = torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.5, 0.1], [0.2, 0.8, 0.1]])
    assert recalls(similarity, torch.eye(3, dtype=torch.bool)) == {1: pytest.approx(100 / 3), 5: 100.0, 10: 100.0}
    same = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=torch.bool)
    assert recalls(similarity, same)[1] == pytest.approx(200 / 3)
    flat = torch.zeros(20, 20)
    assert recalls(flat, torch.eye(20, dtype=torch.bool)) == {1: 0.0, 5: 0.0, 10: 0.0}
