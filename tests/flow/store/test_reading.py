"""What a part reads has the recorded sha256, wherever it lies, or it is not read at all."""

import os
from pathlib import Path

import pytest

from pipelines.flow.fingerprint import sha256_of_file
from pipelines.flow.stage import InputFile
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from tests.support.flow.store_parts import FP, commit_texts
from x2vlm.errors import CorruptArtifact, SourceUnavailable
from x2vlm.stores import file_cache

TEXT = "some text of a part"


def input_of(store: Store, text: str = TEXT) -> InputFile:
    part = commit_texts(store, {"deep/a.txt": text})
    file = part.files[0]
    return InputFile(file.path, file.bytes, file.sha256, store.file_uri(part, file))


def reader_of(store: Store, tmp_path: Path, name: str = "links") -> StoreReader:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return StoreReader(store, folder, "00001", cache=tmp_path / "cache")


def damage(store: Store, file: InputFile) -> None:
    store.blobs.write(file.uri.removeprefix(f"{store.uri}/"), TEXT.replace("t", "T", 1).encode())


def test_bytes_arrive_whole(store: Store, tmp_path: Path):
    file, reader = input_of(store), reader_of(store, tmp_path)
    assert reader.local_path(file).read_text() == TEXT
    assert reader.local_path(file).name == "a.txt"
    with reader.open(file) as stream:
        assert stream.read() == TEXT.encode()


def test_damaged_bytes_are_refused_by_name(store: Store, tmp_path: Path):
    file = input_of(store)
    damage(store, file)
    with pytest.raises(CorruptArtifact) as caught:
        reader_of(store, tmp_path).local_path(file)
    for words in (file.uri, file.sha256, "part 00001", "deep/a.txt", "--force"):
        assert words in str(caught.value)


def test_damage_after_the_first_use_is_noticed_by_the_next_part(local_store: Store, tmp_path: Path, age):
    file = input_of(local_store)
    reader_of(local_store, tmp_path).local_path(file)
    damage(local_store, file)
    age(Path(file.uri), -5)
    with pytest.raises(CorruptArtifact):
        reader_of(local_store, tmp_path, "more").local_path(file)


def test_missing_files_are_named(store: Store, tmp_path: Path):
    file = input_of(store)
    for path in store.blobs.find("parts"):
        store.blobs.delete(path)
    with pytest.raises(SourceUnavailable, match=r"a\.txt"):
        reader_of(store, tmp_path).local_path(file)


def test_source_files_are_read_by_path_and_by_uri(local_store: Store, tmp_path: Path):
    path = tmp_path / "source file.txt"
    path.write_text(TEXT)
    digest, size = sha256_of_file(path)
    for uri in (str(path), f"file://{tmp_path}/source%20file.txt"):
        with reader_of(local_store, tmp_path).open(InputFile(path.name, size, digest, uri)) as stream:
            assert stream.read().decode() == TEXT


def test_a_remote_file_is_fetched_once_for_all_parts(s3_endpoint: str, tmp_path: Path):
    from tests.flow.conftest import s3_store

    store = s3_store(s3_endpoint)
    file = input_of(store)
    assert reader_of(store, tmp_path).local_path(file).read_text() == TEXT
    store.blobs.delete(file.uri.removeprefix(f"{store.uri}/"))
    assert reader_of(store, tmp_path, "another").local_path(file).read_text() == TEXT
    assert (tmp_path / "another" / file.sha256 / "a.txt").stat().st_nlink == 3


def test_a_damaged_cache_is_fetched_again(s3_endpoint: str, tmp_path: Path):
    from tests.flow.conftest import s3_store

    store = s3_store(s3_endpoint)
    file = input_of(store)
    reader_of(store, tmp_path).local_path(file)
    cached = tmp_path / "cache" / file.sha256[:2] / file.sha256
    cached.write_text(TEXT.replace("t", "T", 1))
    assert reader_of(store, tmp_path, "another").local_path(file).read_text() == TEXT
    assert cached.read_text() == TEXT


def test_a_full_cache_drops_the_longest_unused_and_hurts_no_reader(s3_endpoint: str, tmp_path: Path, monkeypatch):
    from tests.flow.conftest import s3_store

    store = s3_store(s3_endpoint)
    files = []
    for number in range(3):
        part = commit_texts(store, {"a.txt": f"text {number}"}, f"{number}{FP[1:]}")
        record = part.files[0]
        files.append(InputFile("a.txt", record.bytes, record.sha256, store.file_uri(part, record)))

    class Usage:
        free = 5 * files[0].bytes  # room for two of the three, and less than half of one more

    monkeypatch.setattr(file_cache.shutil, "disk_usage", lambda path: Usage)
    reader = reader_of(store, tmp_path)
    paths = []
    for number, file in enumerate(files):
        paths.append(reader.local_path(file))
        os.utime(paths[-1], (0, number))
    cached = {path.name for path in (tmp_path / "cache").glob("??/*")}
    assert cached == {files[1].sha256, files[2].sha256}
    assert [path.read_text() for path in paths] == ["text 0", "text 1", "text 2"]


def test_a_cache_that_cannot_be_written_only_costs_time(s3_endpoint: str, tmp_path: Path):
    from tests.flow.conftest import s3_store

    store = s3_store(s3_endpoint)
    (tmp_path / "cache").write_text("in the way")
    assert reader_of(store, tmp_path).local_path(input_of(store)).read_text() == TEXT


def test_remote_sources_outside_the_store_are_read_too(local_store: Store, tmp_path: Path):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/elsewhere/a.txt", TEXT.encode())
    (tmp_path / "copy").write_text(TEXT)
    digest, size = sha256_of_file(tmp_path / "copy")
    file = InputFile("a.txt", size, digest, "memory://elsewhere/a.txt")
    assert reader_of(local_store, tmp_path).local_path(file).read_text() == TEXT


def test_the_default_cache_belongs_to_this_user(local_store: Store, tmp_path: Path):
    assert StoreReader(local_store, tmp_path).cache.name.endswith(f"-{os.getuid()}")
