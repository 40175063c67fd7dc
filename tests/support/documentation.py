"""What README, docs and other pages tell a reader to type: commands, and the example in Python."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "datasets/*.md", "datasets/sample/*.md")
# An indented line, a line of a console block, or code in a sentence or a table.
TYPED = re.compile(r"^(?: {4}|\$ )(?P<line>[^\n]+)$|(?<!`)`(?P<inline>[^`\n]+(?:\n[^`\n]+)?)`(?!`)", re.MULTILINE)
PROGRAMS = (
    "docker",
    "git",
    "helm",
    "kubectl",
    "make",
    "mlflow",
    "pip",
    "pytest",
    "python",
    "ray",
    "source",
    "torchrun",
)


def documented_commands(root: Path) -> dict[str, list[str]]:
    """Command -> pages that name it; comments behind a command are left out, `&&` makes two of one line."""
    found: dict[str, list[str]] = {}
    for pattern in PAGES:
        for page in sorted(root.glob(pattern)):
            for match in TYPED.finditer(page.read_text(encoding="utf-8")):
                typed = re.sub(r"\s{2,}#.*", "", match["line"] or match["inline"])
                for command in " ".join(typed.split()).split(" && "):
                    program, _, arguments = command.partition(" ")
                    if program in PROGRAMS and arguments:
                        found.setdefault(command, []).append(page.relative_to(root).as_posix())
    return found


def run_typed(command: str, folder: Path) -> str:
    """What a command of a page prints, with this Python, in `folder`, which also comes first for imports."""
    words = shlex.split(command)
    assert words[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def readme_example(root: Path) -> str:
    """The one Python block of README.md; ValueError if there are several."""
    (example,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return example
