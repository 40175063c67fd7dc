"""Fixtures every test may use."""

from pathlib import Path

import hypothesis
import pytest

# A deadline is an assert on wall time, and the first example of a process pays for its imports.
hypothesis.settings.register_profile("x2vlm", deadline=None)
hypothesis.settings.load_profile("x2vlm")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the repository with golden numbers and real samples; skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("needs the golden numbers and real samples in ../shared, which are not part of the repository")
    return folder
