"""The predictions that the tasks make with a real tiny model, on a page."""

import base64
import io
import re

from PIL import Image

from tests.support.models.tasks import context, grounding, load, make_sample, retrieval
from x2vlm.data.task_examples import Example
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM
from x2vlm.samples import Box
from x2vlm.tasks.attributes import evaluate_attributes
from x2vlm.tasks.config import AttributesConfig, GroundingConfig, RetrievalConfig, WinogroundConfig
from x2vlm.tasks.from_samples import grounding_examples, retrieval_examples
from x2vlm.tasks.pages import examples_page
from x2vlm.tasks.winoground import evaluate_winoground

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


def test_winoground(model: X2VLM) -> None:
    examples = [Example(f"w{n}", "test", (f"{n:x}", f"{n + 4:x}"), ("red dog", "dog red")) for n in range(4)]
    result = evaluate_winoground(TaskModel(model), WinogroundConfig(), context(TaskModel(model), examples))
    page = examples_page("winoground", result.predictions, examples, load)
    right = sum(result.predictions.column("group_right").to_pylist())
    shown = [f"{number} {name}" for number, name in ((right, "right"), (4 - right, "wrong")) if number]
    assert ", ".join(shown) in page
    assert page.count("data:image/jpeg;base64,") == 8


def test_attributes(model: X2VLM) -> None:
    labels = ["color:red", "color:blue"]
    examples = [
        Example(f"b{n}", "test", (f"{n:x}",), ("dog",), box=Box(2, 3, 20, 20), attributes=(n % 2, 1)) for n in range(4)
    ]
    inputs = context(TaskModel(model), examples, labels=labels)
    result = evaluate_attributes(TaskModel(model), AttributesConfig(), inputs)
    page = examples_page("attributes", result.predictions, examples, load, labels=labels)
    assert page.count("<dt>highest scores</dt>") == page.count('class="truth"') == 4
    assert page.count("<dt>present</dt><dd>color:red / color:blue</dd>") == 2
