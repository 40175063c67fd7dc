"""The example of docs/your_data.md that reads a table for a task, executed: it prints what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from x2vlm.data.readers.downstream import TASK_READERS
from x2vlm.data.readers.downstream.own import ALIASES


def test_the_example_prints_what_the_page_says(project_root: Path, tmp_path: Path) -> None:
    page = (project_root / "docs/your_data.md").read_text(encoding="utf-8")
    [(code, expected)] = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_readers_and_columns_of_the_page_exist(project_root: Path) -> None:
    page = (project_root / "docs/your_data.md").read_text(encoding="utf-8").partition("## A task of your own")[2]
    assert set(re.findall(r"`(own_\w+)`", page)) == {name for name in TASK_READERS if name.startswith("own_")}
    known = {alias for aliases in ALIASES.values() for alias in aliases}
    for name in ("img_path", "file_name", "video", "sentence", "answers", "gold_label", "expression", "bbox", "left"):
        assert f"`{name}`" in page
        assert name in known or name == "left"
