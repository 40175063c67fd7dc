"""Where this project lies on this machine: the folder that holds `pipelines`, `x2vlm`, `jobs` and `datasets`."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
