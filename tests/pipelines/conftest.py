"""One run of two phases on the shipped sample, shared by the tests that look at it."""

import pytest

from tests.support.training.two_phases import Run, run_inline, two_phases


@pytest.fixture(scope="package")
def phase_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What it did, and the experiment; its store is there to look into."""
    return run_inline(two_phases(tmp_path_factory.mktemp("phases")))
