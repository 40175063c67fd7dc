"""Manifests of many parts: what readers see of them is what they see of small ones, and any changed byte shows."""

from pathlib import Path

import pytest

from pipelines.flow.audit.audit import audit
from pipelines.flow.fingerprint import merkle_join, merkle_root
from pipelines.flow.store.artifact import ManifestPart, content_root, seal
from pipelines.flow.store.manifests import paged
from pipelines.flow.store.manifests.paged import PagedParts, PartsBuilder
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import committed_tree, roots, run_all
from x2vlm.errors import CorruptArtifact


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests of more than one part are paged, two parts to a chunk."""
    monkeypatch.setattr(paged, "INLINE_PARTS", 1)
    monkeypatch.setattr(paged, "CHUNK_PARTS", 2)


def filter_manifest(store: Store, name: str = "a"):
    ref = store.read_ref("exp", f"filter/{name}")
    return store.read_manifest(ref.manifest_path)[0], ref


def test_the_root_of_leaves_is_that_of_the_roots_of_their_chunks():
    for number in (0, 1, 3, 4, 5, 8, 9, 31):
        leaves = [f"{leaf:064x}" for leaf in range(number)]
        for size in (1, 2, 4, 8):
            chunks = [merkle_root(leaves[start : start + size]) for start in range(0, number, size)]
            assert merkle_join(chunks) == merkle_root(leaves)


def test_a_paged_store_has_the_roots_of_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = run_all(toy.toy_graph(tmp_path / "sources"), Store(tmp_path / "plain"))
    monkeypatch.setattr(paged, "INLINE_PARTS", 1)
    monkeypatch.setattr(paged, "CHUNK_PARTS", 2)
    store = Store(tmp_path / "paged")
    found = run_all(toy.toy_graph(tmp_path / "sources"), store)
    assert roots(found) == roots(plain)
    assert committed_tree(tmp_path / "paged") == committed_tree(tmp_path / "plain")
    manifest, _ = filter_manifest(store)
    assert isinstance(manifest.parts, PagedParts)
    listed = [part.record for part in plain.nodes["filter/a"].manifest.parts]
    assert [part.record.model_copy(update={"seconds": 0.0}) for part in manifest.parts] == [
        record.model_copy(update={"seconds": 0.0}) for record in listed
    ]
    assert manifest.root == content_root({part.name: part.record for part in manifest.parts})


def test_what_is_read_is_what_was_committed(tmp_path: Path, small_pages: None):
    store = Store(f"memory://{tmp_path.name}")
    run_all(toy.toy_graph(tmp_path, ["a"]), store)
    manifest, _ = filter_manifest(store)
    for place, part in enumerate(manifest.parts):
        assert part.record == store.read_part("filter", part.record.fingerprint)
        assert part == manifest.parts[place] == manifest.parts[place - len(manifest.parts)]
        assert part.record_sha256 == seal(part.record)[1]
        assert isinstance(part, ManifestPart)
    assert [part.name for part in manifest.parts[1:3]] == ["00001", "00002"]
    with pytest.raises(IndexError):
        manifest.parts[len(manifest.parts)]
    artifact = store.as_input(manifest)
    assert [part.name for part in artifact.parts] == [part.name for part in manifest.parts]
    one = artifact.part("00002")
    assert one.files == (one.file("kept.txt"),)
    assert one.summary == manifest.parts[2].record.summary
    assert store.blobs.read(one.files[0].uri.removeprefix(f"{store.uri}/")) is not None


def test_a_second_run_over_paged_manifests_does_nothing(tmp_path: Path, local_store: Store, small_pages: None):
    graph = toy.toy_graph(tmp_path)
    run_all(graph, local_store)
    assert run_all(graph, local_store).is_noop
    assert not audit(local_store, "join/all").findings


def test_manifests_written_before_are_read_beside_paged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    graph, store = toy.toy_graph(tmp_path), Store(tmp_path / "store")
    run_all(graph, store, targets=["read/*", "filter/a"])
    monkeypatch.setattr(paged, "INLINE_PARTS", 1)
    monkeypatch.setattr(paged, "CHUNK_PARTS", 2)
    assert run_all(graph, store).num_parts_run == 4 + 1
    assert [isinstance(filter_manifest(store, name)[0].parts, PagedParts) for name in "ab"] == [False, True]
    assert run_all(graph, store).is_noop


def test_every_flipped_byte_of_the_table_is_noticed_and_its_chunk_named(
    tmp_path: Path, local_store: Store, small_pages: None
):
    run_all(toy.toy_graph(tmp_path, ["a"]), local_store)
    manifest, ref = filter_manifest(local_store)
    table = manifest.parts.table
    path = Path(local_store.uri_of(table.path))
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        damaged = [n for n, one in enumerate(table.chunks) if one.start <= place < one.start + one.bytes]
        with pytest.raises(CorruptArtifact, match=f"in chunks {damaged or 'none'}".replace("[", r"\[")):
            local_store.read_manifest(ref.manifest_path)
    for changed in (data[:-1], data + b"x", b""):
        path.write_bytes(changed)
        assert {finding.kind for finding in audit(local_store, "filter/a").findings} == {"manifest_corrupt"}
    path.unlink()
    with pytest.raises(CorruptArtifact, match="gone"):
        local_store.read_manifest(ref.manifest_path)


def test_a_table_changed_together_with_its_seal_is_found_by_the_audit(
    tmp_path: Path, local_store: Store, small_pages: None
):
    """Whoever rewrites a record in the table and seals it again still contradicts the part and the root."""
    run_all(toy.toy_graph(tmp_path, ["a"]), local_store)
    manifest, ref = filter_manifest(local_store)
    builder = PartsBuilder()
    for part in manifest.parts:
        builder.add(part.name, part.record.model_copy(update={"summary": {"longest": 1}}))
    parts, _ = builder.close(manifest.node, manifest.fingerprint)
    Path(local_store.uri_of(ref.manifest_path)).unlink()
    local_store.write_manifest(manifest.model_copy(update={"parts": parts}))
    kinds = {finding.kind for finding in audit(local_store, "filter/a").findings}
    assert kinds == {"manifest_replaced", "root_differs", "part_record_differs", "ref_differs"}


def test_a_part_made_again_with_other_bytes_replaces_a_paged_manifest(
    tmp_path: Path, local_store: Store, small_pages: None
):
    run_all(toy.toy_graph(tmp_path, ["a"]), local_store)
    manifest, ref = filter_manifest(local_store)
    assert local_store.write_manifest(manifest)[2] == ref.manifest_sha256  # the same parts: it stays
    builder = PartsBuilder()
    for part in manifest.parts:
        builder.add(part.name, part.record.model_copy(update={"seconds": 99.0}))
    parts, root = builder.close(manifest.node, manifest.fingerprint)
    assert root == manifest.root
    _, path, sha256 = local_store.write_manifest(manifest.model_copy(update={"parts": parts}))
    assert (path == ref.manifest_path, sha256 == ref.manifest_sha256) == (True, False)
    assert local_store.read_manifest(path)[0].parts[0].record.seconds == 99.0
