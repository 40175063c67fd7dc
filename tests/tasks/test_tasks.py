"""Retrieval and grounding with a real tiny model, against naive loops over every pair."""

import copy

import numpy as np
import pytest
import torch

from tests.support.models.tasks import grounding, make_sample, naive_tables, retrieval
from x2vlm.errors import InvalidSample
from x2vlm.models.x2vlm import X2VLM
from x2vlm.samples import Box
from x2vlm.tasks.scoring import box_iou
from x2vlm.tasks.task import data_digest


def test_retrieval_agrees_with_scoring_every_pair(model: X2VLM) -> None:
    samples = [make_sample(index) for index in range(4)]
    result = retrieval(model, samples, shortlist=3)
    cosine, logits = naive_tables(model, samples)
    expected_hits = []
    for i in range(4):
        shortlist = np.argsort(-cosine[i], kind="stable")[:3]
        scores = np.full(8, -100.0)
        scores[shortlist] = logits[i, shortlist]
        expected_hits.append(int(np.argmax(scores)) // 2 == i)
    assert result.metrics["tr_r1"] == pytest.approx(100 * np.mean(expected_hits))
    rows = result.predictions.to_pylist()
    assert [row["rank_of_right"] == 0 for row in rows if row["retrieved"] == "text"] == expected_hits
    assert len(rows) == 4 + 8


def test_retrieval_does_not_depend_on_batch_size(model: X2VLM) -> None:
    samples = [make_sample(index) for index in range(5)]
    one, many = (retrieval(model, samples, size) for size in (1, 64))
    assert one.metrics == many.metrics
    assert one.data_digest == many.data_digest


def test_grounding_scales_boxes_back_and_skips_ambiguous_texts(model: X2VLM) -> None:
    samples = [make_sample(index) for index in range(3)]
    result = grounding(model, samples)
    rows = result.predictions.to_pylist()
    assert [row["example_id"].split("#")[1] for row in rows] == ["0-a", "1-a", "2-a"]
    for row in rows:
        x, y, w, h = row["box_xywh"]
        assert min(x, y, w, h) >= 0
        assert x + w <= 48 + 1e-6
        assert y + h <= 32 + 1e-6
        assert row["iou"] == pytest.approx(box_iou(Box(x, y, w, h), Box(*row["target_xywh"])))
    ambiguous = grounding(model, samples, unambiguous=False)
    assert ambiguous.num_examples == 9
    assert ambiguous.data_digest != result.data_digest


def test_nothing_to_evaluate_is_an_error(model: X2VLM) -> None:
    with pytest.raises(InvalidSample, match="empty_split"):
        retrieval(model, [])
    with pytest.raises(InvalidSample, match="empty_split"):
        grounding(model, [])


def test_an_example_asked_twice_is_an_error() -> None:
    with pytest.raises(InvalidSample, match="duplicate_id"):
        data_digest(["a", "b", "a"])


def test_grounding_as_released_is_told_from_ours_by_its_result(model: X2VLM) -> None:
    """Boxes that pass the border stay as they are, the overlap counts inclusive pixels, and the result names both."""
    model = copy.deepcopy(model)
    with torch.no_grad():  # boxes of 0.8 of the sides around (0.2, 0.92): they pass the border on two sides
        last = model.box_head[-1]
        last.weight.zero_()
        last.bias.copy_(torch.logit(torch.tensor([0.2, 0.92, 0.8, 0.8])))
    samples = [make_sample(index) for index in range(3)]
    ours = grounding(model, samples)
    theirs = grounding(model, samples, unambiguous=False, iou="inclusive", clip_boxes=False)
    assert ours.measured_as == {"texts": "unambiguous", "iou": "plain", "boxes": "clipped"}
    assert theirs.measured_as == {"texts": "all", "iou": "inclusive", "boxes": "unclipped"}
    for result, box in ((ours, (0.0, 16.64, 28.8, 15.36)), (theirs, (-9.6, 16.64, 38.4, 25.6))):
        for row in result.predictions.to_pylist():
            assert row["box_xywh"] == pytest.approx(box, abs=1e-4)
    box, rows = Box(-9.6, 16.64, 38.4, 25.6), theirs.predictions.to_pylist()[:3]
    expected = [box_iou(box, concept.box, "inclusive") for concept in samples[0].concepts]
    assert [row["iou"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert expected[0] > 0
    # Boxes that share a third of a pixel do not meet when the last pixel counts as inside.
    assert expected[2] == 0 < box_iou(box, samples[0].concepts[2].box)
