"""Retrieval beyond one caption per photo: languages, groups, clips, ties, files on disk, and several processes."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.models.tasks import COLOURS, THINGS, clip_of, context, ids_by_hand, load, picture, small_task_model
from tests.support.naive_pixels import naive_pixels
from tests.support.training.processes import on_ranks
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.samples import Box
from x2vlm.tasks.config import GroundingConfig, RetrievalConfig
from x2vlm.tasks.grounding import evaluate_grounding
from x2vlm.tasks.retrieval import evaluate_retrieval, questions_of
from x2vlm.train.ranks import current_ranks


def example(number: int, texts: tuple[str, ...], **fields: Any) -> Example:
    return Example(fields.pop("example_id", str(number)), "test", (f"{number:x}",), texts, **fields)


def photos(count: int, captions: int = 2) -> list[Example]:
    return [
        example(
            number, tuple(f"{COLOURS[(number + turn) % 5]} {THINGS[(number + turn) % 3]}" for turn in range(captions))
        )
        for number in range(count)
    ]


@torch.no_grad()
def naive_logits(model: TaskModel, numbers: list[int], texts: list[str]) -> np.ndarray:
    base, table = model.base.eval(), np.zeros((len(numbers), len(texts)))
    for row, number in enumerate(numbers):
        vision = base.encode_image(naive_pixels(picture(number), 32)[None])
        for column, text in enumerate(texts):
            ids, mask = ids_by_hand(text)
            table[row, column] = float(base.match(base.fuse(base.encode_text(ids, mask), mask, vision))[0, 1])
    return table


def test_languages_are_retrievals_of_their_own(task_model: TaskModel) -> None:
    english = photos(4)
    german = [
        example(number, (f"{THINGS[number % 3]} white",), language="de", example_id=f"de{number}") for number in (1, 3)
    ]
    both = evaluate_retrieval(task_model, RetrievalConfig(), context(task_model, [*english, *german], 3))
    for language, examples in (("en", english), ("de", german)):
        alone = evaluate_retrieval(task_model, RetrievalConfig(), context(task_model, examples, 3))
        assert {name: both.metrics[f"{language}/{name}"] for name in alone.metrics} == pytest.approx(alone.metrics)
        assert "tr_r1" in alone.metrics
    expected = (both.metrics["en/mean_recall"] + both.metrics["de/mean_recall"]) / 2
    assert both.metrics["mean_recall"] == pytest.approx(expected)
    assert both.num_examples == 4 + 8 + 2 + 2


def test_captions_of_a_group_are_right_for_all_its_images() -> None:
    rows = [
        example(0, ("a", "b"), group="g"),
        example(1, ("c",)),
        example(2, ("d",), group="g"),
        example(1, ("e",), example_id="again"),  # the same photo once more
    ]
    questions = questions_of(rows, ["0", "1", "2"])
    assert questions.images.tolist() == [0, 1, 2]
    assert questions.caption_ids == ["0#0", "0#1", "1#0", "2#0", "again#0"]
    assert questions.texts_of_I == [[0, 1, 3], [2, 4], [0, 1, 3]]
    assert questions.images_of_T == [[0, 2], [0, 2], [1], [0, 2], [1]]


def test_ranks_of_six_recalls_by_hand(task_model: TaskModel) -> None:
    """Against a full table of matching logits, sorted in plain Python."""
    examples = photos(6, captions=1)
    result = evaluate_retrieval(task_model, RetrievalConfig(shortlist=100), context(task_model, examples, 4))
    logits = naive_logits(task_model, list(range(6)), [e.texts[0] for e in examples])
    for direction, table in (("tr", logits), ("ir", logits.T)):
        ranks = [sum(other > row[place] + 1e-6 for other in row) + 1 for place, row in enumerate(table)]
        assert result.metrics[f"{direction}_median_rank"] == float(np.median(ranks))
        assert result.metrics[f"{direction}_mean_rank"] == pytest.approx(np.mean(ranks))
        for k in (1, 5, 10):
            assert result.metrics[f"{direction}_r{k}"] == pytest.approx(100 * np.mean([rank <= k for rank in ranks]))
    six = [result.metrics[f"{direction}_r{k}"] for direction in ("tr", "ir") for k in (1, 5, 10)]
    assert result.metrics["mean_recall"] == pytest.approx(np.mean(six))


def test_ties_favour_the_first_or_as_in_the_reference_the_last(task_model: TaskModel) -> None:
    examples = [example(0, ("red dog",)), example(1, ("red dog",)), example(2, ("red dog",))]
    ours, theirs = (
        evaluate_retrieval(task_model, RetrievalConfig(ties=ties), context(task_model, examples))
        for ties in ("index", "reference")
    )
    ranks = [[row["rank_of_right"] for row in r.predictions.to_pylist()[:3]] for r in (ours, theirs)]
    assert ranks == [[0, 1, 2], [2, 1, 0]]
    assert (ours.measured_as["ties"], theirs.measured_as["ties"]) == ("index", "reference")


def test_clips_are_retrieved_by_the_mean_of_their_frames(task_model: TaskModel) -> None:
    examples = [example(number, (f"{COLOURS[number]} dog",), kind="video") for number in range(3)]
    ctx = context(task_model, examples, 2, load=clip_of)
    result = evaluate_retrieval(task_model, RetrievalConfig(), ctx)
    base = task_model.base
    with torch.no_grad():
        for row, found in zip(examples, result.predictions.to_pylist()[:3], strict=True):
            frames = torch.stack([naive_pixels(frame, 32) for frame in clip_of(row.media[0]).frames])
            tokens = base.encode_image(frames)
            mean = type(tokens)(tokens.summary_BD.mean(0, keepdim=True), tokens.patches_MPD.mean(0, keepdim=True))
            scores = []
            for other in examples:
                ids, mask = ids_by_hand(other.texts[0])
                scores.append(float(base.match(base.fuse(base.encode_text(ids, mask), mask, mean))[0, 1]))
            assert found["top_score"] == pytest.approx(max(scores), abs=1e-5)


def test_examples_that_do_not_fit_are_named(task_model: TaskModel) -> None:
    mixed = [example(0, ("red dog",)), example(1, ("cat",), kind="video")]
    for examples, message in (
        (mixed, "example 1: a video among images"),
        ([example(7, ())], "example 7: 1 media and 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_retrieval(task_model, RetrievalConfig(), context(task_model, examples))
    with pytest.raises(InvalidSample, match="duplicate_id"):
        evaluate_retrieval(task_model, RetrievalConfig(), context(task_model, [mixed[0], mixed[0]]))


def table_of(rank: int, world_size: int, spool_above_bytes: int) -> dict[str, Any]:
    model = small_task_model()
    ctx = context(model, photos(11, captions=3), 2, ranks=current_ranks())
    result = evaluate_retrieval(model, RetrievalConfig(shortlist=5, spool_above_bytes=spool_above_bytes), ctx)
    scores = torch.tensor(result.predictions["top_score"].to_pylist(), dtype=torch.float64)
    return {"scores": scores, "ranks": torch.tensor(result.predictions["rank_of_right"].to_pylist()), **result.metrics}


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_number_of_processes_gives_the_same_table(world_size: int) -> None:
    torch.set_num_threads(1)
    alone = table_of(0, 1, 2**30)
    for found in on_ranks(table_of, world_size, 0):  # and from files instead of memory
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            equal = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
            assert equal, name


def test_features_on_disk_leave_no_file(task_model: TaskModel, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept, spooled = (
        evaluate_retrieval(task_model, RetrievalConfig(spool_above_bytes=limit), context(task_model, photos(5)))
        for limit in (2**30, 0)
    )
    assert kept.predictions.equals(spooled.predictions)
    assert not list(tmp_path.iterdir())


def test_the_picture_of_a_name_is_drawn_from_it() -> None:
    assert np.array_equal(np.asarray(load("1f").frames[0]), np.asarray(picture(31)))


def test_grounding_gives_the_same_boxes_on_every_number_of_processes() -> None:
    torch.set_num_threads(1)
    alone = boxes_of(0, 1)
    for found in on_ranks(boxes_of, 2):
        assert torch.equal(found["boxes"], alone["boxes"])


def boxes_of(rank: int, world_size: int) -> dict[str, Any]:
    model = small_task_model()
    asked = [
        Example(str(n), "test", (f"{n % 3:x}",), (f"{COLOURS[n % 5]} dog",), box=Box(1, 1, 20, 20)) for n in range(9)
    ]
    result = evaluate_grounding(
        model, GroundingConfig(unambiguous=False), context(model, asked, 2, ranks=current_ranks())
    )
    return {"boxes": torch.tensor(result.predictions["box_xywh"].to_pylist(), dtype=torch.float64)}
