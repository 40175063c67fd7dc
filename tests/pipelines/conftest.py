"""What is expensive to make and shared by the tests that look at it."""

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.sets.img2dataset_runs import make_outputs
from tests.support.training.two_phases import Run, run_inline, two_phases


@pytest.fixture(scope="package")
def phase_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What it did, and the experiment; its store is there to look into."""
    return run_inline(two_phases(tmp_path_factory.mktemp("phases")))


@pytest.fixture(scope="session")
def img2dataset_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one output of each format of img2dataset, for reading only."""
    assert version("img2dataset") == "1.47.0"
    folder = tmp_path_factory.mktemp("img2dataset")
    make_outputs(folder)
    return folder
