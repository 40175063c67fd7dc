"""The trainings of a store, finished or not: which node each belongs to and how far it is. Imports no torch.

A training leaves `run.json` in its state folder (its node and configuration), its checkpoints, and a file beside them
where it branched off another one (`start_run`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.flow.store.store import Store

STAGE = "pretrain"
RUN, CHECKPOINTS, COMMITTED = (
    "run.json",
    "checkpoints",
    "COMMITTED",
)  # the last two: as `x2vlm.train.checkpoint` has them
METRICS = "metrics.jsonl"
BRANCH = "branch.json"  # of a training that branched off another: see `start_run`
MARKER = f"branch-{COMMITTED}"  # a copy of the marker of the checkpoint it branched from
_FOLDER = re.compile(r"step-(\d{8})(-[0-9a-f]+)?$")


@dataclass(frozen=True)
class TrainingRun:
    """One state folder: `path` relative to its store, the steps of its checkpoints, and its `run.json`."""

    store: Store
    path: str
    node: str
    config: Mapping[str, Any]
    branch: Mapping[str, Any] | None  # where it branched off

    @property
    def uri(self) -> str:
        return self.store.uri_of(self.path).rstrip("/")

    def file(self, name: str) -> str:
        """The path of a file of the state folder, relative to the store."""
        return _below(self.path, name)

    @property
    def fingerprint(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def checkpoints(self) -> dict[int, str]:
        """Folder of every committed checkpoint by its step, ascending, relative to the store."""
        return committed(self.store, self.file(CHECKPOINTS))

    def steps(self) -> int:
        """Finished and saved steps: those of the newest checkpoint."""
        return max(self.checkpoints(), default=0)


def committed(store: Store, folder: str) -> dict[int, str]:
    """Paths of the committed checkpoints in a folder of `store`, by step; of several of a step the last one."""
    names = sorted(name for name in store.blobs.folders(folder) if _FOLDER.search(name))
    found = {}
    for name in names:
        path = _below(folder, name)
        if store.blobs.exists(f"{path}/{COMMITTED}"):
            found[step_of(name)] = path
    return found


def step_of(folder: str) -> int:
    """The step of a checkpoint's folder; -1 if that is none."""
    match = _FOLDER.search(folder.rstrip("/"))
    return int(match[1]) if match else -1


def run_at(store: Store, path: str) -> TrainingRun:
    """The training whose state folder `path` is, relative to `store`; of an unknown node if it has no `run.json`."""
    told, branch = _json(store, _below(path, RUN)) or {}, _json(store, _below(path, BRANCH))
    return TrainingRun(store, path, str(told.get("node", "")), told.get("config", {}), branch)


def runs_of(store: Store, node: str) -> list[TrainingRun]:
    """The trainings of a node ("pretrain/base_4m") in `store`, whatever their settings were."""
    runs = (run_at(store, f"state/{STAGE}/{name}") for name in store.blobs.folders(f"state/{STAGE}"))
    return [run for run in runs if run.node == node]


def all_runs(store: Store) -> list[TrainingRun]:
    """All trainings in `store`."""
    return [run_at(store, f"state/{STAGE}/{name}") for name in store.blobs.folders(f"state/{STAGE}")]


def note_run(state_uri: str, node: str, config: Mapping[str, Any]) -> None:
    """Write down which node trains in a state folder, and with which settings."""
    Store(state_uri).blobs.write(RUN, json.dumps({"node": node, "config": config}).encode())


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _json(store: Store, path: str) -> dict[str, Any] | None:
    try:
        value = json.loads(store.blobs.read(path) or b"null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
