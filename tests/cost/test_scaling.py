"""The scaling model against the study's tables, typed in here: all-reduce times, bytes, and efficiencies in percent."""

import pytest

from tests.support.models.sizes import BASE, LARGE
from x2vlm.cost.model_size import num_parameters
from x2vlm.cost.scaling import NETWORKS, contrastive_bytes, gradient_bytes, scaled_step

P = {"base": num_parameters(BASE), "large": num_parameters(LARGE)}
ROWS = {"base": 128, "large": 64}


@pytest.mark.parametrize(
    ("size", "network", "milliseconds"),
    [
        ("base", "h100_8x400g", 10.5),
        ("base", "a100_8x200g", 18.9),
        ("base", "a100_1x100g", 186),
        ("large", "h100_8x400g", 24.5),
        ("large", "a100_8x200g", 44),
        ("large", "a100_1x100g", 433),
    ],
)
def test_gradients_of_eight_machines_take_what_the_study_says(size: str, network: str, milliseconds: float) -> None:
    step = scaled_step(1.0, 64, P[size], NETWORKS[network], ROWS[size])
    assert step.gradients * 1e3 == pytest.approx(milliseconds, rel=0.01)


# Percent at 8, 16, 32, 64 GPUs, each: float32 gradients / bf16 gradients / no overlap.
TABLE = [
    ("base", "a100_8x200g", 0.167, [(99, 99, 95), (98, 98, 91), (97, 98, 89), (97, 97, 87)]),
    ("base", "h100_8x400g", 0.059, [(99, 99, 91), (97, 98, 86), (97, 97, 84), (96, 96, 82)]),
    ("base", "h100_8x200g", 0.059, [(99, 99, 91), (97, 97, 82), (96, 96, 78), (94, 95, 75)]),
    ("base", "h100_1x100g", 0.059, [(99, 99, 91), (41, 67, 34), (29, 49, 25), (24, 40, 22)]),
    ("large", "a100_8x200g", 0.252, [(99, 99, 92), (98, 98, 87), (97, 98, 85), (97, 97, 83)]),
    ("large", "h100_8x400g", 0.088, [(99, 99, 88), (98, 98, 81), (97, 98, 78), (97, 97, 77)]),
    ("large", "h100_1x100g", 0.088, [(99, 99, 88), (30, 52, 26), (21, 38, 19), (18, 33, 17)]),
]


@pytest.mark.parametrize(("size", "network", "seconds", "expected"), TABLE)
def test_efficiency_is_the_studys_within_two_points(
    size: str, network: str, seconds: float, expected: list[tuple[int, int, int]]
) -> None:
    for world_size, row in zip((8, 16, 32, 64), expected, strict=True):
        ways = [(4, True), (2, True), (4, False)]
        found = [
            100
            * scaled_step(
                seconds, world_size, P[size], NETWORKS[network], ROWS[size],
                gradient_bytes_per_number=width, overlaps=overlaps,
            ).efficiency
            for width, overlaps in ways
        ]  # fmt: skip
        assert found == pytest.approx(row, abs=2.0), world_size


def test_bytes_are_those_of_the_study() -> None:
    assert gradient_bytes(P["base"], 64) / 1e9 == pytest.approx(2.0, abs=0.05)
    assert gradient_bytes(P["large"], 64, 2) / 1e9 == pytest.approx(2.4, abs=0.07)
    assert gradient_bytes(P["base"], 1) == 0
    # The study: 16.5 MB of bf16 features, and the same again on the way back. Ours: float32, one way.
    assert contrastive_bytes(128, 64) / 1e6 == pytest.approx(2 * 16.5, abs=0.1)
    assert contrastive_bytes(128, 1) == 0


def test_one_gpu_waits_for_nobody_and_odd_numbers_are_refused() -> None:
    assert scaled_step(0.2, 1, P["base"], NETWORKS["h100_8x400g"], 128).efficiency == 1.0
    with pytest.raises(ValueError, match="12 GPUs do not fill machines of 8"):
        scaled_step(0.2, 12, P["base"], NETWORKS["h100_8x400g"], 128)
