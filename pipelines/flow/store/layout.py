"""The names of everything in a store, as paths relative to it. Whoever needs such a path asks here.

    parts/<stage>/<fp[:2]>/<fp>/part.json   written last; a part without it does not exist
    artifacts/<stage>/<name>/<fp>.json      manifests
    artifacts/<stage>/<name>/<fp>.<sha256>.parquet  the parts of one that has many
    journal/<stage>/<fp>/                   records of parts of an unfinished artifact, many in a file
    refs/<experiment>/<stage>/<name>.json   the human name of a manifest
    state/<stage>/<fp>/                     what survives a crash of a part (checkpoints)
    leases/  tmp/                           who runs a plan; unfinished attempts

Every function raises ConfigError for a name that could not be one file or folder of its own.
"""

import re

from pipelines.flow.store.artifact import FileRecord, PartRecord
from x2vlm.errors import ConfigError

RECORD_NAME = "part.json"
PARTS, ARTIFACTS, JOURNAL, REFS, SCRATCH = "parts", "artifacts", "journal", "refs", "tmp"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


def parts_folder(stage: str) -> str:
    """The folder of all parts of a stage."""
    return f"{PARTS}/{_safe(stage)}"


def part_folder(stage: str, fingerprint: str) -> str:
    """The folder of a part."""
    return part_below(parts_folder(stage), _safe(fingerprint))


def part_below(folder: str, fingerprint: str) -> str:
    """The folder of a part below that of all parts of its stage; `fingerprint` is hexadecimal and not checked."""
    return f"{folder}/{fingerprint[:2]}/{fingerprint}"


def record_path(stage: str, fingerprint: str) -> str:
    """Where the record of a part lies."""
    return f"{part_folder(stage, fingerprint)}/{RECORD_NAME}"


def file_path(record: PartRecord, file: FileRecord) -> str:
    """Where one output file of a part lies."""
    return f"{part_folder(record.stage, record.fingerprint)}/{file.location or file.path}"


def state_folder(stage: str, fingerprint: str) -> str:
    """The folder of what survives a crash of a part."""
    return f"state/{_safe(stage)}/{_safe(fingerprint)}"


def manifest_path(stage: str, name: str, fingerprint: str) -> str:
    """Where a manifest lies; `name` is its node's key after the stage."""
    return f"{ARTIFACTS}/{_safe(stage)}/{_safe(name)}/{_safe(fingerprint)}.json"


def parts_table_path(stage: str, name: str, fingerprint: str, sha256: str) -> str:
    """Where the parts of a manifest lie that has many; `sha256` is that of the file."""
    return f"{ARTIFACTS}/{_safe(stage)}/{_safe(name)}/{_safe(fingerprint)}.{sha256[:16]}.parquet"


def journal_folder(stage: str, fingerprint: str) -> str:
    """The folder of what is known of an unfinished artifact's parts."""
    return f"{JOURNAL}/{_safe(stage)}/{_safe(fingerprint)}"


def refs_folder(experiment: str) -> str:
    """The folder of all references of an experiment."""
    return f"{REFS}/{_safe(experiment)}"


def ref_path(experiment: str, node: str) -> str:
    """Where an experiment's reference to a node lies."""
    return f"{refs_folder(experiment)}/{'/'.join(_safe(step) for step in node.split('/'))}.json"


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a file of the store; use letters, digits and . _ = + -")
    return name
