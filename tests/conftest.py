"""Fixtures every test may use."""

import shutil
from pathlib import Path

import hypothesis
import pytest

# A deadline is an assert on wall time, and the first example of a process pays for its imports.
hypothesis.settings.register_profile("x2vlm", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)  # of `make quick`
hypothesis.settings.load_profile("x2vlm")

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where `make test` uses several processes, what shares a fixture of a file stays in one of them.

    Folders of tests on the one real cluster, with the one finished run of the sample, are one group.
    """
    for item in items:
        folder, _, name = item.nodeid.partition("::")[0].rpartition("/")
        group = folder if folder == "tests/e2e" else f"{folder}/{name}"
        item.add_marker(pytest.mark.xdist_group(group))


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
