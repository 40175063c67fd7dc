"""Where everything lies: parts by content, manifests, references, checkpoints; on a local disk or an object store.

What is called how is `layout`'s business. A committed part is never modified and never deleted by a stage.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipelines.flow.live import Report, no_report
from pipelines.flow.segments import segments_name, segments_of
from pipelines.flow.stage import ArtifactReference, Input, InputFile, InputPart, Node
from pipelines.flow.store import commit, layout, parts, scratch
from pipelines.flow.store.artifact import FileRecord, Manifest, PartRecord, Ref, as_input, seal, unseal
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.commit import Fault, no_fault
from pipelines.flow.store.manifests.inputs import InputParts
from pipelines.flow.store.manifests.paged import PagedParts, open_manifest, sealed_manifest
from pipelines.flow.store.scratch import ScratchWriter
from x2vlm.errors import CorruptArtifact

log = logging.getLogger(__name__)


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

    def begin_part(self, stage: str, fingerprint: str, report: Report = no_report) -> ScratchWriter:
        """A writer with an empty folder. Local stores keep it below `tmp/`, so that the commit is one rename."""
        return scratch.begin(self.blobs, stage, fingerprint, report)

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
        return commit.commit_part(self.blobs, self.fault, writer, record, file_rows or {}, restore, verify_existing)

    def discard(self, writer: ScratchWriter) -> None:
        """Remove an attempt's scratch folder, if it is still there."""
        scratch.remove_tree(writer.folder)

    def read_part(self, stage: str, fingerprint: str) -> PartRecord | None:
        """The record of a committed part, or None; CorruptArtifact if its seal is broken or it is another part's."""
        return parts.read_part(self.blobs, stage, fingerprint)

    def read_parts(self, stage: str, fingerprints: Collection[str]) -> dict[str, PartRecord]:
        """Records by fingerprint of those that are committed; errors as in `read_part`."""
        return parts.read_parts(self.blobs, stage, fingerprints)

    def has_parts(self, stage: str, fingerprints: Collection[str]) -> set[str]:
        """Those of `fingerprints` that are committed."""
        return parts.committed(self.blobs, stage, fingerprints)

    def file_uri(self, record: PartRecord, file: FileRecord) -> str:
        """Where one output file of a part lies."""
        return self.uri_of(layout.file_path(record, file))

    # ---- manifests

    def read_manifest(self, path: str) -> tuple[Manifest, str] | None:
        """The manifest at a path relative to the store and its seal, or None; CorruptArtifact if its seal is broken."""
        data = self.blobs.read(path)
        if data is None:
            return None
        manifest, digest = open_manifest(self.blobs, data, self.uri_of(path))
        if path != layout.manifest_path(manifest.stage, manifest.node.split("/", 1)[-1], manifest.fingerprint):
            raise CorruptArtifact(f"{self.uri_of(path)}: holds the manifest of {manifest.node}; delete it and rerun")
        return manifest, digest

    def write_manifest(self, manifest: Manifest) -> tuple[Manifest, str, str]:
        """The stored manifest, its path and its seal.

        An artifact that is already there stays as it is if it names the same part records. It is replaced, with a
        warning, only when a part had to be made again and came out different (network, GPU).
        """
        path = layout.manifest_path(manifest.stage, manifest.node.split("/", 1)[1], manifest.fingerprint)
        data, digest = sealed_manifest(manifest)
        self.fault("manifest:before")
        with scratch.explained(self.uri_of(path)):
            if isinstance(manifest.parts, PagedParts):
                self.blobs.create(manifest.parts.table.path, manifest.parts.data)
                self.fault("manifest:table_written")
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
        return sorted(path for path in self.blobs.find(layout.ARTIFACTS) if path.endswith(".json"))

    def as_input(self, manifest: Manifest, sha256: str = "") -> Input:
        """`manifest` as its consumers see it; with its seal `sha256` parts can name it (`Input.reference`)."""
        path = layout.manifest_path(manifest.stage, manifest.node.split("/", 1)[1], manifest.fingerprint)
        if isinstance(manifest.parts, PagedParts):
            parts = InputParts(manifest.parts, manifest.stage, self.uri_of, self._segments)
            return Input(manifest.node, manifest.root, parts, manifest.summary, path, sha256)
        return as_input(manifest, path, sha256, self.file_uri, self._segments)

    def open_artifact(self, reference: ArtifactReference) -> Input:
        """The artifact that `reference` names; CorruptArtifact if its manifest is gone or another one by now."""
        found = self.read_manifest(reference.manifest_path)
        if found is None or found[1] != reference.manifest_sha256:
            raise CorruptArtifact(
                f"{self.uri_of(reference.manifest_path)}: the manifest of {reference.node} is "
                f"{'gone' if found is None else 'not the one that the plan read'}; rerun the same command"
            )
        return self.as_input(*found)

    def _segments(self, part: InputPart, file: InputFile) -> Mapping[str, InputFile]:
        listing = part.file(segments_name(file.path))
        relative = listing.uri.removeprefix(f"{self.uri}/")
        data = self.blobs.read(relative)
        if data is None or hashlib.sha256(data).hexdigest() != listing.sha256:
            raise CorruptArtifact(f"{listing.uri}: gone or changed; rerun the node that wrote it with --force")
        return segments_of(file, data)

    # ---- references

    def write_ref(self, ref: Ref) -> bool:
        """Point `ref.experiment`'s name of the node at a manifest; False if it already does."""
        path = layout.ref_path(ref.experiment, ref.node)
        data, _ = seal(ref)
        if self.blobs.read(path) == data:
            return False
        self.fault("ref:before")
        with scratch.explained(self.uri_of(path)):
            self.blobs.write(path, data)
        self.fault("ref:after")
        return True

    def read_ref(self, experiment: str, node: str) -> Ref | None:
        """The experiment's reference to a node, or None; CorruptArtifact if its seal is broken."""
        path = layout.ref_path(experiment, node)
        data = self.blobs.read(path)
        return None if data is None else unseal(Ref, data, self.uri_of(path))[0]

    def refs_of_node(self, node: str) -> list[Ref]:
        """What every experiment calls `node`, sorted by experiment."""
        refs = (self.read_ref(experiment, node) for experiment in self.experiments())
        return [ref for ref in refs if ref is not None]

    def refs_of_experiment(self, experiment: str) -> list[Ref]:
        """All references of an experiment, sorted by node."""
        folder = layout.refs_folder(experiment)
        nodes = sorted(path.removeprefix(f"{folder}/").removesuffix(".json") for path in self.blobs.find(folder))
        refs = (self.read_ref(experiment, node) for node in nodes)
        return [ref for ref in refs if ref is not None]

    def experiments(self) -> list[str]:
        """Names of the experiments that have references, sorted."""
        return self.blobs.folders(layout.REFS)

    # ---- housekeeping

    def clean_scratch(self) -> int:
        """Number of abandoned attempts removed: those of dead processes of this host, and very old ones of others."""
        return scratch.clean(self.blobs)


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
