"""A process's own temporary folder: used by what it starts, removed at its end, or by the next one after kill -9."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.flow.store.identity import this_process
from pipelines.flow.store.temporary import OWNER, clean_abandoned, ray_folder, temporary_home

# What libraries do: a folder nobody removes, by this process and by a child, and then an end without any cleaning.
LEAVE = """
import os, signal, subprocess, sys, tempfile
from pipelines.flow.store.temporary import temporary_home
with temporary_home():
    tempfile.mkdtemp(suffix="wandb-media")
    subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp()"], check=True)
    if len(sys.argv) > 1:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def leave(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-c", LEAVE, *arguments], check=False).returncode


def test_a_clean_end_leaves_nothing(base: Path) -> None:
    assert leave() == 0
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGABRT", "SIGSEGV"])
def test_what_a_killed_process_left_goes_with_the_next(base: Path, signal: str) -> None:
    assert leave(signal) != 0
    (folder,) = base.iterdir()
    assert len(list(folder.iterdir())) == 3  # the owner, and what two processes left
    assert leave() == 0
    assert list(base.iterdir()) == []


def test_other_folders_are_left_alone(base: Path) -> None:
    """Of the living, of other machines, and what only looks like one."""
    me = this_process()
    owners = {
        "x2vlm-alive": me.token,
        "x2vlm-other": me.token.replace(me.host, "elsewhere_0_0"),
        "x2vlm-words": "no token",
        "x2vlm-none": None,
        "unrelated": f"{me.host}.1.1",
    }
    for name, owner in owners.items():
        (base / name).mkdir()
        if owner is not None:
            (base / name / OWNER).write_text(owner)
    assert clean_abandoned(base) == 0
    (base / "x2vlm-dead").mkdir()
    (base / "x2vlm-dead" / OWNER).write_text(f"{me.host}.{me.pid}.1")
    assert clean_abandoned(base) == 1
    assert {path.name for path in base.iterdir()} == set(owners)


def test_inside_everything_goes_there_and_afterwards_all_is_as_before(base: Path) -> None:
    before = dict(os.environ)
    with temporary_home() as home:
        assert home.parent == base
        assert Path(tempfile.mkdtemp()).parent == home
        assert (os.environ["TMPDIR"], os.environ["X2VLM_CACHE"]) == (str(home), str(base))
        assert ray_folder() == (str(home) if len(str(home)) <= 39 else None)
    assert dict(os.environ) == before
    assert tempfile.gettempdir() == str(base)
    assert ray_folder() is None
