"""Published numbers: read as data, found by benchmark, split and metric, each with its source."""

from pathlib import Path

import pytest

from x2vlm.config import parse_config, read_yaml
from x2vlm.data.task_cards import load_task_card
from x2vlm.errors import ConfigError
from x2vlm.tasks.published import Benchmark, benchmark, benchmark_of, benchmarks, published
from x2vlm.tasks.published.numbers import FILE, SOURCES


def test_a_number_comes_with_model_and_source() -> None:
    found = published("coco_retrieval", "test", "tr_r1")
    assert {(one.model, one.value, one.source) for one in found} >= {
        ("X2-VLM base 4M", 80.5, "recalled, unverified"),
        ("X2-VLM large 1B", 84.4, "leaderboard pages"),
        ("X-VLM 16M", 81.2, "X-VLM's README"),
    }
    assert {one.metric for one in found} == {"tr_r1"}
    assert [one.value for one in published("nlvr2", "test") if one.model == "X2-VLM large 1B"] == [89.4]
    assert {one.split for one in published("refcoco_plus")} == {"val", "testA", "testB"}


def test_nothing_is_known_of_some_and_an_unknown_benchmark_is_an_error() -> None:
    assert published("winoground") == ()
    assert published("nlvr2", "test", "consistency") == ()
    with pytest.raises(ValueError, match="did you mean `nlvr2`"):
        published("nlvr")


def test_every_number_is_a_percentage_with_an_origin_and_recalls_grow_with_k() -> None:
    for name in benchmarks():
        for one in published(name):
            top = 150 if one.metric == "cider" else 100
            assert 0 < one.value < top
            assert one.origin in SOURCES
    for name in ("coco_retrieval", "msrvtt_retrieval"):
        for row in benchmark(name).numbers:
            recalls = [row.metrics[key] for key in ("ir_r1", "ir_r5", "ir_r10")]
            assert recalls == sorted(recalls)


def test_a_split_is_whole_at_its_published_size_only() -> None:
    nlvr2 = benchmark("nlvr2")
    assert nlvr2.is_whole("test", 6967)
    assert not nlvr2.is_whole("test", 6966)
    assert not nlvr2.is_whole("val", 6967)
    assert not nlvr2.is_whole("train", 86373)
    coco = benchmark("coco_retrieval")
    assert coco.is_whole("test", 30000)
    assert coco.is_whole("test", 30010)
    assert not coco.is_whole("test", 6000)
    assert benchmark("ovad").is_whole("test", 14297)
    assert not benchmark("ovad").is_whole("test", 14000)


@pytest.mark.parametrize("name", benchmarks())
def test_splits_are_those_of_the_card(name: str, project_root: Path) -> None:
    """Named alike, for the same task, and as large: in examples, or in examples and texts where both are asked for."""
    one, card = benchmark(name), load_task_card(project_root / f"datasets/downstream/{name}.yaml")
    assert one.task == card.task
    for split, sizes in one.sizes.items():
        stated = card.splits[split]
        if stated.examples is not None:
            assert stated.examples in sizes
        if stated.texts is not None and one.task == "retrieval":
            assert stated.examples is not None
            assert stated.examples + stated.texts in sizes


def test_a_card_is_of_a_benchmark_for_its_own_task_only() -> None:
    assert benchmark_of("downstream/nlvr2", "classification") == "nlvr2"
    assert benchmark_of("downstream/nlvr2", "retrieval") is None
    assert benchmark_of("world/nlvr2", "classification") is None
    assert benchmark_of("", "classification") is None


def test_the_file_lies_beside_the_code_and_its_mistakes_are_found() -> None:
    assert set(read_yaml(FILE)) == set(benchmarks())
    assert FILE.parent == Path(__import__("x2vlm.tasks.published", fromlist=["x"]).__file__).parent
    row = {"split": "test", "model": "mine", "origin": "S", "metrics": {"accuracy": 1.0}}
    values = {"title": "T", "task": "vqa", "sizes": {"val": [3]}, "numbers": [row]}
    with pytest.raises(ConfigError, match="numbers of split test"):
        parse_config(Benchmark, values, "here")
    with pytest.raises(ConfigError, match="origin"):
        parse_config(Benchmark, {**values, "numbers": [{**row, "origin": "Q"}]}, "here")
