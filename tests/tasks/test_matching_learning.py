"""Fine-tuning of retrieval and grounding: losses, rows, and that a model learns a few examples by heart."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models.tasks import COLOURS, THINGS, context, load, picture, small_task_model
from tests.support.training.processes import on_ranks
from x2vlm.data.loading.config import AugmentConfig
from x2vlm.data.loading.transforms import ImagePlan
from x2vlm.data.randomness import Draws
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.inference.visuals import Visual
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.objectives.across_ranks import NegativeGroup
from x2vlm.objectives.losses import matching
from x2vlm.samples import Box
from x2vlm.tasks.config import GroundingConfig, RetrievalConfig
from x2vlm.tasks.grounding import GROUNDING, box_target, evaluate_grounding
from x2vlm.tasks.matching.learning import image_number, matching_logits
from x2vlm.tasks.retrieval import RETRIEVAL, evaluate_retrieval
from x2vlm.tasks.task import LossContext, Task
from x2vlm.tasks.training.loader import TaskLoader
from x2vlm.tasks.training.objective import LABEL, FineTuning
from x2vlm.tasks.training.rows import RowPreparation
from x2vlm.train.ranks import current_ranks

STILL = AugmentConfig(min_area=1.0, flip_prob=0.0, num_ops=0)


def captioned(count: int = 4, captions: int = 2) -> list[Example]:
    return [
        Example(str(n), "train", (f"{n:x}",), tuple(f"{COLOURS[n]} {THINGS[turn]}" for turn in range(captions)))
        for n in range(count)
    ]


def loader_of(task: Task, model: TaskModel, examples: list[Example], options: Any, **fields: Any) -> TaskLoader:
    assert task.training is not None
    settings = {"batch_size": 4, "seed": 1, "augment": STILL, **fields}
    return TaskLoader(examples, task.training, options, context(model, []).processor, load, **settings)


def losses_of(task: Task, model: TaskModel, batch: Any, options: Any, step: int = 0) -> dict[str, torch.Tensor]:
    assert task.training is not None
    generator = torch.Generator().manual_seed(step)
    return task.training.losses(model, batch, options, LossContext(generator, (), current_ranks(), step))


def learn(task: Task, model: TaskModel, loader: TaskLoader, options: Any, steps: int = 100) -> dict[str, float]:
    """The losses of the last step; without dropout, which a hundred steps do not make up for."""
    optimizer = torch.optim.AdamW(model.eval().parameters(), lr=3e-3)
    for step in range(steps):
        model.clamp_temperature()
        losses = losses_of(task, model, loader[step].batches[LABEL], options, step)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def test_a_pass_has_every_caption_once_with_the_number_of_its_image() -> None:
    examples, options = captioned(), RetrievalConfig()
    loader = loader_of(RETRIEVAL, small_task_model(), examples, options)
    assert loader.steps_per_epoch == 2
    batches = [loader[step].batches[LABEL] for step in range(2)]
    seen = [
        (key, tuple(row))
        for batch in batches
        for key, row in zip(batch.keys, batch.tensors["ids"].tolist(), strict=True)
    ]
    assert len(set(seen)) == 8
    number_of = {example.example_id: image_number(example) for example in examples}
    for batch in batches:
        assert batch.tensors["image_ids"].tolist() == [number_of[key] for key in batch.keys]
    assert len(set(number_of.values())) == 4


def test_examples_of_a_group_have_one_number() -> None:
    first, second, other = (
        Example(name, "train", (name,), ("a",), group=group) for name, group in (("a", "g"), ("b", "g"), ("g", ""))
    )
    assert image_number(first) == image_number(second) != image_number(other)
    assert image_number(other) < 2**53  # exact as a float


def test_retrieval_learns_a_few_photos_by_heart() -> None:
    model, examples, options = small_task_model(), captioned(5, captions=1), RetrievalConfig()
    loader = loader_of(RETRIEVAL, model, examples, options, batch_size=5)
    losses = learn(RETRIEVAL, model, loader, options)
    assert max(losses.values()) < 0.05
    nearest = evaluate_retrieval(model, RetrievalConfig(shortlist=1), context(model, examples))
    assert nearest.metrics["tr_r1"] == nearest.metrics["ir_r1"] == 100.0


def test_chunks_are_refused_for_a_loss_that_compares_rows() -> None:
    assert RETRIEVAL.training is not None
    with pytest.raises(ConfigError, match="compares the rows of a batch"):
        FineTuning(RETRIEVAL.training, RetrievalConfig(), accumulate=2)


def one_step(rank: int, world_size: int, negatives: str) -> dict[str, torch.Tensor]:
    model, options = small_task_model().eval(), RetrievalConfig(negatives=negatives)
    loader = loader_of(RETRIEVAL, model, captioned(), options, batch_size=8, rank=rank, world_size=world_size)
    losses = losses_of(RETRIEVAL, model, loader[0].batches[LABEL], options)
    losses["contrastive"].backward()
    projection = model.base.vision_proj.weight.grad
    assert projection is not None
    return {"gradient": projection.clone(), **{name: loss.detach() for name, loss in losses.items()}}


@pytest.mark.parametrize("negatives", ["process", "all"])
def test_the_contrastive_loss_compares_the_rows_of_all_processes(negatives: str) -> None:
    torch.set_num_threads(1)
    alone = one_step(0, 1, negatives)
    both = on_ranks(one_step, 2, negatives)
    for found in both:
        torch.testing.assert_close(found["contrastive"], alone["contrastive"], rtol=1e-5, atol=1e-6)
        assert found["matching"].isfinite()
    mean = torch.stack([found["gradient"] for found in both]).mean(0)
    torch.testing.assert_close(mean, alone["gradient"], rtol=1e-4, atol=1e-6)


def pair_logits(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """The matching logits of this process's rows, whose negatives are three and five rows on in the whole batch."""
    model = small_task_model().eval()
    loader = loader_of(
        RETRIEVAL, model, captioned(captions=3), RetrievalConfig(), batch_size=8, rank=rank, world_size=world_size
    )
    batch = loader[0].batches[LABEL]
    vision, mask_BL = model.base.encode_image(batch.pixels()), batch.tensors["mask"]
    text_BLD = model.base.encode_text(batch.tensors["ids"], mask_BL)
    gather = current_ranks().gather()
    own = rank * len(text_BLD) + torch.arange(len(text_BLD))
    group = None if gather is None else NegativeGroup(gather, 9)
    logits = matching_logits(model, vision, text_BLD, mask_BL, ((own + 3) % 8, (own + 5) % 8), group)
    head = model.base.match_head[3].weight
    loss = matching(logits)
    return {"logits": logits.detach().view(3, -1, 2), "gradient": torch.autograd.grad(loss, head)[0]}


def test_negatives_of_other_processes_are_paired_as_in_one_process() -> None:
    torch.set_num_threads(1)
    alone, both = pair_logits(0, 1), on_ranks(pair_logits, 2)
    joined = torch.cat([found["logits"] for found in both], dim=1)
    torch.testing.assert_close(joined, alone["logits"], rtol=1e-5, atol=1e-6)
    mean = torch.stack([found["gradient"] for found in both]).mean(0)
    torch.testing.assert_close(mean, alone["gradient"], rtol=1e-4, atol=1e-6)


def located(count: int = 4) -> list[Example]:
    boxes = [Box(0, 0, 12, 16), Box(20, 8, 16, 20), Box(4, 10, 30, 20), Box(30, 2, 16, 10)]
    return [Example(str(n), "train", (f"{n:x}",), (f"{COLOURS[n]} dog",), box=boxes[n]) for n in range(count)]


def test_grounding_learns_a_few_boxes_by_heart() -> None:
    model, examples, options = small_task_model(), located(), GroundingConfig()
    loader = loader_of(GROUNDING, model, examples, options)
    before = evaluate_grounding(model, options, context(model, examples)).metrics["mean_iou_fraction"]
    learn(GROUNDING, model, loader, options)
    after = evaluate_grounding(model, options, context(model, examples)).metrics["mean_iou_fraction"]
    assert after > max(0.5, before + 0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 20), st.integers(4, 17), st.integers(4, 11), st.integers(0, 10**6))
def test_the_box_goes_where_its_pixels_go(x: int, y: int, w: int, h: int, seed: int) -> None:
    """A white rectangle on black is where the target says, whatever the crop and the mirror."""
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[y : y + h, x : x + w] = 255
    visual = Visual("x", (_image(pixels),))
    preparation = RowPreparation(AugmentConfig(num_ops=0), 96, Draws(seed, "row"))
    example = Example("1", "train", ("x",), ("the dog",), box=Box(x, y, w, h))
    assert GROUNDING.training is not None
    row = GROUNDING.training.prepare(example, 0, [visual], preparation, GroundingConfig())
    bright = row.pixels[0].float().mean(0) > 127
    columns, lines = (bright.any(dim=axis).nonzero()[:, 0] for axis in (0, 1))
    cx, cy, width, height = (96 * value for value in row.values["box"])
    found = [columns.min(), lines.min(), columns.max() + 1, lines.max() + 1]
    expected = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
    assert found == pytest.approx(expected, abs=1.6)


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def test_a_text_with_a_side_is_never_mirrored_with_its_image() -> None:
    always = AugmentConfig(num_ops=0, flip_prob=1.0)
    assert GROUNDING.training is not None
    for text, flips in (("the left dog", False), ("dog on the right", False), ("the dog", True)):
        example = Example("1", "train", ("5",), (text,), box=Box(2, 2, 10, 10))
        row = GROUNDING.training.prepare(
            example, 0, [load("5")], RowPreparation(always, 32, Draws(1, "row")), GroundingConfig()
        )
        plain = GROUNDING.training.prepare(
            example, 0, [load("5")],
            RowPreparation(always.model_copy(update={"flip_prob": 0.0}), 32, Draws(1, "row")), GroundingConfig(),
        )  # fmt: skip
        assert torch.equal(row.pixels[0], plain.pixels[0].flip(2)) is flips
        assert (row.values["box"][0] == pytest.approx(1 - plain.values["box"][0])) is flips


def test_a_box_outside_its_image_is_replaced_by_another_example() -> None:
    outside = Example("out", "train", ("5",), ("dog",), box=Box(40, 2, 30, 10))
    loader = loader_of(GROUNDING, small_task_model(), [outside, *located()], GroundingConfig(), batch_size=5)
    data = loader[0]
    assert [(item.key, item.rule) for item in data.substitutes] == [("out", "no_usable_box")]
    with pytest.raises(InvalidSample, match="no_usable_box"):
        box_target(Box(60, 2, 4, 4), ImagePlan((0, 0, 48, 32), False), 32)


def test_the_pictures_have_the_size_that_boxes_are_for() -> None:
    assert picture(0).size == (48, 32)
