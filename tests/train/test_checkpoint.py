"""Checkpoints: whole or not there, newest valid one wins, old ones go."""

import json
import logging
import threading

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from x2vlm.train.background_saves import BackgroundSaves
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


MARKERS = {
    "missing": (None, "not committed"),
    "no JSON": (b"\x00\xffgarbage", "its COMMITTED marker is not readable"),
    "another JSON": (b'["step", 2]', "its COMMITTED marker is not readable"),
    "no mapping of files": (b'{"step": 2, "files": 7}', "its COMMITTED marker is not readable"),
    "records nothing": (b'{"step": 2, "files": {}}', "does not record model.safetensors, optimizer.safetensors, state"),
    "another step's": ("other", "its COMMITTED marker is that of step 1"),
}


@pytest.mark.parametrize("case", MARKERS)
def test_a_marker_that_does_not_vouch_for_the_folder_is_told_and_skipped(store, caplog, case):
    content, problem = MARKERS[case]
    first, second = store.save(_checkpoint(1)), store.save(_checkpoint(2))
    store.fs.rm(f"{second}/{COMMITTED}")
    if content == "other":
        content = store.fs.cat_file(f"{first}/{COMMITTED}")
    if content is not None:
        store.fs.pipe_file(f"{second}/{COMMITTED}", content)
    with caplog.at_level(logging.WARNING):
        assert store.load_newest().step == 1
    assert problem in caplog.text
    assert second in caplog.text


def test_pruning_never_takes_the_last_good_one(store):
    """Two newer ones are damaged; saving a third keeps the good old one until there are enough good ones again."""
    store.save(_checkpoint(1))
    for step in (2, 3):
        folder = store.save(_checkpoint(step))
        store.fs.rm(f"{folder}/model.safetensors")
        assert store.steps()[0] == 1
    store.save(_checkpoint(4))
    assert store.steps() == [1, 4]
    store.save(_checkpoint(5))
    assert store.steps() == [4, 5]
    assert len(store._folders()) == 2  # the damaged ones went with the old ones


def test_a_writer_thread_takes_a_copy_at_once(tmp_path, monkeypatch):
    """Weights that move while they are being written do not show; the next save waits, and what fails is raised."""
    store = CheckpointStore(str(tmp_path))
    entered, go_on = threading.Event(), threading.Event()
    save = CheckpointStore.save

    def slow_save(self, checkpoint):
        entered.set()
        assert go_on.wait(60)
        return save(self, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", slow_save)
    checkpoint = _checkpoint(1)
    with BackgroundSaves(store) as saves:
        saves.save(checkpoint)
        assert entered.wait(60)
        checkpoint.model["layer.weight"].fill_(99.0)
        assert store.steps() == []
        second = threading.Thread(target=saves.save, args=(_checkpoint(2),))
        second.start()
        assert second.is_alive()  # one write at a time
        go_on.set()
        second.join()
    assert store.steps() == [1, 2]
    assert torch.equal(load_file(tmp_path / "step-00000001/model.safetensors")["layer.weight"], torch.ones(3, 2))


def test_a_failed_write_is_raised_at_the_next_save_or_at_the_end(tmp_path, monkeypatch):
    def fail(self, checkpoint):
        raise OSError("the disk is full")

    monkeypatch.setattr(CheckpointStore, "save", fail)
    with pytest.raises(OSError, match="disk is full"), BackgroundSaves(CheckpointStore(str(tmp_path))) as saves:
        saves.save(_checkpoint(1))
    saves = BackgroundSaves(CheckpointStore(str(tmp_path)))
    saves.save(_checkpoint(1))
    with pytest.raises(OSError, match="disk is full"):
        saves.save(_checkpoint(2))


def test_an_error_in_the_training_still_waits_for_the_write(tmp_path):
    class LossError(Exception):
        pass

    store = CheckpointStore(str(tmp_path))

    def train():
        with BackgroundSaves(store) as saves:
            saves.save(_checkpoint(3))
            raise LossError

    with pytest.raises(LossError):
        train()
    assert store.steps() == [3]


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
