"""Where everything lies: parts by content, manifests, references, checkpoints; on a local disk or an object store.

    parts/<stage>/<fp[:2]>/<fp>/part.json   written last; a part without it does not exist
    artifacts/<stage>/<name>/<fp>.json      manifests
    refs/<experiment>/<stage>/<name>.json   the human name of a manifest
    state/<stage>/<fp>/                     what survives a crash of a part (checkpoints)
    leases/  tmp/                           who runs a plan; unfinished attempts

A committed part is never modified and never deleted by a stage.
"""

import logging
import re
import tempfile
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.flow.live import Report, no_report
from pipelines.flow.stage import Input, Node
from pipelines.flow.store import commit
from pipelines.flow.store.artifact import FileRecord, Manifest, PartRecord, Ref, as_input, seal, unseal
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.identity import Identity, this_process
from x2vlm.errors import ConfigError, CorruptArtifact

log = logging.getLogger(__name__)

STALE_SCRATCH_SECONDS = 7 * 24 * 3600  # of hosts whose processes cannot be seen from here
REMOTE_READS = 16  # at a time
FEW_PARTS = 16  # up to so many parts are asked for one by one, more by one listing
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")

Fault = Callable[[str], None]


def no_fault(point: str) -> None:
    """What happens at the named step of a write: nothing. Crash tests pass a function that kills the process."""


@dataclass(frozen=True)
class ScratchWriter:
    """One attempt at a part. `path` is an empty local folder; `folder` holds it and is removed after the attempt."""

    store: "Store"
    stage: str
    fingerprint: str
    folder: Path
    report: Report = no_report

    @property
    def path(self) -> Path:
        return self.folder / "out"

    @property
    def inputs_path(self) -> Path:
        """Where the reader may keep copies of remote inputs during this attempt."""
        return self.folder / "inputs"

    @property
    def state_uri(self) -> str:
        relative = self.store.state_folder(self.stage, self.fingerprint)
        if self.store.local_root is not None:
            (self.store.local_root / relative).mkdir(parents=True, exist_ok=True)
        return self.store.uri_of(relative)


class Store:
    """Parts, manifests and references at `uri`: a local folder, file://, s3://, gs:// or memory://.

    `storage_options` go to fsspec (endpoint, credentials). `fault` is called at every step of a write.
    """

    def __init__(
        self, uri: str | Path, storage_options: Mapping[str, Any] | None = None, fault: Fault = no_fault
    ) -> None:
        self.blobs = Blobs(str(uri), dict(storage_options or {}))
        self.uri = self.blobs.uri
        self.fault = fault

    def __reduce__(self) -> tuple[type["Store"], tuple[str, dict[str, Any], Fault]]:
        return Store, (self.uri, self.blobs.storage_options, self.fault)

    @property
    def local_root(self) -> Path | None:
        """The store's folder on this machine's disk; None for remote stores."""
        return self.blobs.local_root

    def uri_of(self, relative: str) -> str:
        """Where `relative` lies: a plain absolute path for local stores, otherwise a URI."""
        return self.blobs.uri_of(relative)

    # ---- parts

    def part_folder(self, stage: str, fingerprint: str) -> str:
        """The folder of a part, relative to the store."""
        return f"parts/{_safe(stage)}/{fingerprint[:2]}/{_safe(fingerprint)}"

    def state_folder(self, stage: str, fingerprint: str) -> str:
        """The folder, relative to the store, of what survives a crash of a part."""
        return f"state/{_safe(stage)}/{_safe(fingerprint)}"

    def begin_part(self, stage: str, fingerprint: str, report: Report = no_report) -> ScratchWriter:
        """A writer with an empty folder. Local stores keep it below `tmp/`, so that the commit is one rename."""
        attempt = f"{this_process().token}-{uuid.uuid4().hex[:12]}"
        root = self.local_root
        folder = Path(tempfile.gettempdir()) / f"x2vlm-{attempt}" if root is None else root / "tmp" / attempt
        with commit.explained(f"scratch folder {folder}"):
            (folder / "out").mkdir(parents=True)
            (folder / "inputs").mkdir()
        return ScratchWriter(self, stage, fingerprint, folder, report)

    def commit_part(
        self,
        writer: ScratchWriter,
        record: PartRecord,
        file_rows: Mapping[str, int] | None = None,
        restore: PartRecord | None = None,
        verify_existing: bool = False,
    ) -> PartRecord:
        """The committed record: `record` with every file below `writer.path`, or that of whoever was first.

        `restore` is a lost part's record as its manifest has it: equal content is committed under that very record.
        `verify_existing` hashes the files of a part that is already there and replaces it if they are damaged.
        Raises StageFailed, with nothing half-written in sight, where the store cannot be written.
        """
        return commit.commit_part(self, writer, record, file_rows or {}, restore, verify_existing)

    def discard(self, writer: ScratchWriter) -> None:
        """Remove an attempt's scratch folder, if it is still there."""
        commit.remove_tree(writer.folder)

    def read_part(self, stage: str, fingerprint: str) -> PartRecord | None:
        """The record of a committed part, or None; CorruptArtifact if its seal is broken or it is another part's."""
        where = f"{self.part_folder(stage, fingerprint)}/part.json"
        data = self.blobs.read(where)
        if data is None:
            return None
        record, _ = unseal(PartRecord, data, self.uri_of(where))
        if (record.stage, record.fingerprint) != (stage, fingerprint):
            raise CorruptArtifact(
                f"{self.uri_of(where)}: holds part {record.stage}/{record.fingerprint}; delete that folder and rerun"
            )
        return record

    def has_parts(self, stage: str, fingerprints: Collection[str]) -> set[str]:
        """Those of `fingerprints` that are committed."""
        paths = {f"{self.part_folder(stage, fp)}/part.json": fp for fp in fingerprints}
        if self.local_root is not None or len(paths) <= FEW_PARTS:
            return {fp for path, fp in paths.items() if self.blobs.exists(path)}
        return {paths[path] for path in self.blobs.find(f"parts/{_safe(stage)}") if path in paths}

    def read_parts(self, stage: str, fingerprints: Collection[str]) -> dict[str, PartRecord]:
        """Records by fingerprint of those that are committed; errors as in `read_part`."""
        num_threads = 1 if self.local_root is not None else REMOTE_READS
        with ThreadPoolExecutor(num_threads) as pool:
            records = pool.map(lambda fp: self.read_part(stage, fp), fingerprints)
            return {fp: record for fp, record in zip(fingerprints, records, strict=True) if record is not None}

    def part_uri(self, stage: str, fingerprint: str) -> str:
        """The URI (or local path) of a part's folder."""
        return self.uri_of(self.part_folder(stage, fingerprint))

    def file_uri(self, record: PartRecord, file: FileRecord) -> str:
        """Where one output file of a part lies."""
        return f"{self.part_uri(record.stage, record.fingerprint)}/{file.location or file.path}"

    # ---- manifests

    def manifest_path(self, stage: str, name: str, fingerprint: str) -> str:
        """Path of a manifest, relative to the store."""
        return f"artifacts/{_safe(stage)}/{_safe(name)}/{_safe(fingerprint)}.json"

    def has_manifest(self, stage: str, name: str, fingerprint: str) -> bool:
        """Whether that artifact was finished."""
        return self.blobs.exists(self.manifest_path(stage, name, fingerprint))

    def read_manifest(self, path: str) -> tuple[Manifest, str] | None:
        """The manifest at a path relative to the store and its seal, or None; CorruptArtifact if its seal is broken."""
        data = self.blobs.read(path)
        if data is None:
            return None
        manifest, digest = unseal(Manifest, data, self.uri_of(path))
        if path != self.manifest_path(manifest.stage, manifest.node.split("/", 1)[-1], manifest.fingerprint):
            raise CorruptArtifact(f"{self.uri_of(path)}: holds the manifest of {manifest.node}; delete it and rerun")
        return manifest, digest

    def write_manifest(self, manifest: Manifest) -> tuple[Manifest, str, str]:
        """The stored manifest, its path and its seal.

        An artifact that is already there stays as it is if it names the same part records. It is replaced, with a
        warning, only when a part had to be made again and came out different (network, GPU).
        """
        path = self.manifest_path(manifest.stage, manifest.node.split("/", 1)[1], manifest.fingerprint)
        data, digest = seal(manifest)
        self.fault("manifest:before")
        with commit.explained(self.uri_of(path)):
            if not self.blobs.create(path, data):
                existing = self.read_manifest(path)
                if existing is not None and existing[0].parts == manifest.parts:
                    return existing[0], path, existing[1]
                log.warning("event=manifest_replaced node=%s path=%s reason=parts_differ", manifest.node, path)
                self.blobs.write(path, data)
        self.fault("manifest:after")
        return manifest, path, digest

    def manifest_paths(self) -> list[str]:
        """Paths of all manifests, sorted."""
        return sorted(path for path in self.blobs.find("artifacts") if path.endswith(".json"))

    def as_input(self, manifest: Manifest) -> Input:
        """`manifest` as its consumers see it."""
        uris = {p.name: self.part_uri(p.record.stage, p.record.fingerprint) for p in manifest.parts}
        return as_input(manifest, uris)

    # ---- references

    def ref_path(self, experiment: str, node: str) -> str:
        """Path of a reference, relative to the store."""
        return f"refs/{_safe(experiment)}/{'/'.join(_safe(step) for step in node.split('/'))}.json"

    def write_ref(self, ref: Ref) -> bool:
        """Point `ref.experiment`'s name of the node at a manifest; False if it already does."""
        path = self.ref_path(ref.experiment, ref.node)
        data, _ = seal(ref)
        if self.blobs.read(path) == data:
            return False
        self.fault("ref:before")
        with commit.explained(self.uri_of(path)):
            self.blobs.write(path, data)
        self.fault("ref:after")
        return True

    def read_ref(self, experiment: str, node: str) -> Ref | None:
        """The experiment's reference to a node, or None; CorruptArtifact if its seal is broken."""
        path = self.ref_path(experiment, node)
        data = self.blobs.read(path)
        return None if data is None else unseal(Ref, data, self.uri_of(path))[0]

    def refs_of_node(self, node: str) -> list[Ref]:
        """What every experiment calls `node`, sorted by experiment."""
        refs = (self.read_ref(experiment, node) for experiment in self.experiments())
        return [ref for ref in refs if ref is not None]

    def refs_of_experiment(self, experiment: str) -> list[Ref]:
        """All references of an experiment, sorted by node."""
        folder = f"refs/{_safe(experiment)}"
        nodes = sorted(path.removeprefix(f"{folder}/").removesuffix(".json") for path in self.blobs.find(folder))
        refs = (self.read_ref(experiment, node) for node in nodes)
        return [ref for ref in refs if ref is not None]

    def experiments(self) -> list[str]:
        """Names of the experiments that have references, sorted."""
        return self.blobs.folders("refs")

    # ---- housekeeping

    def clean_scratch(self) -> int:
        """Number of abandoned attempts removed: those of dead processes of this host, and very old ones of others."""
        root = self.local_root
        if root is None or not (root / "tmp").is_dir():
            return 0
        removed = 0
        for folder in sorted((root / "tmp").iterdir()):
            owner = Identity.from_token(folder.name.rsplit("-", 1)[0])
            alive = None if owner is None else owner.is_alive()
            if alive is None:
                alive = self.blobs.age_seconds(f"tmp/{folder.name}") < STALE_SCRATCH_SECONDS
            if not alive:
                commit.remove_tree(folder)
                removed += 1
        if removed:
            log.info("event=scratch_cleaned store=%s attempts=%d", self.uri, removed)
        return removed


def make_ref(experiment: str, node: Node, manifest: Manifest, path: str, digest: str) -> Ref:
    """The reference that names `manifest` in `experiment`."""
    return Ref(
        experiment=experiment,
        node=node.key,
        manifest_path=path,
        manifest_sha256=digest,
        fingerprint=manifest.fingerprint,
        root=manifest.root,
    )


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a file of the store; use letters, digits and . _ = + -")
    return name
