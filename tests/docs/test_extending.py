"""docs/extending.md, executed: every example on a copy of the project, every command with what it prints."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.documentation import run_typed

COPIED = ("datasets", "jobs", "pipelines", "tests", "x2vlm", "pyproject.toml")
LINKED = "datasets/sample/media"  # large, and no example changes it
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is about ("" for commands) and its text."""

    language: str
    path: str
    text: str


def sections(page: str) -> dict[str, list[Block]]:
    """Blocks by the title of their section, in order."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    found = {}
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        found[title] = [Block(language, path or "", body) for language, path, body in BLOCK.findall(text)]
    return found


def changed(text: str, diff: str) -> str:
    """`text` after a diff without line numbers; AssertionError unless what it changes stands there exactly once."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(before) == 1, f"this stands {text.count(before)} times in the file:\n{before}"
    return text.replace(before, after)


@pytest.fixture
def project(project_root: Path, tmp_path: Path) -> Path:
    """A copy of the project to change; the photos and clips of the sample are a link."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or Path(folder, name) == project_root / LINKED]

    for name in COPIED:
        source = project_root / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=left_out)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / LINKED).symlink_to(project_root / LINKED)
    return tmp_path


PAGE = sections((Path(__file__).resolve().parents[2] / "docs/extending.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("title", PAGE)
def test_the_example_works_as_it_stands(title: str, project: Path) -> None:
    for block in PAGE[title]:
        path = project / block.path
        if block.language == "console":
            for command, expected in re.findall(r"^\$ (.+)\n((?:(?!\$ ).+\n)*)", block.text, re.MULTILINE):
                printed = run_typed(command, project)
                for line in expected.splitlines():
                    assert " ".join(line.split()) in " ".join(printed.split()), f"{command}\n{printed}"
        elif block.language == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), block.text), encoding="utf-8")
        else:
            assert block.path, f"a block of {block.language} names no file"
            assert not path.exists(), f"{block.path} exists already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def test_every_section_has_code_and_commands() -> None:
    for title, blocks in PAGE.items():
        assert {"console", "diff"} <= {block.language for block in blocks}, title
