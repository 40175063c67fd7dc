"""`--help` and typing errors of every job: answered at once, with the nearest word that exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
HEAVY = {
    "torch",
    "ray",
    "mlflow",
    "transformers",
    "timm",
    "torchvision",
    "pyarrow",
    "numpy",
    "fsspec",
    "pydantic",
    "av",
}


def run(tmp_path: Path, script: str, *arguments: str) -> tuple[int, str, set[str], float]:
    """Exit code, what was said, top-level modules that were imported, CPU seconds."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "jobs" / script), *arguments]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = (tmp_path / "said").read_text()
    imported = set(re.findall(r"^import time:.*\|\s*(\w+)", text, re.MULTILINE))
    words = "\n".join(line for line in text.splitlines() if not line.startswith("import time:"))
    return process.returncode, words, imported, usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("script", JOBS)
def test_help_costs_next_to_nothing(tmp_path: Path, script: str) -> None:
    code, words, imported, seconds = run(tmp_path, script, "--help")
    assert code == 0
    assert "usage:" in words
    assert "argparse" in imported
    assert not imported & HEAVY
    assert seconds < 1.0


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("full_pretrain.py sample --dryrun", "`--dry-run`"),
        ("full_pretrain.py sample --dry_run --estimat_=x", "`--dry-run`, `--estimate`"),
        ("run_stage.py sample --only x --retrie dns", "`--retry`"),
        ("export.py sample --format webdatset --out x", "`webdataset`"),
        ("export.py sample --format Parquet --out x", "`parquet`"),
        ("audit_lineage.py sample --depth manifest", "`manifests`"),
        ("show.py model photo.jpg --out x --phrase a --devise cpu", "`--device`"),
        ("make_world.py --out x --media jpeg", "`jpg`"),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(tmp_path: Path, command: str, meant: str) -> None:
    script, *arguments = command.split()
    code, words, imported, _ = run(tmp_path, script, *arguments)
    assert code == 3
    assert "did you mean" in words
    assert meant in words
    assert not imported & HEAVY
