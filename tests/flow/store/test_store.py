"""Parts, manifests and references on every kind of store: visible whole or not at all, and whoever is first wins."""

import errno
import logging
import os
import pickle
import threading
from pathlib import Path

import pytest

from pipelines.flow.store.artifact import Manifest, ManifestPart, PartRecord, Ref, seal
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.identity import this_process
from pipelines.flow.store.layout import manifest_path, part_folder, record_path
from pipelines.flow.store.parts import verify_files
from pipelines.flow.store.store import Store
from tests.support.flow.store_parts import FP, commit_texts, record
from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed

OTHER_FP = "cd" + "1" * 62


def text_of(store: Store, part: PartRecord, name: str) -> str:
    file = next(file for file in part.files if file.path == name)
    relative = store.file_uri(part, file).removeprefix(f"{store.uri}/")
    data = store.blobs.read(relative)
    assert data is not None
    return data.decode()


def manifest_of(part: PartRecord, **changes) -> Manifest:
    return Manifest(
        node="toy/a",
        stage="toy",
        version=1,
        fingerprint=OTHER_FP,
        config={},
        inputs=[],
        parts=[ManifestPart(name="all", record=part, record_sha256=seal(part)[1])],
        counts=part.counts,
        root="00" * 32,
    ).model_copy(update=changes)


def test_a_part_is_there_after_its_commit_and_not_before(store: Store):
    assert store.read_part("toy", FP) is None
    writer = store.begin_part("toy", FP)
    assert list(writer.path.iterdir()) == []
    (writer.path / "a.txt").write_text("hello")
    (writer.path / "deep").mkdir()
    (writer.path / "deep" / "b.bin").write_bytes(b"\x00\xff")
    assert store.read_part("toy", FP) is None
    assert store.has_parts("toy", [FP]) == set()
    part = store.commit_part(writer, record(), {"a.txt": 1})
    assert [(f.path, f.bytes, f.rows) for f in part.files] == [("a.txt", 5, 1), ("deep/b.bin", 2, None)]
    assert part.files[0].sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of "hello"
    assert store.read_part("toy", FP) == part
    assert text_of(store, part, "a.txt") == "hello"
    assert not writer.folder.exists()


def test_many_parts_are_found_by_one_question(store: Store):
    present = {f"{n:02x}" + "0" * 62 for n in range(20)}
    for fingerprint in present:
        commit_texts(store, {"a.txt": fingerprint}, fingerprint)
    absent = {f"{n:02x}" + "f" * 62 for n in range(20)}
    assert store.has_parts("toy", present | absent) == present
    assert store.has_parts("other", present) == set()
    assert store.read_parts("toy", sorted(present | absent)).keys() == present


def test_the_second_of_two_equal_commits_is_removed(store: Store):
    first, second = store.begin_part("toy", FP), store.begin_part("toy", FP)
    for writer in (first, second):
        (writer.path / "a.txt").write_text("same")
    one = store.commit_part(first, record(seconds=1.0))
    two = store.commit_part(second, record(seconds=2.0))
    assert one == two == store.read_part("toy", FP)
    files = [path for path in store.blobs.find("parts") if not path.endswith("part.json")]
    assert len(files) == 1
    assert not second.folder.exists()


def test_the_first_of_two_different_commits_stays_and_the_difference_is_logged(store: Store, caplog):
    one = commit_texts(store, {"a.txt": "first"})
    with caplog.at_level(logging.WARNING):
        two = commit_texts(store, {"a.txt": "second"})
    assert one == two
    assert text_of(store, two, "a.txt") == "first"
    assert "event=commit_differs stage=toy" in caplog.text


def test_many_writers_at_once_agree_on_one_part(store: Store):
    barrier, results = threading.Barrier(6), []

    def write(number: int) -> None:
        writer = store.begin_part("toy", FP)
        (writer.path / "a.txt").write_text(f"writer {number}")
        barrier.wait()
        results.append(store.commit_part(writer, record()))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert {part.model_dump_json() for part in results} == {store.read_part("toy", FP).model_dump_json()}
    assert len([path for path in store.blobs.find("parts") if not path.endswith("part.json")]) == 1
    verify_files(store.blobs, results[0])


def test_create_has_one_winner(store: Store):
    assert store.blobs.create("leases/x", b"one") is True
    assert store.blobs.create("leases/x", b"two") is False
    assert store.blobs.read("leases/x") == b"one"
    store.blobs.write("leases/x", b"three")
    assert store.blobs.read("leases/x") == b"three"
    store.blobs.delete("leases/x")
    store.blobs.delete("leases/x")
    assert store.blobs.read("leases/x") is None


def test_every_flipped_byte_of_a_part_record_is_noticed(store: Store):
    part = commit_texts(store, {"a.txt": "x"})
    path = record_path("toy", FP)
    data = store.blobs.read(path)
    for index in range(0, len(data), 7):
        store.blobs.write(path, data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(CorruptArtifact, match=FP):
            store.read_part("toy", FP)
    store.blobs.write(path, data)
    assert store.read_part("toy", FP) == part


def test_a_part_in_the_place_of_another_is_noticed(store: Store):
    commit_texts(store, {"a.txt": "x"})
    data = store.blobs.read(record_path("toy", FP))
    store.blobs.write(record_path("toy", OTHER_FP), data)
    with pytest.raises(CorruptArtifact, match=OTHER_FP):
        store.read_part("toy", OTHER_FP)


def test_a_damaged_file_is_replaced_only_when_asked(store: Store):
    part = commit_texts(store, {"a.txt": "right", "b.txt": "right too"})
    relative = store.file_uri(part, part.files[0]).removeprefix(f"{store.uri}/")
    store.blobs.write(relative, b"wrong")
    with pytest.raises(CorruptArtifact, match=r"a\.txt"):
        verify_files(store.blobs, part)
    commit_texts(store, {"a.txt": "right", "b.txt": "right too"})
    assert store.blobs.read(relative) == b"wrong"
    healed = commit_texts(store, {"a.txt": "right", "b.txt": "right too"}, verify_existing=True)
    verify_files(store.blobs, healed)
    assert store.read_part("toy", FP) == healed


def test_a_damaged_record_is_replaced_only_when_asked(store: Store):
    commit_texts(store, {"a.txt": "x"})
    store.blobs.write(record_path("toy", FP), b"{}")
    with pytest.raises(CorruptArtifact):
        commit_texts(store, {"a.txt": "x"})
    healed = commit_texts(store, {"a.txt": "x"}, verify_existing=True)
    assert store.read_part("toy", FP) == healed


def test_a_lost_part_comes_back_under_its_old_record(store: Store):
    part = commit_texts(store, {"a.txt": "x"}, changes={"seconds": 5.0})
    for path in store.blobs.find("parts"):
        store.blobs.delete(path)
    if store.blobs.local_root:
        assert (store.blobs.local_root / part_folder("toy", FP)).is_dir()  # an empty folder is no part
    assert store.has_parts("toy", [FP]) == set()
    assert commit_texts(store, {"a.txt": "x"}, changes={"seconds": 7.0}, restore=part) == part
    assert store.read_part("toy", FP) == part
    verify_files(store.blobs, part)


def test_a_leftover_folder_without_record_is_no_part_and_does_no_harm(local_store: Store):
    part = commit_texts(local_store, {"a.txt": "x"})
    folder = Path(local_store.uri_of(part_folder("toy", FP)))
    (folder / "part.json").unlink()
    assert local_store.read_part("toy", FP) is None
    again = commit_texts(local_store, {"a.txt": "x"})
    assert again.files == part.files
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "part.json"]


@pytest.mark.parametrize("name", ["part.json", "link", "pipe"])
def test_what_is_no_regular_file_of_the_stage_is_refused(local_store: Store, name: str):
    writer = local_store.begin_part("toy", FP)
    if name == "link":
        (writer.path / name).symlink_to("/etc/passwd")
    elif name == "pipe":
        os.mkfifo(writer.path / name)
    else:
        (writer.path / name).write_text("{}")
    with pytest.raises(StageFailed, match=name):
        local_store.commit_part(writer, record())
    assert local_store.read_part("toy", FP) is None
    assert not writer.folder.exists()


def test_row_counts_of_files_that_were_not_written_are_refused(local_store: Store):
    with pytest.raises(StageFailed, match=r"b\.txt"):
        commit_texts(local_store, {"a.txt": "x"}, file_rows={"b.txt": 1})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("point", ["commit:files_written", "commit:record_written"])
def test_a_disk_that_fails_gives_a_clear_error_and_no_half_part(tmp_path: Path, code: int, point: str):
    def fail(at: str) -> None:
        if at == point:
            raise OSError(code, os.strerror(code))

    store = Store(tmp_path / "store", fault=fail)
    with pytest.raises(StageFailed, match=errno.errorcode[code]) as caught:
        commit_texts(store, {"a.txt": "x"})
    assert "rerun the same command" in str(caught.value)
    assert store.read_part("toy", FP) is None
    assert store.blobs.find("parts") == store.blobs.find("tmp") == []


@pytest.mark.parametrize("blocked", ["parts", "tmp", "artifacts", "refs"])
def test_a_file_in_place_of_a_folder_gives_a_clear_error(local_store: Store, blocked: str):
    root = Path(local_store.uri)
    root.mkdir()
    (root / blocked).write_text("in the way")

    def write_everything() -> None:
        manifest, path, digest = local_store.write_manifest(manifest_of(commit_texts(local_store, {"a.txt": "x"})))
        names = {"experiment": "e", "node": "toy/a", "fingerprint": manifest.fingerprint, "root": manifest.root}
        local_store.write_ref(Ref(manifest_path=path, manifest_sha256=digest, **names))

    with pytest.raises(StageFailed, match="choose another store"):
        write_everything()
    if (root / "tmp").is_dir():
        assert list((root / "tmp").iterdir()) == []


def test_a_read_only_disk_gives_a_clear_error(tmp_path: Path):
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o500)
    if os.access(root, os.W_OK):
        pytest.skip("this user may write to read-only folders")
    with pytest.raises(StageFailed, match="permission denied"):
        commit_texts(Store(root), {"a.txt": "x"})


def test_manifests_read_back_and_stay(store: Store):
    part = commit_texts(store, {"a.txt": "x"})
    manifest, path, digest = store.write_manifest(manifest_of(part))
    assert path == f"artifacts/toy/a/{OTHER_FP}.json"
    assert store.manifest_paths() == [path]
    assert store.read_manifest(path) == (manifest, digest)
    again = manifest_of(part, provenance={"another": "run"})
    assert store.write_manifest(again) == (manifest, path, digest)
    assert store.read_manifest("artifacts/toy/a/none.json") is None


def test_a_manifest_is_replaced_when_its_parts_came_out_different(store: Store, caplog):
    part = commit_texts(store, {"a.txt": "x"})
    store.write_manifest(manifest_of(part))
    changed = manifest_of(part.model_copy(update={"summary": {"other": 1}}))
    with caplog.at_level(logging.WARNING):
        written, path, _ = store.write_manifest(changed)
    assert store.read_manifest(path)[0] == written == changed
    assert "event=manifest_replaced" in caplog.text


def test_a_manifest_in_the_place_of_another_is_noticed(store: Store):
    part = commit_texts(store, {"a.txt": "x"})
    _, path, _ = store.write_manifest(manifest_of(part))
    moved = path.replace("/a/", "/b/")
    store.blobs.write(moved, store.blobs.read(path))
    with pytest.raises(CorruptArtifact, match="toy/a"):
        store.read_manifest(moved)


def test_references_of_a_node_come_from_all_experiments(store: Store):
    def ref(experiment: str, node: str) -> Ref:
        return Ref(experiment=experiment, node=node, manifest_path="p", manifest_sha256="m", fingerprint="f", root="r")

    assert store.experiments() == []
    assert store.refs_of_node("toy/a") == []
    assert store.write_ref(ref("one", "toy/a")) is True
    assert store.write_ref(ref("one", "toy/a")) is False
    store.write_ref(ref("two", "toy/a"))
    store.write_ref(ref("two", "toy/b"))
    assert store.experiments() == ["one", "two"]
    assert store.refs_of_node("toy/a") == [ref("one", "toy/a"), ref("two", "toy/a")]
    assert store.refs_of_experiment("two") == [ref("two", "toy/a"), ref("two", "toy/b")]
    assert store.read_ref("two", "toy/b") == ref("two", "toy/b")
    assert store.read_ref("one", "toy/b") is None


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a b", "a\n"])
def test_names_that_would_leave_the_store_are_refused(local_store: Store, name: str):
    with pytest.raises(ConfigError):
        part_folder(name, FP)
    with pytest.raises(ConfigError):
        manifest_path("toy", name, FP)
    with pytest.raises(ConfigError):
        local_store.read_ref(name, "toy/a")
    with pytest.raises(ConfigError):
        local_store.read_ref("exp", f"toy/.{name}")


def test_a_store_travels_to_another_process(store: Store):
    commit_texts(store, {"a.txt": "x"})
    copy = pickle.loads(pickle.dumps(store))
    assert copy.uri == store.uri
    assert copy.read_part("toy", FP) == store.read_part("toy", FP)


def test_file_uris_and_plain_paths_are_the_same_store(tmp_path: Path):
    commit_texts(Store(f"file://{tmp_path}/a%20store"), {"a.txt": "x"})
    assert Store(tmp_path / "a store").read_part("toy", FP) is not None


@pytest.mark.parametrize("uri", ["nosuchprotocol://x", "simplecache::s3://x"])
def test_a_store_that_cannot_be_is_refused(uri: str):
    with pytest.raises(ConfigError):
        Store(uri)


def test_where_nothing_guards_creation_it_is_said(tmp_path: Path, caplog):
    # An fsspec file system that knows no exclusive creation.
    blobs = Blobs(f"dir://{tmp_path}/elsewhere", {"target_protocol": "file", "path": str(tmp_path)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "leases").mkdir()
    blobs.root = "elsewhere"
    with caplog.at_level(logging.WARNING):
        assert blobs.create("leases/x", b"one") is True
        assert blobs.create("leases/x", b"two") is False
    assert "event=no_exclusive_create" in caplog.text


def test_state_outlives_an_attempt(store: Store):
    first, second = store.begin_part("toy", FP), store.begin_part("toy", FP)
    assert first.state_uri == second.state_uri == store.uri_of(f"state/toy/{FP}")
    store.discard(first)
    store.discard(first)
    if store.blobs.local_root:
        assert Path(second.state_uri).is_dir()


def test_scratch_of_dead_processes_is_removed_and_that_of_live_ones_is_not(local_store: Store, age):
    mine = local_store.begin_part("toy", FP)
    tmp = Path(local_store.uri) / "tmp"
    me = this_process()
    dead = tmp / f"{me.host}.{me.pid}.{me.started + 1}-aaaa"  # the same pid, used by an earlier process
    foreign = tmp / f"elsewhere_boot_1.{me.pid}.7-bbbb"
    foreign_old = tmp / f"elsewhere_boot_1.{me.pid}.7-cccc"
    nameless = tmp / "nameless"
    for folder in (dead, foreign, foreign_old, nameless):
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "half").write_text("half")
    age(foreign_old, 8 * 24 * 3600)
    age(nameless, 8 * 24 * 3600)
    assert local_store.clean_scratch() == 3
    assert sorted(tmp.iterdir()) == sorted([mine.folder, foreign])
    assert local_store.clean_scratch() == 0
