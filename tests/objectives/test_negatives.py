"""Groups of negatives: who may be drawn, and that the number of ranks does not matter."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from tests.support.training import rank_worker
from tests.support.training.steps import mixed_step, step_model
from x2vlm.errors import ConfigError
from x2vlm.objectives.across_ranks import Gather, NegativeGroup
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.negatives import draw_negatives, negative_weights
from x2vlm.objectives.step import step_losses

TEMPERATURE = torch.tensor(0.3)


def features(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    image, text = normalize(torch.randn(2, rows, 6), dim=-1)
    return image, text, torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 7, 8, 9, 9, 10])[:rows]


def test_negatives_stay_in_their_group_and_follow_its_weights():
    image, text, ids = features(12)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(2, 12, 12)
    rows, num_draws = torch.arange(12), 3000
    for _ in range(num_draws):
        of_text, of_image, has = draw_negatives(image, text, TEMPERATURE, ids, generator, group_size=4)
        assert has.all()
        counts[0, rows, of_text] += 1
        counts[1, rows, of_image] += 1
    expected = torch.zeros(2, 12, 12)
    for group in range(3):
        own = slice(4 * group, 4 * group + 4)
        same = ids[own, None] == ids[None, own]
        for number, (asking, answering) in enumerate(((text, image), (image, text))):
            weights = negative_weights(asking[own] @ answering[own].T / TEMPERATURE, same)
            expected[number, own, own] = weights / weights.sum(dim=1, keepdim=True)
    # 5 standard deviations of a share over 3,000 draws are at most 0.046.
    assert_close(counts / num_draws, expected, atol=0.046, rtol=0)
    assert (counts[expected == 0] == 0).all()


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_negatives_do_not_depend_on_the_number_of_ranks(size, num_ranks):
    """Ranks played one after the other, with equal generators, draw what one process draws for the whole batch."""
    image, text, ids = features(16)
    whole = draw_negatives(image, text, TEMPERATURE, ids, torch.Generator().manual_seed(5), group_size=size)
    num_rows = 16 // num_ranks
    for rank in range(num_ranks):
        own = slice(rank * num_rows, (rank + 1) * num_rows)
        first, gather = own.start // size * size, None
        if size > num_rows:
            shared = iter((image[first : first + size], text[first : first + size], ids[first : first + size]))
            gather = Gather((own.start - first) // num_rows, size // num_rows, lambda _, shared=shared: next(shared))
        *drawn, has = draw_negatives(
            image[own], text[own], TEMPERATURE, ids[own], torch.Generator().manual_seed(5), gather,
            group_size=size, all_rows=(16, own.start),
        )  # fmt: skip
        # Numbers count from the first row of the rank, or of the group of ranks.
        offset = first if gather is not None else own.start
        for found, expected in zip(drawn, whole, strict=False):
            assert torch.equal((found + offset)[has], expected[own][has])
        assert torch.equal(has, whole[2][own])


def test_a_step_draws_within_groups():
    """With groups of the two rows of one image there is no negative at all; with the whole batch there is."""
    model, (batches, _) = step_model(), mixed_step()
    images = replace(batches["images"], image_ids_B=torch.tensor([1, 1, 2, 2, 3, 3]))
    for size, has_loss in ((2, False), (3, True), (6, True), (None, True)):
        config = ObjectiveConfig(negative_group_size=size)
        losses = step_losses(model, {"images": images}, {"images": config})
        assert (losses["images"]["matching"].item() > 0) == has_loss, size


@pytest.mark.parametrize(
    ("size", "ranks", "message"),
    [(4, None, "does not divide the 6 rows"), (12, None, "does not divide"), (6, 2, "12 rows in a group of ranks")],
)
def test_groups_that_do_not_fit_are_refused(size, ranks, message):
    batch = mixed_step()[0]["images"]
    group = None if ranks is None else {"images": NegativeGroup(Gather(0, ranks, lambda local: local))}
    config = ObjectiveConfig(negative_group_size=size)
    with pytest.raises(ConfigError, match=message):
        step_losses(step_model(), {"images": batch}, {"images": config}, negative_groups=group)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["image", "region"])
def test_two_processes_are_one_with_the_whole_batch(kind, size):
    """Drawn negatives, the matching loss and its gradients: groups within a rank (2 rows) and across both (4)."""
    whole = rank_worker.grouped_matching_of_one(kind, size)
    for results in rank_worker.run_ranks(rank_worker.grouped_matching, 2, kind, size):
        for name, value in whole.items():
            assert_close(results[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["images", "regions"])
def test_rows_of_one_image_are_negatives_where_the_reference_has_them(kind):
    """All rows show one image: no negative by default; with the option each row has one, and never itself."""
    model, (batches, _) = step_model(), mixed_step()
    batch = replace(batches[kind], image_ids_B=torch.full((batches[kind].num_rows,), 4))
    losses = {
        allowed: step_losses(model, {kind: batch}, {kind: ObjectiveConfig(same_image_negatives=allowed)})[kind]
        for allowed in (False, True)
    }
    assert losses[False]["matching"].item() == 0
    assert losses[True]["matching"].item() > 0
    apart = replace(batch, image_ids_B=torch.arange(batch.num_rows))
    torch.manual_seed(2)
    with_option = step_losses(model, {kind: batch}, {kind: ObjectiveConfig(same_image_negatives=True)})[kind]
    torch.manual_seed(2)
    assert_close(step_losses(model, {kind: apart})[kind]["matching"], with_option["matching"])
    image, text, _ = features(batch.num_rows)
    for draw in range(200):
        generator = torch.Generator().manual_seed(draw)
        of_text, of_image, has = draw_negatives(image, text, TEMPERATURE, None, generator)
        rows = torch.arange(batch.num_rows)
        assert has.all()
        assert not ((of_text == rows) | (of_image == rows)).any()


def test_a_second_caption_of_an_image_is_right_or_wrong_as_the_option_says():
    """Targets split over rows of one image, or each row its own alone; regions have the latter in any case."""
    model, (batches, _) = step_model(), mixed_step()
    shared = {
        name: replace(batches[name], image_ids_B=torch.arange(batches[name].num_rows) // 2)
        for name in ("images", "regions")
    }
    apart = {name: replace(batch, image_ids_B=torch.arange(batch.num_rows)) for name, batch in shared.items()}

    def losses(batches, targets):
        config = {name: ObjectiveConfig(contrastive_targets=targets) for name in batches}
        return {name: found["contrastive"] for name, found in step_losses(model, batches, config).items()}

    split, own, alone = losses(shared, "image"), losses(shared, "row"), losses(apart, "image")
    assert_close(own["images"], alone["images"])
    assert abs(split["images"].item() - own["images"].item()) > 1e-3
    assert_close(split["regions"], own["regions"])
