"""Atomic checkpoints: safetensors files and a COMMITTED marker, written last, with their sha256.

A checkpoint is a folder `step-<8 digits>` (the number of finished steps) below an fsspec URI. Resuming takes the newest
one whose files all match their recorded sha256; others are skipped, with a logged reason. Saving reads nothing back:
what this process has written, or has read whole when it started, it trusts.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed
from x2vlm.stores.calls import RETRY_SECONDS, StoreFiles

log = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
ROLLED_BACK = "ROLLED_BACK"  # what a marker is called after a rollback to an earlier step
ROLLBACKS = "rollbacks.json"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_FOLDER = re.compile(r"step-(\d{8})(-[0-9a-f]+)?$")
_SCRATCH = ".tmp-"  # of an attempt at a checkpoint, before its number
_NUM_NAMED = 5  # tensors in a message


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue after `step` finished steps. `facts`: small JSON (loss names, shards seen)."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class CheckpointStore:
    """Checkpoints below one URI. One process may save; any number may load.

    The newest `keep` are kept, and of every `keep_every` steps the first at or after their multiple (None: no such
    milestones). `before_commit` is called when all files of a checkpoint are written, before it counts: an error raised
    there leaves it uncommitted. Calls to a remote store are tried again for `retry_seconds`.
    """

    def __init__(
        self,
        uri: str,
        keep: int = 2,
        keep_every: int | None = None,
        before_commit: Callable[[], None] | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        if keep < 1:
            raise ValueError("keep at least one checkpoint")
        self.uri = uri
        self._files = StoreFiles(uri, retry_seconds)
        self.fs, self.root = self._files.fs, self._files.root
        self._keep, self._keep_every = keep, keep_every
        self._before_commit = before_commit or (lambda: None)
        self._trusted: set[str] = set()  # folders that this process wrote, or read and found valid
        self._bad: set[str] = set()  # folders that it found not to be valid

    def save(self, checkpoint: Checkpoint) -> str:
        """The folder the checkpoint was committed to; older ones beyond `keep` are removed after that.

        A checkpoint of the same step that this process wrote or loaded is kept. StageFailed, and nothing is written or
        removed, if a weight or an entry of the optimizer's state is not finite.
        """
        for folder in self._trusted:
            if _step_of(folder) == checkpoint.step:
                return folder
        _check_finite(checkpoint)
        if self._files.is_local:
            os.makedirs(self.root, exist_ok=True)
            for abandoned in Path(self.root).glob(f"{_SCRATCH}*"):  # one process saves: its predecessor was killed
                shutil.rmtree(abandoned, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.root if self._files.is_local else None))
        try:
            digests = _write_files(scratch, checkpoint)
            folder = self._publish(scratch, checkpoint.step, digests)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._trusted.add(folder)
        self._bad.discard(folder)
        log.info("checkpoint_committed step=%d folder=%s", checkpoint.step, folder)
        try:
            self._prune()
        except Exception as error:  # the checkpoint is there; the next save prunes again
            log.error("checkpoints_not_pruned uri=%s error=%r", self.uri, str(error))
        return folder

    def load_newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, or None. Damaged ones are skipped and named in the log. Reads each file once."""
        for folder in reversed(self._folders()):
            with self._fetched(folder) as (path, problem):
                if problem is None:
                    log.info("checkpoint_loaded folder=%s", folder)
                    found = _load(path, folder)
                    self._trusted.add(folder)
                    return found
            log.warning("checkpoint_skipped folder=%s problem=%s", folder, problem)
        return None

    def load(self, step: int) -> Checkpoint:
        """The valid checkpoint of a step; CorruptArtifact, naming the steps there are, without one."""
        folders = self._folders()
        for folder in reversed(folders):
            if _step_of(folder) == step:
                with self._fetched(folder) as (path, problem):
                    if problem is None:
                        return _load(path, folder)
                log.warning("checkpoint_skipped folder=%s problem=%s", folder, problem)
        there = sorted({_step_of(folder) for folder in folders})
        raise CorruptArtifact(f"{self.uri} has no valid checkpoint of step {step}; there are folders of steps {there}")

    def steps(self) -> list[int]:
        """Steps of the valid checkpoints, ascending. Reads all of them."""
        return [_step_of(folder) for folder in self._folders() if self._problem(folder) is None]

    def roll_back(self, step: int, reason: str) -> list[int]:
        """Have runs go on from the checkpoint of `step`; the later steps, whose checkpoints do not count any more.

        The rollback is recorded in `rollbacks.json`. No other process may be training. ConfigError, and nothing
        changes, without a valid checkpoint of that step.
        """
        folders = self._folders()
        if not any(_step_of(folder) == step and self._problem(folder) is None for folder in folders):
            there = sorted({_step_of(folder) for folder in folders})
            raise ConfigError(f"{self.uri} has no valid checkpoint of step {step}; there are folders of steps {there}")
        later = [folder for folder in folders if _step_of(folder) > step]
        record = {"to": step, "from": max(map(_step_of, later), default=step), "reason": reason, "time": time.time()}
        self._files.write(ROLLBACKS, json.dumps([*self.rollbacks(), record], indent=1).encode())
        for folder in reversed(later):
            name = folder.rsplit("/", 1)[-1]
            if (marker := self._files.read(f"{name}/{COMMITTED}")) is not None:
                self._files.write(f"{name}/{ROLLED_BACK}", marker)
                self._files.remove(f"{name}/{COMMITTED}")
        log.warning("rolled_back uri=%s record=%s", self.uri, record)
        return [_step_of(folder) for folder in later]

    def rollbacks(self) -> list[dict[str, Any]]:
        """The rollbacks so far, oldest first: `from` and `to` (steps), `reason`, `time` (seconds since 1970)."""
        content = self._files.read(ROLLBACKS)
        return [] if content is None else list(json.loads(content))

    def _folders(self) -> list[str]:
        """Checkpoint folders, valid or not, in order of their steps."""
        return [self._files.path(name) for name in self._files.names() if _FOLDER.search(name)]

    def _publish(self, scratch: Path, step: int, digests: Mapping[str, str]) -> str:
        marker = json.dumps({"step": step, "files": dict(digests)}, sort_keys=True)
        if self._files.is_local:
            (scratch / COMMITTED).write_text(marker)
            for path in scratch.iterdir():
                _sync(path)
            folder = f"{self.root}/step-{step:08d}"
            self._before_commit()
            if os.path.isdir(folder):  # one of the same step that is not valid, see `save`
                shutil.rmtree(folder)
            os.rename(scratch, folder)
            _sync(Path(self.root))
            return folder
        # Object stores have no rename: every attempt has its own folder name, and the marker is written last.
        name = f"step-{step:08d}-{os.urandom(4).hex()}"
        for path in sorted(scratch.iterdir()):
            self._files.upload(path, f"{name}/{path.name}")
        self._before_commit()
        self._files.write(f"{name}/{COMMITTED}", marker.encode())
        return self._files.path(name)

    def _problem(self, folder: str) -> str | None:
        """What is wrong with a checkpoint; None if every file has the sha256 in its marker. Reads it whole."""
        with self._fetched(folder) as (_, problem):
            return problem

    @contextmanager
    def _fetched(self, folder: str) -> Iterator[tuple[Path, str | None]]:
        """A checkpoint's files as a local folder, and what is wrong with it (None: nothing)."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(folder) if self._files.is_local else Path(scratch)
            problem = self._fetch(folder.rsplit("/", 1)[-1], path)
            if problem is not None:
                self._trusted.discard(folder)
                self._bad.add(folder)
            yield path, problem

    def _fetch(self, name: str, path: Path) -> str | None:
        """Copy the files of a remote checkpoint to `path`; what is wrong with them."""
        recorded = self._recorded(name)
        if isinstance(recorded, str):
            return recorded
        if not self._files.is_local:
            for file in recorded:
                try:
                    self._download(f"{name}/{file}", path / file)
                except FileNotFoundError:
                    return f"{file} is missing"
        return _difference(path, recorded)

    def _download(self, name: str, target: Path) -> None:
        path = self._files.path(name)
        self._files.call(lambda: self.fs.get_file(path, str(target)), f"read {path}")

    def _recorded(self, name: str) -> dict[str, str] | str:
        """The sha256 of every file by a folder's marker, or what is wrong with the marker."""
        content = self._files.read(f"{name}/{COMMITTED}")
        if content is None:
            return "not committed, or rolled back"
        try:
            marker = json.loads(content)
            step, recorded = int(marker["step"]), {str(key): str(value) for key, value in dict(marker["files"]).items()}
        except (ValueError, KeyError, TypeError):
            return f"its {COMMITTED} marker is not readable"
        if step != _step_of(name):
            return f"its {COMMITTED} marker is that of step {step}"
        if missing := set(FILES) - set(recorded):
            return f"its {COMMITTED} marker does not record {', '.join(sorted(missing))}"
        if strange := sorted(file for file in recorded if Path(file).name != file):
            return f"its {COMMITTED} marker records {strange[0]!r}, which is no name of a file"
        return recorded

    def _prune(self) -> None:
        """Remove checkpoints older than the newest `keep` that this process trusts, but for milestones.

        Only trusted ones count: if a damaged one did, the last valid one could be removed.
        """
        folders = self._folders()
        kept = [folder for folder in folders if folder in self._trusted][-self._keep :]
        if len(kept) < self._keep:
            return
        oldest = _step_of(kept[0])
        protected = {*kept, *self._milestones(folders)}
        for folder in folders:
            if folder not in protected and (_step_of(folder) <= oldest or folder in self._bad):
                self._files.remove(folder.rsplit("/", 1)[-1])
                self._trusted.discard(folder)

    def _milestones(self, folders: list[str]) -> list[str]:
        """The first of the folders at or after every multiple of `keep_every` steps, without those known as bad."""
        first: dict[int, str] = {}
        for folder in folders:
            if self._keep_every is not None and folder not in self._bad and _step_of(folder) >= self._keep_every:
                first.setdefault(_step_of(folder) // self._keep_every, folder)
        return list(first.values())


def _load(path: Path, folder: str) -> Checkpoint:
    facts = json.loads((path / "state.json").read_text())
    if facts["step"] != _step_of(folder):
        raise CorruptArtifact(f"{folder} says that it belongs to step {facts['step']}; remove the folder")
    model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    return Checkpoint(facts["step"], model, optimizer, facts["facts"])


def _difference(folder: Path, recorded: Mapping[str, str]) -> str | None:
    for name, sha256 in recorded.items():
        try:
            if _sha256_of(folder / name) != sha256:
                return f"{name} does not have its recorded sha256"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def _check_finite(checkpoint: Checkpoint) -> None:
    """StageFailed, naming them, if tensors hold NaN or infinity."""
    parts = (("weights", checkpoint.model), ("optimizer state", checkpoint.optimizer))
    bad = [
        f"{kind} {name}"
        for kind, tensors in parts
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        raise StageFailed(
            f"step {checkpoint.step}: {len(bad)} tensors are not finite ({', '.join(bad[:_NUM_NAMED])}); they are not "
            "saved, and no earlier checkpoint is removed. Lower optimizer.lr or use precision float32, and go on from "
            "the newest checkpoint"
        )


def _write_files(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
    for name, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    state = {"step": checkpoint.step, "facts": dict(checkpoint.facts)}
    (folder / "state.json").write_text(json.dumps(state, sort_keys=True))
    return {path.name: _sha256_of(path) for path in sorted(folder.iterdir())}


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _step_of(folder: str) -> int:
    match = _FOLDER.search(folder)
    assert match is not None
    return int(match.group(1))


def _sync(path: Path) -> None:
    """Have the kernel put a file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
