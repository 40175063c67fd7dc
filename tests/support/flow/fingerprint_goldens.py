"""Pinned fingerprints: forgetting to bump a stage's version becomes visible.

A test of a stage calls `check_golden("<stage>@<version>", fingerprint)` with the fingerprint of a fixed config and
fixed inputs. A new entry is added with `python -m tests.support.flow.fingerprint_goldens KEY FINGERPRINT`; an entry
that is there is never changed: bump the version, which makes a new key.
"""

import json
import sys
from pathlib import Path

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
    field that is new is pinned by itself, as `<key> default <field>`: it changes no fingerprint, so no version either.
    """
    goldens, values = read_goldens(), config.model_dump(mode="json")
    for name in [name for name in values if f"{key} default {name}" in goldens]:
        check_golden(f"{key} default {name}", sha256_of({name: values.pop(name)}))
    if sha256_of(values) != goldens.get(f"{key} defaults"):
        for name in values:
            others = {other: value for other, value in values.items() if other != name}
            if sha256_of(others) == goldens.get(f"{key} defaults"):
                check_golden(f"{key} default {name}", sha256_of({name: values[name]}))
    check_golden(f"{key} defaults", sha256_of(values))


def add_golden(key: str, fingerprint: str) -> None:
    goldens = read_goldens()
    if key in goldens and goldens[key] != fingerprint:
        raise SystemExit(f"{key} is pinned already; bump the stage's version instead of changing it")
    goldens[key] = fingerprint
    GOLDEN_PATH.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN_PATH.write_text(json.dumps(goldens, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    add_golden(sys.argv[1], sys.argv[2])
