"""Atomic checkpoints: safetensors files and a COMMITTED marker, written last, with their sha256.

A checkpoint is a folder `step-<8 digits>` (the number of finished steps) below an fsspec URI. Resuming
takes the newest one whose files all match their recorded sha256; others are skipped, with a logged reason.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save_file
from torch import Tensor

from x2vlm.errors import CorruptArtifact

log = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_FOLDER = re.compile(r"step-(\d{8})(-[0-9a-f]+)?$")
_CHUNK = 1 << 20
_SCRATCH = ".tmp-"  # of an attempt at a checkpoint, before its number


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue after `step` finished steps. `facts`: small JSON (loss names, shards seen)."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class CheckpointStore:
    """Checkpoints below one URI. One process may save; any number may load."""

    def __init__(self, uri: str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError("keep at least one checkpoint")
        self.fs, self.root = fsspec.core.url_to_fs(uri)
        self._is_local = isinstance(self.fs, LocalFileSystem)
        self._keep = keep

    def save(self, checkpoint: Checkpoint) -> str:
        """The folder the checkpoint was committed to; older ones beyond `keep` are removed after that.

        A valid checkpoint of the same step is kept.
        """
        for folder in self._folders():
            if _step_of(folder) == checkpoint.step and self._problem(folder) is None:
                return folder
        scratch_parent = self.root if self._is_local else None
        if self._is_local:
            os.makedirs(self.root, exist_ok=True)
            for abandoned in Path(self.root).glob(f"{_SCRATCH}*"):  # one process saves: its predecessor was killed
                shutil.rmtree(abandoned, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=scratch_parent))
        try:
            digests = _write_files(scratch, checkpoint)
            folder = self._publish(scratch, checkpoint.step, digests)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        log.info("checkpoint_committed step=%d folder=%s", checkpoint.step, folder)
        self._prune()
        return folder

    def load_newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, or None. Damaged ones are skipped and named in the log."""
        for folder in reversed(self._folders()):
            if problem := self._problem(folder):
                log.warning("checkpoint_skipped folder=%s problem=%s", folder, problem)
                continue
            log.info("checkpoint_loaded folder=%s", folder)
            return self._load(folder)
        return None

    def steps(self) -> list[int]:
        """Steps of the valid checkpoints, ascending."""
        return [_step_of(folder) for folder in self._folders() if self._problem(folder) is None]

    def _folders(self) -> list[str]:
        """Checkpoint folders, valid or not, in order of their steps."""
        self.fs.invalidate_cache()
        if not self.fs.isdir(self.root):
            return []
        names = [path.rstrip("/") for path in self.fs.ls(self.root, detail=False)]
        return sorted(path for path in names if _FOLDER.search(path))

    def _publish(self, scratch: Path, step: int, digests: Mapping[str, str]) -> str:
        marker = json.dumps({"step": step, "files": dict(digests)}, sort_keys=True)
        if self._is_local:
            (scratch / COMMITTED).write_text(marker)
            for path in scratch.iterdir():
                _sync(path)
            folder = f"{self.root}/step-{step:08d}"
            if os.path.isdir(folder):  # a damaged one of the same step, see `save`
                shutil.rmtree(folder)
            os.rename(scratch, folder)
            _sync(Path(self.root))
            return folder
        # Object stores have no rename: every attempt has its own folder name, and the marker is written last.
        folder = f"{self.root}/step-{step:08d}-{os.urandom(4).hex()}"
        for path in sorted(scratch.iterdir()):
            self.fs.put_file(str(path), f"{folder}/{path.name}")
        self.fs.pipe_file(f"{folder}/{COMMITTED}", marker.encode())
        return folder

    def _problem(self, folder: str) -> str | None:
        """What is wrong with a checkpoint; None if every file has the sha256 in its marker."""
        try:
            marker = json.loads(self.fs.cat_file(f"{folder}/{COMMITTED}"))
            step, recorded = int(marker["step"]), dict(marker["files"])
        except FileNotFoundError:
            return "not committed"
        except (ValueError, KeyError, TypeError):
            return f"its {COMMITTED} marker is not readable"
        if step != _step_of(folder):
            return f"its {COMMITTED} marker is that of step {step}"
        if missing := set(FILES) - set(recorded):
            return f"its {COMMITTED} marker does not record {', '.join(sorted(missing))}"
        for name, sha256 in recorded.items():
            try:
                if self._sha256(f"{folder}/{name}") != sha256:
                    return f"{name} does not have its recorded sha256"
            except FileNotFoundError:
                return f"{name} is missing"
        return None

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self.fs.open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _load(self, folder: str) -> Checkpoint:
        with self._local(folder) as path:
            facts = json.loads((path / "state.json").read_text())
            model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
        if facts["step"] != _step_of(folder):
            raise CorruptArtifact(f"{folder} says that it belongs to step {facts['step']}; remove the folder")
        return Checkpoint(facts["step"], model, optimizer, facts["facts"])

    @contextmanager
    def _local(self, folder: str) -> Iterator[Path]:
        if self._is_local:
            yield Path(folder)
            return
        with tempfile.TemporaryDirectory() as scratch:
            for name in FILES:
                self.fs.get_file(f"{folder}/{name}", f"{scratch}/{name}")
            yield Path(scratch)

    def _prune(self) -> None:
        """Remove checkpoints older than the newest `keep` valid ones.

        They are hashed again, a few seconds for 3 GB: if a damaged one counted, the last valid one could be removed.
        """
        folders, valid = self._folders(), []
        for folder in reversed(folders):
            if self._problem(folder) is None:
                valid.append(folder)
            if len(valid) == self._keep:
                for old in folders[: folders.index(folder)]:
                    self.fs.rm(old, recursive=True)
                return


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
