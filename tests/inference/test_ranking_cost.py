"""What ranking costs: one projection per image of the shortlist, and tokens of the shortlist alone in memory."""

import numpy as np
import pytest
from PIL import Image

from tests.support.models.folders import PHOTOS, small_pretrained
from x2vlm import inference
from x2vlm.inference import ranking
from x2vlm.inference.api import Pretrained


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Pretrained:
    return small_pretrained("bert", tmp_path_factory.mktemp("model"))


@pytest.fixture
def projected(bert):
    """Images whose keys the first fusion layer has projected, call by call."""
    rows: list[int] = []
    key = bert.model.fusion.layers[0].cross_attention.key
    handle = key.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0]) * (inputs[0].shape[1] > 1)))
    yield rows
    handle.remove()


def test_ranking_projects_each_shortlisted_image_once(bert, projected):
    photos = [Image.fromarray(image) for image in np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3), np.uint8)]
    for count in (10, 40):
        projected.clear()
        found = inference.rank_images(bert, "a dog", photos[:count], shortlist=9, batch_size=4)
        assert sum(projected) == 9
        assert max(projected) <= 4
        assert sum(item.match_logit is not None for item in found) == 9
    projected.clear()
    inference.rank_texts(bert, photos[0], [f"a dog {number}" for number in range(20)], batch_size=3)
    assert sum(projected) == 1
    projected.clear()
    inference.ground(bert, photos[0], ["a dog"] * 7, batch_size=2)
    assert sum(projected) == 1


def test_ranking_keeps_the_tokens_of_the_shortlist_only(bert, monkeypatch):
    """Ties go to the earlier image, and the tokens in memory do not grow with the number of images."""
    kept: list[int] = []
    add = ranking._Best.add
    monkeypatch.setattr(
        ranking._Best, "add", lambda self, *of: (add(self, *of), kept.append(len(self.vision.patches_MPD)))[0]
    )
    same = [PHOTOS[0], PHOTOS[1]] * 6
    # Equal batches: torch 2.11 gives equal images at other places of a batch features that differ in the last bit.
    found = inference.rank_images(bert, "a dog", same, shortlist=3, batch_size=2)
    assert kept == [2, 3, 3, 3, 3, 3]
    best = {item.index % 2 for item in found if item.match_logit is not None}
    assert len(best) == 1
    assert sorted(item.index for item in found[:3]) == [best.copy().pop() + 2 * number for number in range(3)]
