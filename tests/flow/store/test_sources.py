"""Upstream files are hashed once, and again whenever they may have changed."""

import hashlib
from pathlib import Path

import fsspec
import pytest

from pipelines.flow.stage import SourceFile
from pipelines.flow.store import sources
from pipelines.flow.store.sources import CACHE_PATH, SourceHashes
from pipelines.flow.store.store import Store
from x2vlm.errors import SourceUnavailable


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Paths of the local files that were really read."""
    read: list[str] = []
    real = sources.sha256_of_file

    def watched(path: Path):
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(sources, "sha256_of_file", watched)
    return read


def source_file(tmp_path: Path, text: str = "hello") -> Path:
    path = tmp_path / "rows.tsv"
    path.write_text(text)
    return path


def test_the_input_says_what_was_found(tmp_path: Path, store: Store):
    found = SourceHashes(store).fingerprint(SourceFile(str(source_file(tmp_path)), card="coco"))
    digest = hashlib.sha256(b"hello").hexdigest()
    assert (found.node, found.root) == ("source:coco", digest)
    [part] = found.parts
    [file] = part.files
    assert part.name == file.path == "rows.tsv"
    assert (file.bytes, file.sha256, file.uri) == (5, digest, str(tmp_path / "rows.tsv"))


def test_a_settled_file_is_hashed_once(tmp_path: Path, store: Store, hashed, age):
    path = source_file(tmp_path)
    age(path, 10)
    source = SourceFile(str(path), card="coco")
    first = SourceHashes(store).fingerprint(source)
    assert SourceHashes(store).fingerprint(source) == first
    assert hashed == ["rows.tsv"]


def test_a_file_changed_a_moment_ago_is_not_trusted(tmp_path: Path, store: Store, hashed):
    source = SourceFile(str(source_file(tmp_path)), card="coco")
    for _ in range(2):
        SourceHashes(store).fingerprint(source)
    assert hashed == ["rows.tsv", "rows.tsv"]


def test_changed_files_are_hashed_again(tmp_path: Path, local_store: Store, hashed, age):
    path = source_file(tmp_path)
    age(path, 10)
    source = SourceFile(str(path), card="coco")
    roots = [SourceHashes(local_store).fingerprint(source).root]
    path.write_text("hullo")
    age(path, 20)
    roots.append(SourceHashes(local_store).fingerprint(source).root)
    assert roots == [hashlib.sha256(text).hexdigest() for text in (b"hello", b"hullo")]


def test_a_damaged_cache_costs_only_time(tmp_path: Path, local_store: Store, hashed, age, caplog):
    path = source_file(tmp_path)
    age(path, 10)
    source = SourceFile(str(path), card="coco")
    SourceHashes(local_store).fingerprint(source)
    cache = Path(local_store.uri) / CACHE_PATH
    cache.write_bytes(b"not json\n" + cache.read_bytes() + b'{"uri": "half')
    SourceHashes(local_store).fingerprint(source)
    assert hashed == ["rows.tsv"]
    assert caplog.text.count("event=source_hash_line_ignored") == 2
    cache.unlink()
    cache.mkdir()
    with pytest.raises(IsADirectoryError):
        SourceHashes(local_store)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, local_store: Store, age, caplog):
    path = source_file(tmp_path)
    age(path, 10)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "state").write_text("in the way")
    SourceHashes(local_store).fingerprint(SourceFile(str(path), card="coco"))
    assert "event=source_hash_not_remembered" in caplog.text


def test_published_digests_are_compared_without_regard_to_case(tmp_path: Path, local_store: Store):
    path, digest = source_file(tmp_path), hashlib.sha256(b"hello").hexdigest()
    SourceHashes(local_store).fingerprint(SourceFile(str(path), card="coco", sha256=digest.upper()))
    with pytest.raises(SourceUnavailable, match=r"card coco: .*download it again, or correct the card"):
        SourceHashes(local_store).fingerprint(SourceFile(str(path), card="coco", sha256="0" * 64))


def test_sources_may_lie_in_an_object_store(s3_endpoint: str, local_store: Store):
    from tests.flow.conftest import s3_store

    store = s3_store(s3_endpoint)
    store.blobs.write("raw/rows.tsv", b"hello")
    source = SourceFile(store.uri_of("raw/rows.tsv"), card="coco")
    first = SourceHashes(store).fingerprint(source)
    assert first.root == hashlib.sha256(b"hello").hexdigest()
    assert first.parts[0].files[0].uri == source.uri
    assert store.blobs.read(CACHE_PATH) is not None
    assert SourceHashes(store).fingerprint(source) == first
    store.blobs.write("raw/rows.tsv", b"hullo")
    assert SourceHashes(store).fingerprint(source).root == hashlib.sha256(b"hullo").hexdigest()
    with pytest.raises(SourceUnavailable, match="card coco"):
        SourceHashes(store).fingerprint(SourceFile(store.uri_of("raw/none.tsv"), card="coco"))


def test_sources_on_another_kind_of_file_system_are_read(local_store: Store):
    fsspec.filesystem("memory").pipe_file("/raw/rows.tsv", b"hello")
    found = SourceHashes(local_store).fingerprint(SourceFile("memory://raw/rows.tsv", card="coco"))
    assert found.root == hashlib.sha256(b"hello").hexdigest()
