"""Experiment files with other values than the sample has."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def experiment_file(folder: Path, **changes: object) -> Path:
    """A copy of the sample experiment with other top-level values."""
    values = yaml.safe_load((ROOT / "pipelines/experiments/sample.yaml").read_text())
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path
