"""Checkpoints: whole or not there, newest valid one wins, old ones go."""

import json
import logging
import threading

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from x2vlm.errors import ConfigError, StageFailed
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


def _again(store, **options):
    """The store as a process that starts next sees it."""
    return CheckpointStore(store.uri, keep=2, **options)


def test_pruning_never_takes_the_last_good_one(store):
    """Two newer ones are found damaged at a start; the good old one stays until there are enough good ones again."""
    for step in (1, 2, 3):
        folder = CheckpointStore(store.uri, keep=9).save(_checkpoint(step))
        if step > 1:
            store.fs.rm(f"{folder}/model.safetensors")
    started = _again(store)
    assert started.load_newest().step == 1
    started.save(_checkpoint(4))
    assert started.steps() == [1, 4]
    started.save(_checkpoint(5))
    assert started.steps() == [4, 5]
    assert len(started._folders()) == 2  # the damaged ones went with the old ones


def test_a_start_removes_nothing_it_has_not_replaced(store):
    """Of the checkpoints of an earlier start only the one that was read counts as good."""
    for step in (1, 2, 3):
        CheckpointStore(store.uri, keep=9).save(_checkpoint(step))
    blind = _again(store)  # it saves without having loaded anything
    blind.save(_checkpoint(4))
    assert blind.steps() == [1, 2, 3, 4]
    blind.save(_checkpoint(5))
    assert blind.steps() == [4, 5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_what_is_not_finite_is_never_saved_and_costs_no_good_one(store, part, value):
    for step in (1, 2):
        store.save(_checkpoint(step))
    bad = _checkpoint(3)
    next(iter(getattr(bad, part).values())).view(-1)[4] = value
    for _ in range(3):
        with pytest.raises(StageFailed, match=r"step 3: 1 tensors are not finite \(.* layer.weight"):
            store.save(bad)
    assert store.steps() == [1, 2]
    assert len(store._folders()) == 2
    store.save(_checkpoint(3))  # the same step, made again
    assert store.steps() == [2, 3]


def test_milestones_stay(store):
    """Of every ten steps the first that is saved, whether or not it falls on a multiple."""
    saved = CheckpointStore(store.uri, keep=2, keep_every=10)
    for step in (3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33):
        saved.save(_checkpoint(step))
    assert saved.steps() == [12, 21, 30, 33]
    other = CheckpointStore(store.uri, keep=1, keep_every=10)
    assert other.load_newest().step == 33
    for step in (36, 39, 42, 45):
        other.save(_checkpoint(step))
    assert other.steps() == [12, 21, 30, 42, 45]


def test_a_rollback_is_recorded_and_what_came_later_does_not_count(store):
    keeps = CheckpointStore(store.uri, keep=2, keep_every=10)
    for step in (10, 15, 20, 25, 30):
        keeps.save(_checkpoint(step))
    assert keeps.steps() == [10, 20, 25, 30]
    with pytest.raises(ConfigError, match=r"no valid checkpoint of step 15; there are folders of steps \[10, 20, 25"):
        keeps.roll_back(15, "diverged")
    assert keeps.rollbacks() == []
    assert keeps.roll_back(10, "diverged") == [20, 25, 30]
    assert keeps.steps() == [10]
    (record,) = keeps.rollbacks()
    assert (record["from"], record["to"], record["reason"]) == (30, 10, "diverged")
    resumed = CheckpointStore(store.uri, keep=2, keep_every=10)
    assert resumed.load_newest().step == 10
    for step in (15, 20):
        resumed.save(_checkpoint(step))
    assert resumed.steps() == [10, 15, 20]
    assert len(resumed._folders()) == 3  # those of the abandoned part are gone, milestones or not
    assert resumed.load_newest().step == 20


def test_an_error_before_the_commit_leaves_no_checkpoint(store):
    def refuse():
        raise StageFailed("another driver has taken over")

    guarded = CheckpointStore(store.uri, before_commit=refuse)
    store.save(_checkpoint(1))
    with pytest.raises(StageFailed, match="taken over"):
        guarded.save(_checkpoint(2))
    assert store.steps() == [1]


def test_a_save_reads_nothing_back_and_a_start_reads_everything_once(tmp_path, monkeypatch):
    """Counted at the file system: bytes read by saves, by a start; requests of a save."""
    system = fsspec.get_filesystem_class("memory")
    read, calls = [0], []
    for name in ("cat_file", "get_file", "put_file", "pipe_file", "ls", "rm", "info"):
        original = getattr(system, name)

        def call(self, *arguments, _name=name, _original=original, **options):
            calls.append(_name)
            if _name in ("cat_file", "get_file"):
                read[0] += self.size(arguments[0]) if self.exists(arguments[0]) else 0
            return _original(self, *arguments, **options)

        monkeypatch.setattr(system, name, call)
    uri = f"memory://{tmp_path.name}/checkpoints"
    store = CheckpointStore(uri, keep=3, keep_every=4)
    for step in range(1, 20):
        calls.clear()
        store.save(_checkpoint(step))
        assert read == [0]
        puts = [name for name in calls if name in ("put_file", "pipe_file")]
        assert len(puts) == 4  # three files and the marker
        assert calls.count("ls") - calls.count("rm") <= 2  # one listing, and one in each removal
    folder = store._folders()[-1]
    size = sum(store.fs.sizes(store.fs.find(folder)))
    read[0] = 0
    assert CheckpointStore(uri).load_newest().step == 19
    assert read[0] == size
    store.fs.rm("/" + tmp_path.name, recursive=True)


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


def test_a_failed_write_is_raised_at_the_next_save_or_at_the_end(tmp_path, monkeypatch, caplog):
    store = CheckpointStore(str(tmp_path))
    what = r"the checkpoint of step 2 was not written: OSError: the disk is full. .* the newest is 1; the same command"
    saves = BackgroundSaves(store)
    saves.save(_checkpoint(1))
    saves.wait()

    def fail(self, checkpoint):
        raise OSError("the disk is full")

    monkeypatch.setattr(CheckpointStore, "save", fail)
    saves.save(_checkpoint(2))
    with pytest.raises(StageFailed, match=what):
        saves.save(_checkpoint(3))
    with pytest.raises(StageFailed, match=r"disk is full.*none was written since"), BackgroundSaves(store) as others:
        others.save(_checkpoint(1))
    assert caplog.text.count("checkpoint_failed") == 2


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
    started = _again(store)
    assert started.load_newest().step == 1
    started.save(_checkpoint(2))
    assert started.load_newest().step == 2


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
