"""Existing data as the artifact of a node, without running the node. Its provenance says so for ever."""

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.flow.run.finishing import make_manifest
from pipelines.flow.run.part_task import reads_of
from pipelines.flow.run.planner import work_of
from pipelines.flow.stage import Count, Graph
from pipelines.flow.store.artifact import CountRecord, Manifest, PartRecord, SealedManifest
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store, make_ref
from x2vlm.errors import ConfigError, SourceUnavailable

Files = Mapping[str, Mapping[str, Path]]  # part name -> name in the part -> existing local file
Counts = Mapping[str, Mapping[str, Count]]  # part name -> unit -> count


def adopt(
    graph: Graph,
    store: Store,
    experiment: str,
    key: str,
    files: Files,
    counts: Counts,
    provenance: Mapping[str, Any] | None = None,
    summaries: Mapping[str, Mapping[str, Any]] | None = None,
) -> Manifest:
    """The manifest of node `key`, made of `files` as if the node had written them.

    Every file is copied and hashed, and the conservation law holds here too. ConfigError
    unless `files` and `counts` name exactly the parts the node would have, and everything it reads is finished.
    """
    node = graph[key]
    finished = {up: _finished(store, experiment, up) for up in node.upstream()}
    work = work_of(node, store, finished, SourceHashes(store))
    expected = [part.name for part in work.parts]
    for what, given in (("files", files), ("counts", counts)):
        if sorted(given) != sorted(expected):
            raise ConfigError(f"adopting {key}: {what} are given for parts {sorted(given)}, but it has {expected}")
    records: dict[str, PartRecord] = {}
    for part, fingerprint in zip(work.parts, work.fingerprints, strict=True):
        for unit, count in counts[part.name].items():
            count.check(f"adopting {key}, part {part.name}, {unit}")
        writer = store.begin_part(node.stage.name, fingerprint)
        try:
            for name, source in files[part.name].items():
                _place(source, writer.path, name)
            record = PartRecord(
                stage=node.stage.name,
                version=node.stage.version,
                fingerprint=fingerprint,
                spec=dict(part.spec),
                reads=reads_of(part),
                files=[],
                counts={unit: CountRecord.of(count) for unit, count in sorted(counts[part.name].items())},
                summary={**(summaries or {}).get(part.name, {}), "adopted": True},
            )
            records[fingerprint] = store.commit_part(writer, record)
        finally:
            store.discard(writer)
    how = {
        "adopted": True,
        "adopted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "adopted_from": {part: {name: str(path) for name, path in paths.items()} for part, paths in files.items()},
    }
    manifest, path, digest = store.write_manifest(make_manifest(work, records, {**(provenance or {}), **how}))
    store.write_ref(make_ref(experiment, node, manifest, path, digest))
    return manifest


def _finished(store: Store, experiment: str, key: str) -> SealedManifest:
    ref = store.read_ref(experiment, key)
    stored = None if ref is None else store.read_manifest(ref.manifest_path)
    if ref is None or stored is None:
        raise ConfigError(f"{key} is not finished in experiment {experiment}; run or adopt it first")
    return SealedManifest(stored[0], ref.manifest_path, stored[1])


def _place(source: Path, folder: Path, name: str) -> None:
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()) or target == folder:
        raise ConfigError(f"{name!r} is no file name inside a part")
    if not source.is_file():
        raise SourceUnavailable(f"{source}: no such file; it was to be adopted as {name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy, not a hard link: whoever still owns the original may change it, and the store must not change with it.
    shutil.copyfile(source, target)
    os.chmod(target, 0o644)
