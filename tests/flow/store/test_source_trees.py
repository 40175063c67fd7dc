"""Folders of upstream files as one input: which files belong to it, and when it counts as changed."""

import os
from pathlib import Path

import fsspec
import pytest

from pipelines.flow.stage import SourceFile
from pipelines.flow.store import source_trees
from pipelines.flow.store.source_trees import open_listed, tree_of, tree_uri
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store
from tests.support.sets.files import write_files
from x2vlm.errors import SourceUnavailable

NAMES = [
    "0.tar",
    "00000.tar",
    "00001.tar",
    "00012.tar",
    "a/00000.tar",
    "a/b/c.jpg",
    "a/x[1].tar",
    "b.parquet",
    ".hidden",
]


def names(store: Path, root: Path | str, *patterns: str) -> list[str]:
    source = SourceFile(str(root), "own", patterns=patterns)
    return [file.path for file in SourceHashes(Store(str(store))).fingerprint(source).parts[0].files]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.tar"], ["0.tar", "00000.tar", "00001.tar", "00012.tar"]),
        (["{00000..00001}.tar"], ["00000.tar", "00001.tar"]),
        (["{00001..00999}.tar", "b.parquet"], ["00001.tar", "00012.tar", "b.parquet"]),
        (["0000?.tar"], ["00000.tar", "00001.tar"]),
        (["000[!0]*.tar"], ["00012.tar"]),
        (["**/*.tar"], ["0.tar", "00000.tar", "00001.tar", "00012.tar", "a/00000.tar", "a/x[1].tar"]),
        (["a"], ["a/00000.tar", "a/b/c.jpg", "a/x[1].tar"]),
        (["a/*"], ["a/00000.tar", "a/b/c.jpg", "a/x[1].tar"]),
        (["a/b/"], ["a/b/c.jpg"]),
        (["*/{00000,c}.tar"], ["a/00000.tar"]),
        (["**"], [name for name in sorted(NAMES) if name != ".hidden"]),
        (["."], [name for name in sorted(NAMES) if name != ".hidden"]),
    ],
)
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_patterns(tmp_path: Path, patterns: list[str], expected: list[str], where: str) -> None:
    root: Path | str = write_files(tmp_path / "set", dict.fromkeys(NAMES, "x"))
    if where == "bucket":
        fs = fsspec.filesystem("memory")
        root = f"memory://{tmp_path.name}"
        for name in NAMES:
            fs.pipe_file(f"{root}/{name}", b"x")
    assert names(tmp_path / "store", root, *patterns) == expected


@pytest.mark.parametrize(
    ("root", "pattern", "problem"),
    [("gone", "*.tar", "no such folder"), ("set", "*.zip", "none of its 8 files"), ("set/0.tar", "**", "a file")],
)
def test_what_is_not_there_is_named_with_the_remedy(tmp_path: Path, root: str, pattern: str, problem: str) -> None:
    write_files(tmp_path / "set", dict.fromkeys(NAMES, "x"))
    with pytest.raises(SourceUnavailable, match=problem) as error:
        names(tmp_path / "store", tmp_path / root, pattern)
    assert "card own" in str(error.value)
    assert "take the source out" in str(error.value)


@pytest.mark.parametrize("is_small", [True, False])
def test_contents_count_or_size_and_time(tmp_path: Path, is_small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_small:
        monkeypatch.setattr(source_trees, "HASHED_BYTES", 3)
    folder = write_files(tmp_path / "set", {"a.txt": "one", "b.txt": "two"})
    source = SourceFile(str(folder), "own", patterns=("**",))

    def root() -> str:
        return SourceHashes(Store(str(tmp_path / "store"))).fingerprint(source).root

    first = root()
    os.utime(folder / "a.txt", ns=(1, 1))
    touched = root()
    assert (touched == first) is is_small
    (folder / "a.txt").write_text("six")
    os.utime(folder / "a.txt", ns=(2, 2))
    changed = root()
    assert changed != touched
    (folder / "a.txt").rename(folder / "c.txt")
    assert root() != changed


def test_a_file_that_changes_after_the_plan_is_not_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", {"a.txt": "one"})
    source = SourceFile(str(folder), "own", patterns=("**",))
    (file,) = SourceHashes(Store(str(tmp_path / "store"))).fingerprint(source).parts[0].files
    assert open_listed(file).read() == b"one"
    (folder / "a.txt").write_text("another")
    with pytest.raises(SourceUnavailable, match="changed since this run was planned"):
        open_listed(file)
    (folder / "a.txt").unlink()
    with pytest.raises(SourceUnavailable, match="No such file"):
        open_listed(file)


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", {"x.txt": "x"})
    folder = write_files(tmp_path / "set", {"a/b.txt": "b"})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "up").symlink_to(folder)
    assert names(tmp_path / "store", folder, "**") == ["a/b.txt", "linked/x.txt"]


def test_the_record_of_a_tree_gives_it_back() -> None:
    for uri, patterns in [("/a/b", ("*.tar", "*.json")), ("s3://x/y", ("**",)), ("project:datasets/x", ("a/{0..9}",))]:
        source = SourceFile(uri, "own", patterns=patterns)
        assert tree_of(tree_uri(source), "own") == source
    assert tree_of("/a/b/file.tar", "own") is None
