"""The repository's layout: what may lie where, and the trap in the folder name `datasets/`."""

import os
import re
import subprocess
import sys
from pathlib import Path

SYMBOLS = [
    "transformers.BertConfig",
    "transformers.BertModel",
    "transformers.BertTokenizerFast",
    "transformers.XLMRobertaModel",
    "timm.create_model",
    "timm.models.beit.Beit",
    "open_clip.create_model_and_transforms",
    "open_clip.get_tokenizer",
    "mlflow.MlflowClient",
    "mlflow.data.meta_dataset.MetaDataset",
    "ray.train.torch.TorchTrainer",
    "torchvision.transforms.v2.RandomResizedCrop",
    "webdataset.WebDataset",
    "datasets.load_dataset",  # Hugging Face's: a package with an __init__ wins over a folder without, on any path
    "datasets.Features",
]

# What planning a run must not wait for.
HEAVY = ["torch", "torchvision", "transformers", "timm", "open_clip", "mlflow", "ray", "img2dataset", "pandas", "scipy"]


def run_with_root_on_path(root: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` as a submitted Ray job would see the world: the repository's root, and it alone, on PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_datasets_folder_shadows_nothing(project_root: Path, tmp_path: Path) -> None:
    code = "\n".join(f"from {symbol.rsplit('.', 1)[0]} import {symbol.rsplit('.', 1)[1]}" for symbol in SYMBOLS)
    result = run_with_root_on_path(project_root, tmp_path, code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_planning_imports_no_heavy_library(project_root: Path, tmp_path: Path) -> None:
    """A dry run must answer at once: torch alone is 3 CPU seconds, with transformers and timm 13."""
    lines = [
        "import sys",
        "import pipelines.driver, pipelines.graph, pipelines.experiment",
        "graph = pipelines.graph.build_graph(pipelines.experiment.load_experiment('sample'))",
        "assert 'pretrain/sample' in graph",
        f"print([name for name in {HEAVY} if name in sys.modules])",
    ]
    result = run_with_root_on_path(project_root, tmp_path, "\n".join(lines))
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "[]"


def test_datasets_holds_no_python(project_root: Path) -> None:
    assert not list((project_root / "datasets").rglob("*.py"))


def test_jobs_are_short_scripts_and_no_package(project_root: Path) -> None:
    jobs = sorted((project_root / "jobs").glob("*.py"))
    assert {"full_pretrain.py", "run_stage.py", "evaluate.py", "audit_lineage.py"} <= {job.name for job in jobs}
    assert not (project_root / "jobs" / "__init__.py").exists()
    too_long = {job.name: len(job.read_text().splitlines()) for job in jobs if len(job.read_text().splitlines()) > 40}
    assert not too_long


def test_lock_names_no_index(project_root: Path) -> None:
    lock = (project_root / "requirements.lock").read_text()
    assert not re.search(r"https?://|--index|--extra-index|--find-links|@ file:", lock)
    assert not (project_root / "uv.lock").exists()


def test_readme_gives_the_commands_that_the_makefile_has(project_root: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (project_root / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", (project_root / "README.md").read_text()))
    assert named
    assert named <= targets
