"""The predictions that the tasks make with a real tiny model, on a page."""

import base64
import io
import re

from PIL import Image

from tests.support.models.tasks import grounding, load, make_sample, retrieval
from x2vlm.models.x2vlm import X2VLM
from x2vlm.tasks.config import GroundingConfig, RetrievalConfig
from x2vlm.tasks.from_samples import grounding_examples, retrieval_examples
from x2vlm.tasks.pages import examples_page

SAMPLES = [make_sample(index) for index in range(5)]


def test_retrieval(model: X2VLM) -> None:
    result = retrieval(model, SAMPLES)
    page = examples_page("retrieval", result.predictions, retrieval_examples(SAMPLES, RetrievalConfig()), load, 30)
    assert page.count("<figure>") == result.predictions.num_rows == 5 + 10
    right = sum(rank == 0 for rank in result.predictions.column("rank_of_right").to_pylist())
    assert f"{right} right, {15 - right} wrong" in page


def test_grounding(model: X2VLM) -> None:
    options = GroundingConfig(unambiguous=False)
    result = grounding(model, SAMPLES, unambiguous=False)
    page = examples_page("grounding", result.predictions, grounding_examples(SAMPLES, options), load, 30)
    assert page.count("<figure>") == 15
    assert page.count('class="found"') == page.count('class="truth"') == 15
    x, y, w, h = result.predictions.column("box_xywh").to_pylist()[0]
    assert f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="none" class="found"' in page
    (first, *_) = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (48, 32)
