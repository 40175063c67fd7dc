"""The repository's layout: what may lie where, how large it may grow, and the trap in the folder name `datasets/`."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.imports import cycle_of, import_graph, modules_of, project_files

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

PRODUCT = ["pipelines", "x2vlm", "jobs", "docs", "infra"]
MAX_FILES_IN_A_FOLDER = 16
MAX_LINES_OF_A_FILE = 350
MAX_LINES_OF_A_FUNCTION = 70

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


def test_every_pin_has_hashes_and_uv_is_one_of_them(project_root: Path) -> None:
    lock = (project_root / "requirements.lock").read_text()
    pins = re.findall(r"^(\S+)==\S+(?:[^\n]*\\\n +--hash=sha256:[0-9a-f]{64})+", lock, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^\S+==", lock, re.MULTILINE)) > 200
    (version,) = re.findall(r'"uv==(\S+)"', (project_root / "pyproject.toml").read_text())
    assert f"\nuv=={version} " in lock
    assert not re.search(r"uv==\d", (project_root / "Makefile").read_text())


def test_readme_gives_the_commands_that_the_makefile_has(project_root: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (project_root / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", (project_root / "README.md").read_text()))
    assert named
    assert named <= targets


def test_the_quick_tests_are_there(project_root: Path) -> None:
    lines = (project_root / "tests" / "quick.txt").read_text().splitlines()
    paths = [line for line in lines if not line.startswith("-")]
    assert len(paths) > 20
    assert not [path for path in paths if not (project_root / path).exists()]


# ---- small folders, files and functions; imports in one direction


@pytest.fixture(scope="module")
def product(project_root: Path) -> list[Path]:
    """Every file of the product, relative to the root."""
    return project_files(project_root, PRODUCT)


def test_no_test_module_is_imported(project_root: Path) -> None:
    graph = import_graph(project_root, modules_of(project_files(project_root, ["tests"])), inside_functions=True)
    tests = {name for name in graph if name.rsplit(".", 1)[-1].startswith("test_")}
    assert len(tests) > 100
    borrowed = {name: sorted(targets & tests) for name, targets in graph.items() if targets & tests}
    assert not borrowed, "move what tests share to tests/support"


def test_no_folder_holds_too_many_files(project_root: Path, product: list[Path]) -> None:
    counts = Counter(path.parent for path in [*product, *project_files(project_root, ["tests/support"])])
    assert Path("tests/support/flow") in counts
    assert not {str(folder): count for folder, count in counts.items() if count > MAX_FILES_IN_A_FOLDER}


def test_no_file_of_the_product_is_too_long(project_root: Path, product: list[Path]) -> None:
    lengths = {str(path): len((project_root / path).read_text().splitlines()) for path in modules_of(product).values()}
    assert len(lengths) > 100
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES_OF_A_FILE}


def test_no_function_of_the_product_is_too_long(project_root: Path, product: list[Path]) -> None:
    lengths = {
        f"{path}: {node.name}": node.end_lineno - node.lineno + 1
        for path in modules_of(product).values()
        for node in ast.walk(ast.parse((project_root / path).read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    }
    assert len(lengths) > 1000
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES_OF_A_FUNCTION}


def test_modules_do_not_import_each_other_in_a_circle(project_root: Path) -> None:
    graph = import_graph(project_root, modules_of(project_files(project_root, ["pipelines", "x2vlm"])))
    assert sum(len(targets) for targets in graph.values()) > 300
    assert cycle_of(graph) == []


@pytest.mark.parametrize(
    ("line", "is_circle"),
    [("import pack.a", True), ("from pack import a", True), ("from .a import x", True), ("import pack.c", False)],
)
def test_a_circle_is_seen_however_it_is_written(tmp_path: Path, line: str, is_circle: bool) -> None:
    (tmp_path / "pack").mkdir()
    sources = {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import thing\n",
        "b": f"{line}\nthing = 1\n",
        "c": "def later():\n    from pack import b\n",
    }
    for name, source in sources.items():
        (tmp_path / "pack" / f"{name}.py").write_text(source)
    known = modules_of([Path("pack") / f"{name}.py" for name in sources])
    assert bool(cycle_of(import_graph(tmp_path, known))) == is_circle
