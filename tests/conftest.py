"""Fixtures every test may use."""

import shutil
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A deadline is an assert on wall time, and the first example of a process pays for its imports.
hypothesis.settings.register_profile("x2vlm", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)  # of `make quick`
hypothesis.settings.load_profile("x2vlm")

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where `make test` uses several processes, tests of one file stay in one of them, for the fixtures they share.

    So do all tests on the one real cluster, with the one finished run of the sample.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/e2e" if file.startswith("tests/e2e/") else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers made by running the reference: weights of a small model, inputs, outputs, losses and gradients."""
    return ROOT / "tests" / "golden" / "reference"


@pytest.fixture(scope="session")
def excerpts_dir() -> Path:
    """Real annotation excerpts, images and clips in their upstream formats, with source and licence of each."""
    return ROOT / "tests" / "excerpts"


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing else; making the tables takes seconds, copying it nothing."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(empty_mlflow: Path, tmp_path: Path) -> str:
    """A fresh MLflow on sqlite."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
