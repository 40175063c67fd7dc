"""Proof of stored artifacts: everything that can be recomputed from bytes is, and compared with what records say.

Nothing here trusts the code that wrote the records: it reads raw bytes and walks from a manifest to its sources.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from pipelines.flow.fingerprint import merkle_root, sha256_of, sha256_of_file, sha256_of_stream
from pipelines.flow.segments import hashes_inside
from pipelines.flow.stage import Count, SourceFile
from pipelines.flow.store.artifact import (
    InputRecord,
    Manifest,
    ManifestPart,
    PartRecord,
    Ref,
    SealedManifest,
    seal,
    unseal,
)
from pipelines.flow.store.blobs import local_path_of
from pipelines.flow.store.layout import (
    ARTIFACTS,
    RECORD_NAME,
    REFS,
    file_path,
    manifest_path,
    part_folder,
    record_path,
)
from pipelines.flow.store.manifests.paged import PagedParts, TableRecord, open_manifest
from pipelines.flow.store.source_trees import tree_input, tree_of
from pipelines.flow.store.store import Store
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable, StageFailed

RERUN = "rerun the node with force, or restore the file from a backup"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as recorded."""

    kind: str  # snake_case, for example "file_changed"
    where: str
    expected: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: expected {self.expected}, found {self.found}; {self.remedy}"


def _local(uri: str) -> Path:
    path = local_path_of(uri)
    if path is None:
        raise SourceUnavailable(f"{uri}: not a file of this machine")
    return path


@dataclass
class StoreAudit:
    """State of one walk: what was seen, what was wrong. `full` also hashes every file."""

    store: Store
    full: bool = True
    findings: list[Finding] = field(default_factory=list)
    manifests: dict[str, SealedManifest | None] = field(default_factory=dict)  # by path; None where unreadable
    num_files: int = 0
    num_bytes: int = 0
    _parts: set[tuple[str, str]] = field(default_factory=set)
    _sources: dict[str, tuple[str, int] | None] = field(default_factory=dict)
    _inside: dict[str, set[tuple[str, str]]] = field(default_factory=dict)  # by fingerprint of the reader

    @property
    def num_parts(self) -> int:
        return len(self._parts)

    def note(self, kind: str, where: str, expected: object, found: object, remedy: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, where, str(expected), str(found), remedy))

    # ---- manifests

    def visit(self, path: str, sha256: str = "", root: str = "", by: str = "") -> None:
        """Check the manifest at `path`, all it names and all its ancestors. `by` expects this seal and this root."""
        where = self.store.uri_of(path)
        if path not in self.manifests:
            self.manifests[path] = self._read_manifest(path)
            if stored := self.manifests[path]:
                self._check_manifest(stored, where)
        stored = self.manifests[path]
        if stored and sha256 and stored.sha256 != sha256:
            remedy = f"the manifest was replaced after {by} was made; rerun {by}"
            self.note("manifest_replaced", f"{where}, as named by {by}", sha256, stored.sha256, remedy)
        if stored and root and stored.manifest.root != root:
            self.note("input_root_differs", f"{where}, as named by {by}", root, stored.manifest.root, f"rerun {by}")

    def _read_manifest(self, path: str) -> SealedManifest | None:
        where = self.store.uri_of(path)
        data = self.store.blobs.read(path)
        if data is None:
            self.note("manifest_missing", where, "a manifest", "nothing", "rerun the node that wrote it")
            return None
        try:
            manifest, sha256 = open_manifest(self.store.blobs, data, where)
            _check_names(manifest)
        except (ConfigError, CorruptArtifact) as error:
            self.note("manifest_corrupt", where, "an intact sealed manifest", error, "delete it and rerun its node")
            return None
        return SealedManifest(manifest, path, sha256)

    def _check_manifest(self, stored: SealedManifest, where: str) -> None:
        manifest = stored.manifest
        own_path = manifest_path(*manifest.node.partition("/")[::2], manifest.fingerprint)
        if stored.path != own_path:
            self.note("manifest_misplaced", where, own_path, stored.path, "move it back, or rerun the node")
        self._same("fingerprint_differs", where, manifest.fingerprint, _identity(manifest, {"parts": _names(manifest)}))
        allowed = self._visit_inputs(manifest)
        totals: dict[str, Count] = {}
        leaves: list[str] = []
        for part in manifest.parts:
            leaves.append(sha256_of([part.name, part.record.content_sha256]))
            for unit, stated in part.record.counts.items():
                count = stated.to_count()
                totals[unit] = totals.get(unit, Count(0, 0)) + count
                self._conserved(f"{where}, part {part.name}, {unit}", count.check)
            self._check_part(manifest, part, allowed)
        self._same("root_differs", where, manifest.root, merkle_root(leaves))
        if isinstance(manifest.parts, PagedParts):
            self._check_chunks(manifest.parts.table, leaves)
        for unit, total in manifest.counts.items():
            self._conserved(f"{where}, {unit}", total.to_count().check)
        stated_totals = {unit: total.to_count() for unit, total in manifest.counts.items()}
        self._same("totals_differ", where, stated_totals, totals)

    def _check_chunks(self, table: TableRecord, leaves: Sequence[str]) -> None:
        for number, chunk in enumerate(table.chunks):
            own = leaves[number * table.chunk_parts : (number + 1) * table.chunk_parts]
            where = f"{self.store.uri_of(table.path)}, chunk {number}"
            self._same("chunk_root_differs", where, chunk.root, merkle_root(own))

    def _conserved(self, where: str, check: Any) -> None:
        try:
            check(where)
        except StageFailed as error:
            self.note("rows_lost", where, "in = out + dropped", error, "the stage has a bug; report it")

    def _visit_inputs(self, manifest: Manifest) -> set[tuple[str, str]] | None:
        """(slot, sha256) of every file the node may have read; None where an input is unreadable."""
        allowed: set[tuple[str, str]] | None = set()
        for item in manifest.inputs:
            if not item.manifest_path:
                self._check_source(item, manifest.node)
                found = {(item.slot, item.root)}
            else:
                self.visit(item.manifest_path, item.manifest_sha256, item.root, manifest.node)
                stored = self.manifests[item.manifest_path]
                files = [file for part in stored.manifest.parts for file in part.record.files] if stored else []
                found = {(item.slot, file.sha256) for file in files}
                if stored is None:
                    allowed = None
            allowed = None if allowed is None else allowed | found
        return allowed

    def _inside_files(self, manifest: Manifest) -> set[tuple[str, str]]:
        """(slot, sha256) of every segment, and of every group of segments, that the node may have read."""
        if manifest.fingerprint not in self._inside:
            found: set[tuple[str, str]] = set()
            for item in manifest.inputs:
                if stored := self.manifests.get(item.manifest_path):
                    found |= {(item.slot, sha256) for sha256 in self._hashes_inside(stored)}
            self._inside[manifest.fingerprint] = found
        return self._inside[manifest.fingerprint]

    def _hashes_inside(self, stored: SealedManifest) -> Iterator[str]:
        artifact = self.store.as_input(stored.manifest, stored.sha256)
        try:
            yield from hashes_inside(artifact.parts)
        except (CorruptArtifact, SourceUnavailable) as error:  # the check of files says the same of the listing
            self.note("listing_corrupt", self.store.uri_of(stored.path), "listings as written", error, RERUN)

    # ---- files

    def _check_source(self, item: InputRecord, reader: str) -> None:
        """An upstream file must still be what the node read."""
        where = f"{item.uri} ({item.node})"
        if item.uri not in self._sources:
            self._sources[item.uri] = self._hash(item.uri)
            self.num_files += 1
        found = self._sources[item.uri]
        remedy = f"restore the file as it was, or rerun {reader} and everything below it with the new one"
        if found is None:
            self.note("source_missing", where, f"sha256 {item.root}", "nothing readable", remedy)
        elif item.bytes is not None and found[1] != item.bytes:
            self.note("source_changed", where, f"{item.bytes} bytes", f"{found[1]} bytes", remedy)
        elif self.full and found[0] != item.root:
            self.note("source_changed", where, f"sha256 {item.root}", f"sha256 {found[0]}", remedy)

    def _check_part(self, manifest: Manifest, part: ManifestPart, allowed: set[tuple[str, str]] | None) -> None:
        record = part.record
        where = self.store.uri_of(part_folder(record.stage, record.fingerprint))
        self._same("record_seal_differs", f"{manifest.node}, part {part.name}", part.record_sha256, seal(record)[1])
        reads = [[read.slot, read.sha256] for read in record.reads]
        identity = _identity(manifest, {"spec": record.spec, "reads": reads})
        self._same("part_fingerprint_differs", where, record.fingerprint, identity)
        if allowed is not None:
            if any((read.slot, read.sha256) not in allowed for read in record.reads):
                allowed |= self._inside_files(manifest)
            for read in record.reads:
                if (read.slot, read.sha256) not in allowed:
                    expected = f"{read.path} with sha256 {read.sha256} among its inputs"
                    self.note("read_not_among_inputs", where, expected, "no such input file", f"rerun {manifest.node}")
        if (record.stage, record.fingerprint) not in self._parts:
            self._parts.add((record.stage, record.fingerprint))
            self._check_part_record(part)
            self._check_files(record)

    def _check_part_record(self, part: ManifestPart) -> None:
        path = record_path(part.record.stage, part.record.fingerprint)
        where = self.store.uri_of(path)
        data = self.store.blobs.read(path)
        if data is None:
            self.note("part_missing", where, RECORD_NAME, "nothing", RERUN)
            return
        try:
            _, sha256 = unseal(PartRecord, data, where)
        except CorruptArtifact as error:
            self.note("part_corrupt", where, "an intact sealed record", error, RERUN)
            return
        self._same("part_record_differs", where, part.record_sha256, sha256)

    def _check_files(self, record: PartRecord) -> None:
        known = {record_path(record.stage, record.fingerprint), *(file_path(record, file) for file in record.files)}
        for file in record.files:
            self.num_files += 1
            uri = self.store.file_uri(record, file)
            found = self._hash(uri)
            if found is None:
                self.note("file_missing", uri, f"{file.bytes} bytes, sha256 {file.sha256}", "nothing readable", RERUN)
            elif found[1] != file.bytes:
                self.note("file_changed", uri, f"{file.bytes} bytes", f"{found[1]} bytes", RERUN)
            elif self.full and found[0] != file.sha256:
                self.note("file_changed", uri, f"sha256 {file.sha256}", f"sha256 {found[0]}", RERUN)
        if self.store.blobs.local_root is not None:  # object stores keep the losers of a race beside the winner
            for extra in sorted({*self.store.blobs.find(part_folder(record.stage, record.fingerprint))} - known):
                self.note("file_unexpected", self.store.uri_of(extra), "no such file", "a file", "move it elsewhere")

    def _hash(self, uri: str) -> tuple[str, int] | None:
        """(sha256, bytes) of a file, sha256 "" where only the size was asked for; None if it cannot be read."""
        try:
            if (tree := tree_of(uri, "?")) is not None:
                result = self._hash_tree(tree)
            elif (path := local_path_of(uri)) is not None:
                result = sha256_of_file(path) if self.full else ("", path.stat().st_size)
            else:
                result = self._hash_remote(uri)
        except (OSError, SourceUnavailable):
            return None
        self.num_bytes += result[1] if self.full else 0
        return result

    def _hash_tree(self, tree: SourceFile) -> tuple[str, int]:
        """Root and bytes of the files of a tree: as its plan gave them, contents or sizes and times."""
        found = tree_input(tree, lambda file: sha256_of_file(_local(file.uri))[0] if self.full else "")
        return found.root if self.full else "", sum(file.bytes for file in found.parts[0].files)

    def _hash_remote(self, uri: str) -> tuple[str, int]:
        blobs = self.store.blobs
        inside = blobs.local_root is None and uri.startswith(f"{blobs.uri}/")
        fs = blobs.fs if inside else fsspec.core.url_to_fs(uri)[0]
        if not self.full:
            return "", int(fs.info(uri)["size"])
        with fs.open(uri, "rb") as stream:
            return sha256_of_stream(stream)

    # ---- references

    def check_refs(self) -> None:
        """References to what was visited must be intact, lie at their own name and agree with the manifest."""
        nodes = {stored.manifest.node for stored in self.manifests.values() if stored}
        nodes |= {path.removeprefix(f"{ARTIFACTS}/").rsplit("/", 1)[0] for path in self.manifests}
        for path in self.store.blobs.find(REFS):
            _, experiment, node = path.removesuffix(".json").split("/", 2)
            if node in nodes:
                self._check_ref(path, experiment, node)

    def _check_ref(self, path: str, experiment: str, node: str) -> None:
        where = self.store.uri_of(path)
        remedy = f"delete it and run experiment {experiment} again; nothing is recomputed"
        try:
            ref, _ = unseal(Ref, self.store.blobs.read(path) or b"", where)
        except CorruptArtifact as error:
            self.note("ref_corrupt", where, "an intact sealed reference", error, remedy)
            return
        if (ref.experiment, ref.node) != (experiment, node):
            found = f"the reference of {ref.experiment}, {ref.node}"
            self.note("ref_misplaced", where, f"the reference of {experiment}, {node}", found, remedy)
        if ref.manifest_path not in self.manifests:
            if not self.store.blobs.exists(ref.manifest_path):
                self.note("ref_dangling", where, ref.manifest_path, "nothing", remedy)
            return
        if stored := self.manifests[ref.manifest_path]:
            actual = (stored.sha256, stored.manifest.fingerprint, stored.manifest.root)
            named = (ref.manifest_sha256, ref.fingerprint, ref.root)
            if named != actual:
                self.note("ref_differs", where, actual, named, remedy)

    def _same(self, kind: str, where: str, recorded: object, computed: object) -> None:
        if recorded != computed:
            self.note(kind, where, f"recorded {recorded}", f"computed {computed}", RERUN)


def _check_names(manifest: Manifest) -> None:
    """ConfigError if it names a node or a part that no store has a place for; whoever sealed it was not our code."""
    manifest_path(*manifest.node.partition("/")[::2], manifest.fingerprint)
    for _, fingerprint in _names(manifest):
        part_folder(manifest.stage, fingerprint)


def _names(manifest: Manifest) -> list[list[str]]:
    """(name, fingerprint) of every part."""
    if isinstance(manifest.parts, PagedParts):
        return [list(pair) for pair in zip(manifest.parts.names, manifest.parts.fingerprints, strict=True)]
    return [[part.name, part.record.fingerprint] for part in manifest.parts]


def _identity(manifest: Manifest, rest: Mapping[str, Any]) -> str:
    """The fingerprint of an artifact or part of this node, made from the manifest alone."""
    return sha256_of({"stage": manifest.stage, "version": manifest.version, "config": manifest.config, **rest})
