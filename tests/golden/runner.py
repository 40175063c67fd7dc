"""Finds the golden cases below a folder and runs each with the check of its kind.

A kind is seen from a case's place (`data/boxes`, `resolution/table_resize`) and from what its files hold, so any folder
of the layout will do, also a single case. A kind without a check is said by its name, and is no pass.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.golden import data_cases, model_cases, procedural, starting_cases, training_cases
from tests.golden.differences import Check, Difference
from tests.golden.tasks import kinds

BESIDE_CASES = {
    "param_groups.json": training_cases.check_parameter_groups,
    "base_state_dict.json": procedural.check_base_state_dict,
    "bert_origin.json": starting_cases.check_text_origins,
    "all_image_rows.json": model_cases.check_all_image_rows,
}
# Tasks after pre-training, and arrays that only they have.
DOWNSTREAM = "downstream"
_DOWNSTREAM_ARRAYS = ("in.targets", "in.question_ids", "in.target_bbox", "w.", "train.")


@dataclass(frozen=True)
class Outcome:
    """What became of one case: its differences, why it could not be run, or the kind that has no check."""

    name: str
    differences: list[Difference] = field(default_factory=list)
    error: str | None = None
    unsupported: str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None or any(difference.is_excess for difference in self.differences)

    def line(self) -> str:
        """One line for people."""
        if self.unsupported is not None:
            return f"----  {self.name}: no check for a case of the kind {self.unsupported}"
        if self.error is not None:
            return f"FAIL  {self.name}: {self.error}"
        listed = "; ".join(
            f"{'EXCESS ' if item.is_excess else ''}{item.name} {item.value:.1e} of {item.tolerance:.0e}"
            for item in self.differences
        )
        return f"{'FAIL' if self.failed else 'ok  '}  {self.name}: {listed}"


def run_folder(root: Path) -> Iterator[Outcome]:
    """The outcome of every case below `root`, in the order of their names."""
    root = root.resolve()
    cases = {path.parent: path for path in root.rglob("case.json")}
    extra = {path: path for path in root.rglob("*.json") if path.name in BESIDE_CASES}
    for path, file in sorted((cases | extra).items()):
        name = str(path.relative_to(root)) if path != root else root.name
        yield _run(name, path, file)


def _run(name: str, path: Path, file: Path) -> Outcome:
    try:
        check = BESIDE_CASES.get(file.name) or _check_of(file)
        if isinstance(check, str):
            return Outcome(name, unsupported=check)
        differences = check(path)
    except Exception as error:  # whatever a case does to us, the others still run and this one is counted as failed
        return Outcome(name, error=f"{type(error).__name__}: {error}")
    return Outcome(name, differences) if differences else Outcome(name, error="the check compared nothing")


def _check_of(path: Path) -> Check | str:
    """The check of a case by its `case.json`, or the name of a kind that has none."""
    folder, info = path.parent.resolve(), json.loads(path.read_text())
    if folder.parent.name == DOWNSTREAM:
        return _downstream_check(folder, info)
    if folder.parent.name == "data":
        return data_cases.check_of(folder.name) or f"data/{folder.name}"
    if folder.name == "table_resize":
        return starting_cases.check_table_resize
    if (folder / "raw.safetensors").exists():
        return starting_cases.check_vision_start
    if "weight_seed" in info:
        return procedural.check_base
    if "history" in info:
        return training_cases.check_trajectory
    names = _arrays_of(folder / "tensors.safetensors")
    if {"in.text_ids", "in.masked_pos"} <= names.keys():
        return model_cases.check_batch
    if any(name.startswith(_DOWNSTREAM_ARRAYS) for name in names):
        return _downstream_check(folder, info)
    return data_cases.check_of(folder.name) or f"{folder.parent.name}/{folder.name}"


def _downstream_check(folder: Path, info: dict[str, Any]) -> Check | str:
    kind = kinds.kind_of(folder.name, _arrays_of(folder / "tensors.safetensors"), info) or folder.name
    return kinds.DOWNSTREAM_CHECKS.get(kind, f"{DOWNSTREAM}/{kind}")


def _arrays_of(path: Path) -> dict[str, list[int]]:
    """The shape of every array of a case."""
    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
