"""Pinned fingerprints: forgetting to bump a stage's version becomes visible.

A test of a stage calls `check_golden("<stage>@<version>", fingerprint)` with the fingerprint of a fixed config and
fixed inputs. A new entry is added with `python -m tests.support.flow.fingerprint_goldens KEY FINGERPRINT`; an entry
that is there is never changed: bump the version, which makes a new key.
"""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.flow.fingerprint import sha256_of
from x2vlm.config import FrozenConfig

GOLDEN_PATH = Path(__file__).resolve().parents[2] / "golden" / "fingerprints.json"


def read_goldens() -> dict[str, str]:
    return json.loads(GOLDEN_PATH.read_text()) if GOLDEN_PATH.exists() else {}


def check_golden(key: str, fingerprint: str) -> None:
    """AssertionError unless `fingerprint` is the one pinned under `key`."""
    pinned = read_goldens().get(key)
    assert pinned is not None, (
        f"{key} is not pinned; add it: python -m tests.support.flow.fingerprint_goldens '{key}' {fingerprint}"
    )
    assert pinned == fingerprint, (
        f"{key}: fingerprint is {fingerprint}, pinned was {pinned}. A default or a meaning changed: bump the stage's "
        "version. Then everything it wrote is made again, on purpose"
    )


def check_defaults(key: str, config: FrozenConfig) -> None:
    """AssertionError unless the defaults of a stage are the pinned ones.

    Fields equal to their default are left out of fingerprints, so a changed default would go unseen without this. A
    field that is new, however deep, is pinned by itself, as `<key> default <path>` (`train.min_rate`,
    `data.streams.0.weights`): it changes no fingerprint, so no version either.
    """
    goldens, values = read_goldens(), config.model_dump(mode="json")
    for path in list(_paths(values)):
        if f"{key} default {path}" in goldens:
            check_golden(f"{key} default {path}", sha256_of({path: _taken_out(values, path)}))
    if sha256_of(values) != goldens.get(f"{key} defaults"):
        for path in list(_paths(values)):
            others = copy.deepcopy(values)
            value = _taken_out(others, path)
            if sha256_of(others) == goldens.get(f"{key} defaults"):
                check_golden(f"{key} default {path}", sha256_of({path: value}))
    check_golden(f"{key} defaults", sha256_of(values))


def _paths(value: Any, above: str = "") -> Iterator[str]:
    """The dotted path of every entry of nested mappings and lists, numbers for those of lists; inner ones first."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        yield from _paths(inner, f"{above}{name}.")
        if isinstance(value, dict):
            yield f"{above}{name}"


def _taken_out(values: dict[str, Any], path: str) -> Any:
    """The entry at a path, which is no longer in `values` then."""
    *above, name = path.split(".")
    place: Any = values
    for step in above:
        place = place[int(step)] if isinstance(place, list) else place[step]
    return place.pop(name)


def add_golden(key: str, fingerprint: str) -> None:
    goldens = read_goldens()
    if key in goldens and goldens[key] != fingerprint:
        raise SystemExit(f"{key} is pinned already; bump the stage's version instead of changing it")
    goldens[key] = fingerprint
    GOLDEN_PATH.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN_PATH.write_text(json.dumps(goldens, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    add_golden(sys.argv[1], sys.argv[2])
