"""Collectives wait longer than the watchdog does: it is the watchdog that ends a hanging run, and says who hangs."""

import json
from datetime import timedelta

import pytest
import torch.distributed as dist

from pipelines.s5_pretrain import torchrun
from x2vlm.train import ranks
from x2vlm.train.config import START_ALLOWANCE, TrainRuntime
from x2vlm.train.ranks import Ranks, negative_groups


@pytest.mark.parametrize("stall_seconds", [1.0, 300.0, 360.0, 3600.0])
def test_collectives_outlast_the_first_step(stall_seconds):
    seconds = TrainRuntime(stall_seconds=stall_seconds).collective_seconds
    assert seconds > START_ALLOWANCE * stall_seconds + 30
    assert seconds >= 1800


def test_without_a_limit_they_wait_for_days():
    assert TrainRuntime(stall_seconds=None).collective_seconds >= 7 * 24 * 3600


class Begun(Exception):
    pass


def test_torchrun_and_groups_of_negatives_get_that_limit(tmp_path, monkeypatch):
    given = []

    def begin(*_, timeout, **__):
        given.append(timeout)
        raise Begun

    job = {
        "config": {},
        "shards": [],
        "vocabulary": "",
        "state_uri": "",
        "facts": {},
        "runtime": {"stall_seconds": 900},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(ranks.dist, "new_group", begin)
    with pytest.raises(Begun):
        torchrun.main([str(tmp_path / "job.json")])
    limit = timedelta(seconds=TrainRuntime(stall_seconds=900).collective_seconds)
    with pytest.raises(Begun):
        negative_groups(Ranks(0, 2), {"image": 8}, {"image": 4}, 40, limit)
    assert given == [timedelta(seconds=4560)] * 2
