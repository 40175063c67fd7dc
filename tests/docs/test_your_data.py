"""docs/your_data.md, executed: every command on a copy of the project, with what it prints."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.documentation import run_typed

COPIED = ("datasets", "jobs", "pipelines", "x2vlm")
PAGE = Path(__file__).resolve().parents[2] / "docs/your_data.md"
COMMANDS = re.findall(r"^\$ (.+)\n((?:(?!\$ |```).+\n)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
TRAINS = "python jobs/full_pretrain.py"


@pytest.fixture
def project(project_root: Path, tmp_path: Path) -> Path:
    """A copy of the project: the commands write below its runs/."""
    for name in COPIED:
        shutil.copytree(project_root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def check(commands: list[tuple[str, str]], folder: Path) -> None:
    for command, expected in commands:
        printed = " ".join(run_typed(command, folder).split())
        for line in expected.splitlines():
            assert " ".join(line.split()) in printed, f"{command}\n{line}\n{printed}"


def test_the_page_works_up_to_the_shards(project: Path) -> None:
    commands = [one for one in COMMANDS if not one[0].startswith(TRAINS)]
    assert len(commands) == 5
    check(commands, project)


@pytest.mark.slow
def test_the_page_works_up_to_a_model(project: Path) -> None:
    assert sum(command.startswith(TRAINS) for command, _ in COMMANDS) == 1
    check(COMMANDS, project)
    assert list((project / "runs/store/parts/pretrain").glob("*/*/model.safetensors"))
