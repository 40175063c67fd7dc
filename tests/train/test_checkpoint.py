"""Checkpoints: whole or not there, newest valid one wins, old ones go."""

import json
import logging

import fsspec
import pytest
import torch

from x2vlm.train.checkpoint import COMMITTED, Checkpoint, CheckpointStore


def _checkpoint(step):
    weights = {"layer.weight": torch.full((3, 2), float(step)), "scale": torch.tensor(0.5)}
    return Checkpoint(step, weights, {"layer.weight/exp_avg": torch.ones(3, 2) * step}, {"shards_root": "abc"})


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "local":
        yield CheckpointStore(str(tmp_path / "checkpoints"), keep=2)
        return
    yield CheckpointStore(f"memory://{tmp_path.name}/checkpoints", keep=2)
    fsspec.filesystem("memory").rm("/" + tmp_path.name, recursive=True)


def _flip_byte(store, path):
    data = bytearray(store.fs.cat_file(path))
    data[len(data) // 2] ^= 1
    store.fs.pipe_file(path, bytes(data))


def test_what_was_saved_comes_back(store):
    assert store.load_newest() is None
    store.save(_checkpoint(10))
    found = store.load_newest()
    assert (found.step, found.facts) == (10, {"shards_root": "abc"})
    assert torch.equal(found.model["layer.weight"], _checkpoint(10).model["layer.weight"])
    assert torch.equal(found.optimizer["layer.weight/exp_avg"], torch.ones(3, 2) * 10)


def test_the_newest_wins_and_old_ones_go(store):
    for step in (10, 20, 30):
        store.save(_checkpoint(step))
    assert store.load_newest().step == 30
    assert store.steps() == [20, 30]


def test_every_kind_of_damage_falls_back_to_the_one_before(store, caplog):
    files = ("model.safetensors", "optimizer.safetensors", "state.json", COMMITTED)
    for step, name in enumerate(files, start=2):
        store.save(_checkpoint(1))
        folder = store.save(_checkpoint(step))
        _flip_byte(store, f"{folder}/{name}") if name != COMMITTED else store.fs.rm(f"{folder}/{name}")
        with caplog.at_level(logging.WARNING):
            assert store.load_newest().step == 1
        assert "checkpoint_skipped" in caplog.text
        caplog.clear()
        store.fs.rm(folder, recursive=True)


def test_a_truncated_or_missing_file_falls_back(store):
    store.save(_checkpoint(1))
    folder = store.save(_checkpoint(2))
    store.fs.rm(f"{folder}/optimizer.safetensors")
    assert store.load_newest().step == 1
    folder = store.save(_checkpoint(3))
    store.fs.pipe_file(f"{folder}/model.safetensors", store.fs.cat_file(f"{folder}/model.safetensors")[:-7])
    assert store.load_newest().step == 1


def test_a_damaged_checkpoint_is_replaced_by_saving_its_step_again(store):
    store.save(_checkpoint(1))
    _flip_byte(store, f"{store.save(_checkpoint(2))}/model.safetensors")
    store.save(_checkpoint(2))
    assert store.load_newest().step == 2


def test_a_valid_checkpoint_is_never_rewritten(store):
    folder = store.save(_checkpoint(5))
    other = Checkpoint(5, {"layer.weight": torch.zeros(1)}, {}, {})
    assert store.save(other) == folder
    assert torch.equal(store.load_newest().model["scale"], torch.tensor(0.5))


def test_the_marker_records_every_file(store):
    folder = store.save(_checkpoint(5))
    recorded = json.loads(store.fs.cat_file(f"{folder}/{COMMITTED}"))
    names = {path.rstrip("/").rsplit("/", 1)[1] for path in store.fs.ls(folder, detail=False)}
    assert set(recorded["files"]) == names - {COMMITTED}
    assert recorded["step"] == 5


def test_leftovers_of_a_killed_writer_are_not_checkpoints(tmp_path):
    store = CheckpointStore(str(tmp_path))
    (tmp_path / ".tmp-abc").mkdir()
    (tmp_path / "step-00000009").mkdir()
    assert store.load_newest() is None
    store.save(_checkpoint(4))
    assert store.steps() == [4]
