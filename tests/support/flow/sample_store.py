"""A finished store of the sample, rolled back to before a stage."""

import shutil
from pathlib import Path

from pipelines.flow.store.store import Store

# What looks at all sources at once in an experiment that searches for test images and for no duplicates.
DECIDING = ("evidence", "near", "components", "exact", "test_index", "leaks", "decontaminate")
REDONE = {
    "s1": [
        *("read", "download", "domains", "filter", "score", *DECIDING, "partition", "pack"),
        *("pretrain", "evaluate"),
    ],
    "s4": ["partition", "pack", "pretrain", "evaluate"],
    "s5": ["pretrain", "evaluate"],
}


def forget(store: Path, phase: str) -> None:
    """Leave of a finished store only what comes before `phase`."""
    for stage in REDONE[phase]:
        for kind in ("parts", "artifacts", "state"):
            shutil.rmtree(store / kind / stage, ignore_errors=True)
        shutil.rmtree(store / "refs" / "sample" / stage, ignore_errors=True)


def roots(store: Path, stages: list[str]) -> dict[str, str]:
    refs = Store(str(store)).refs_of_experiment("sample")
    return {ref.node: ref.root for ref in refs if ref.node.split("/")[0] in stages}
