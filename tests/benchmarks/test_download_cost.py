"""A photo costs no more CPU than with img2dataset alone. CPU seconds, medians of interleaved rounds, no wall time."""

import pytest

from tests.benchmarks.download import Comparison, describe, run

NUM_PHOTOS = 2000


@pytest.fixture(scope="module")
def comparisons() -> dict[str, Comparison]:
    found = {comparison.mode: comparison for comparison in run(NUM_PHOTOS, 3, ["original", "reencoded", "scaled"])}
    print("\n".join(map(describe, found.values())))
    return found


def ratio(pair: tuple[float, float]) -> float:
    ours, peers = pair
    return ours / peers


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most"), [("original", 1.05), ("reencoded", 1.05), ("scaled", 1 / 1.3)])
def test_a_photo_costs_at_most_so_much_of_what_img2dataset_takes(
    comparisons: dict[str, Comparison], mode: str, most: float
) -> None:
    assert ratio(comparisons[mode].whole) <= most, describe(comparisons[mode])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most"), [("original", 1.05), ("reencoded", 1.05), ("scaled", 1 / 1.3)])
def test_it_holds_without_the_start_up_too(comparisons: dict[str, Comparison], mode: str, most: float) -> None:
    assert ratio(comparisons[mode].marginal) <= most, describe(comparisons[mode])


@pytest.mark.slow
def test_it_holds_where_the_server_closes_every_connection() -> None:
    (found,) = run(NUM_PHOTOS, 3, ["original"], closes=True)
    assert ratio(found.marginal) <= 1.05, describe(found)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["original", "reencoded", "scaled"])
def test_ten_urls_cost_at_most_four_cpu_seconds(comparisons: dict[str, Comparison], mode: str) -> None:
    assert comparisons[mode].fixed[0] <= 4, describe(comparisons[mode])


@pytest.mark.slow
def test_bodies_do_not_pile_up_in_memory(comparisons: dict[str, Comparison]) -> None:
    found = comparisons["original"]
    many, few = (max(cost.max_rss_bytes for cost in costs) for costs in (found.ours, found.ours_few))
    assert many - few < 100e6  # all bodies together are 230 MB
