"""The page of examples: what is on it, that it is bounded, safe to open and the same every time."""

import base64
import io
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from x2vlm.data.task_examples import Example
from x2vlm.errors import InvalidSample
from x2vlm.inference.visuals import Visual
from x2vlm.samples import Box
from x2vlm.tasks.pages import examples_page
from x2vlm.tasks.pages.page import MAX_BYTES

Load = Callable[[str], Visual]
IMAGE = re.compile(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)")


def flat(name: str) -> Visual:
    """An image of one colour, which depends on the name."""
    return Visual(name, (Image.new("RGB", (640, 480), (len(name) * 7 % 256, 40, 90)),))


def questions(number: int, text: str = "what colour is it?") -> list[Example]:
    return [
        Example(f"q{i}", "val", (f"{i}.jpg",), (text,), ("red", "red", "blue"), box=Box(10, 20, 100, 50))
        for i in range(number)
    ]


def answered(examples: Sequence[Example], **columns: object) -> pa.Table:
    ids = [example.example_id for example in examples]
    return pa.table({"example_id": ids, "answer": ["red" for _ in ids], **columns})


def test_right_and_wrong_ones_are_counted_and_shown_with_question_and_answers() -> None:
    examples = questions(30)
    page = examples_page("vqa", answered(examples, right=[i % 3 > 0 for i in range(30)]), examples, flat)
    assert "right: 12 of 20" in page
    assert "wrong: 10 of 10" in page
    assert page.count("<figure>") == 22
    assert page.count("what colour is it?") == 22
    assert page.count("red (2), blue") == 22
    sizes = {Image.open(io.BytesIO(base64.b64decode(found))).size for found in IMAGE.findall(page)}
    assert sizes == {(320, 240)}


def test_the_same_rows_in_another_order_give_the_same_page() -> None:
    examples = questions(40)
    table = answered(examples, right=[i % 2 == 0 for i in range(40)])
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(40)))
    page = examples_page("vqa", table, examples, flat, per_verdict=3)
    assert examples_page("vqa", shuffled, examples[::-1], flat, per_verdict=3) == page
    shown = re.findall(r">(q\d+)<", page)
    assert len(shown) == 6
    assert shown != sorted(shown)


def test_boxes_are_drawn_where_they_are() -> None:
    examples = questions(2)
    boxes = {"box_xywh": [[1.0, 2.0, 30.0, 40.0]] * 2, "target_xywh": [[10.0, 20.0, 100.0, 50.0]] * 2}
    page = examples_page("grounding", answered(examples, iou=[0.5, 0.49], **boxes), examples, flat)
    assert 'viewBox="0 0 640 480"' in page
    found = re.findall(r'<rect x="1.0" y="2.0" width="30.0" height="40.0" fill="none" class="found"', page)
    truth = re.findall(r'<rect x="10.0" y="20.0" width="100.0" height="50.0" fill="none" class="truth"', page)
    assert len(found) == len(truth) == 2
    assert "right: 1 of 1" in page
    assert "wrong: 1 of 1" in page


def test_retrieval_shows_what_came_first() -> None:
    examples = [Example(f"e{i}", "test", (f"{i}.jpg",), (f"first of {i}", f"second of {i}")) for i in range(2)]
    table = pa.table(
        {
            "example_id": ["e0", "e1", "e0#1", "e1#0"],
            "retrieved": ["text", "text", "image", "image"],
            "top_candidate": ["e0#0", "e0#1", "e0", "e0"],
            "top_score": [1.0] * 4,
            "rank_of_right": [0, 3, 0, 1],
        }
    )
    page = examples_page("retrieval", table, examples, flat)
    assert "right: 2 of 2" in page
    assert "<dt>first</dt><dd>second of 0</dd>" in page
    assert "<dt>own captions</dt><dd>first of 1 / second of 1</dd>" in page
    assert "<dt>asked</dt><dd>first of 1</dd><dt>images</dt><dd>first, and the right one</dd>" in page
    assert len(IMAGE.findall(page)) == 5


def test_captions_stand_beside_their_references_and_are_parted_at_the_median() -> None:
    examples = [Example(f"c{i}", "val", ("a.jpg",), ("a red bus", "the bus")) for i in range(4)]
    table = pa.table(
        {"example_id": [f"c{i}" for i in range(4)], "caption": ["a bus"] * 4, "cider": [1.0, 2.0, 3.0, 4.0]}
    )
    page = examples_page("captioning", table, examples, flat)
    assert page.count("<dt>references</dt><dd>a red bus / the bus</dd><dt>caption</dt><dd>a bus</dd>") == 4
    assert "upper half: 2 of 2" in page


def test_clips_show_their_frames_and_pairs_both_images() -> None:
    def clip(name: str) -> Visual:
        return Visual(name, tuple(flat(name).frames * 8), is_clip=True)

    pair = [Example("p", "val", ("a.jpg", "b.jpg"), ("both are red",), ("True",))]
    assert len(IMAGE.findall(examples_page("classification", answered(pair), pair, flat))) == 2
    one = questions(1)
    assert len(IMAGE.findall(examples_page("classification", answered(one), one, clip))) == 5


def test_attributes_have_their_names_and_the_annotation_beside_the_score() -> None:
    one = Example("b", "test", ("a.jpg",), ("dog",), box=Box(1, 2, 3, 4), attributes=(1, 0, -1))
    table = pa.table({"example_id": ["b"], "scores": [[0.1, 0.3, 0.2]]})
    page = examples_page("attributes", table, [one], flat, labels=["color:red", "color:blue", "size:big"])
    expected = "color:blue 0.300 (absent) / size:big 0.200 (not annotated) / color:red 0.100 (present)"
    assert f"<dt>present</dt><dd>color:red</dd><dt>highest scores</dt><dd>{expected}</dd>" in page
    assert '<rect x="1.0" y="2.0" width="3.0" height="4.0" fill="none" class="truth"' in page
    assert "<dt>scores</dt><dd>0.1 / 0.3 / 0.2</dd>" in examples_page("attributes", table, [one], flat)


def test_a_pair_of_pairs_is_right_where_its_group_is() -> None:
    pair = [Example("w", "test", ("a.jpg", "b.jpg"), ("a dog on a mug", "a mug on a dog"))]
    table = pa.table({"example_id": ["w"], "text_right": [True], "image_right": [False], "group_right": [False]})
    page = examples_page("winoground", table, pair, flat)
    assert "wrong: 1 of 1" in page
    assert "<dt>captions</dt><dd>a dog on a mug / a mug on a dog</dd><dt>text_right</dt><dd>yes</dd>" in page


def test_markup_and_control_characters_in_texts_are_shown_as_text() -> None:
    examples = questions(1, "<script>alert(1)</script>\x1b[2J & \u202eend")
    page = examples_page("vqa<b>", answered(examples, note=["<img src=x>"]), examples, flat)
    assert "<script" not in page
    assert "<img src=x>" not in page
    assert "vqa<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_no_page_is_too_large_whatever_images_and_texts_are() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    examples = questions(200, "long " * 100_000)
    table = answered(examples, right=[i % 2 == 0 for i in range(200)])
    page = examples_page("vqa", table, examples, lambda name: Visual(name, (noise,)), per_verdict=100)
    assert 2_000_000 < len(page.encode()) <= MAX_BYTES
    assert re.search(r"\d+ more would make the page too large", page)


def test_an_image_that_cannot_be_read_is_named_in_its_place() -> None:
    def broken(name: str) -> Visual:
        raise InvalidSample("missing_media", "no such file")

    examples = questions(1)
    page = examples_page("vqa", answered(examples), examples, broken)
    assert "0.jpg cannot be read: missing_media" in page
    assert "unknown: 1 of 1" in page


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        (pa.table({"example_id": ["other"], "answer": ["x"]}), "unknown_example"),
        (pa.table({"example_id": ["q0#7"], "answer": ["x"]}), "unknown_example"),
        (pa.table({"answer": ["x"]}), "no_example_id"),
        (pa.table({"example_id": pa.array([], pa.string())}), "empty_split"),
    ],
)
def test_predictions_of_another_split_are_an_error(table: pa.Table, rule: str) -> None:
    with pytest.raises(InvalidSample) as caught:
        examples_page("vqa", table, questions(1), flat)
    assert caught.value.rule == rule
