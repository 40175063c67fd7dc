"""Finds the golden cases below a folder and runs each with the check of its kind.

A kind is seen from a case's place (`data/boxes`, `resolution/table_resize`) and from what its files hold, so any folder
of the layout will do, also a single case. A kind nobody knows is an error, not a pass.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.golden import data_cases, model_cases, procedural, starting_cases, training_cases
from tests.golden.differences import Check, Difference

BESIDE_CASES = {
    "param_groups.json": training_cases.check_parameter_groups,
    "base_state_dict.json": procedural.check_base_state_dict,
    "bert_origin.json": starting_cases.check_text_origins,
    "all_image_rows.json": model_cases.check_all_image_rows,
}
# Tasks after pre-training; their checks come with the tasks.
UNSUPPORTED = "downstream"


@dataclass(frozen=True)
class Outcome:
    """What became of one case: its differences, why it could not be run, or that its kind is not supported yet."""

    name: str
    differences: list[Difference] = field(default_factory=list)
    error: str | None = None
    is_supported: bool = True

    @property
    def failed(self) -> bool:
        return self.error is not None or any(difference.is_excess for difference in self.differences)

    def line(self) -> str:
        """One line for people."""
        if not self.is_supported:
            return f"----  {self.name}: not supported yet"
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
    found = {path.parent: _check_of(path) for path in root.rglob("case.json")}
    extra = {path: BESIDE_CASES[path.name] for path in root.rglob("*.json") if path.name in BESIDE_CASES}
    for path, check in sorted((found | extra).items()):
        name = str(path.relative_to(root)) if path != root else root.name
        yield _run(name, path, check)


def _run(name: str, path: Path, check: Check | None) -> Outcome:
    if check is None:
        return Outcome(name, is_supported=False)
    try:
        differences = check(path)
    except Exception as error:  # whatever a case does to us, the others still run and this one is counted as failed
        return Outcome(name, error=f"{type(error).__name__}: {error}")
    return Outcome(name, differences) if differences else Outcome(name, error="the check compared nothing")


def unknown_kind(folder: Path) -> list[Difference]:
    """Fails: a kind without a check must not look like a pass."""
    raise NotImplementedError(f"no check for a case of the kind {folder.parent.name}/{folder.name}")


def _check_of(path: Path) -> Check | None:
    folder, info = path.parent.resolve(), json.loads(path.read_text())
    if folder.parent.name == UNSUPPORTED:
        return None
    if folder.parent.name == "data":
        return data_cases.check_of(folder.name) or unknown_kind
    if folder.name == "table_resize":
        return starting_cases.check_table_resize
    if (folder / "raw.safetensors").exists():
        return starting_cases.check_vision_start
    if "weight_seed" in info:
        return procedural.check_base
    if "history" in info:
        return training_cases.check_trajectory
    return model_cases.check_batch
