"""Where a model runs and on how many threads, when nobody says."""

import os

import pytest
import torch

from x2vlm.errors import ConfigError
from x2vlm.inference.device import choose_device, limit_threads, threads_for, usable_cpus


def test_auto_takes_a_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="--device abacus"):
        choose_device("abacus")


@pytest.mark.parametrize(
    ("num_parameters", "cpus", "expected"),
    [
        (0, 8, 1),
        (1_000_000, 64, 1),
        (10_000_000, 64, 1),
        (10_000_001, 64, 2),
        (255_000_000, 8, 8),
        (255_000_000, 64, 26),
    ],
)
def test_threads_follow_the_size_of_the_model(num_parameters, cpus, expected):
    assert threads_for(num_parameters, cpus) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", None), ("100000 100000\n", 1), ("50000 100000", 1), ("900000000 100000", None), ("odd", None)],
)
def test_a_container_s_quota_counts(tmp_path, content, expected):
    (tmp_path / "cpu.max").write_text(content)
    affinity = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path / "cpu.max") == (expected or affinity)
    assert usable_cpus(tmp_path / "none") == affinity


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    before = torch.get_num_threads()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    try:
        torch.set_num_threads(2)
        with monkeypatch.context() as context:
            context.setenv(name, "2")
            assert limit_threads(1_000_000) == torch.get_num_threads() == 2
        assert limit_threads(1_000_000) == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
