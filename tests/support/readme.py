"""The example that README.md shows."""

import re
from pathlib import Path


def readme_example(root: Path) -> str:
    """Its one Python block; ValueError if there are several."""
    (example,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return example
