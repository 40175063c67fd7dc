"""Where relative paths start: in a checkout, in a package that Ray unpacked for a job, and with X2VLM_HOME."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import project
from pipelines.experiment import load_experiment, store_location
from pipelines.flow.store.blobs import local_path_of
from x2vlm.errors import ConfigError

PACKAGED = "ray/session_2026-11-30_09-17-07_833376_19797/runtime_resources/working_dir_files/_ray_pkg_b0e4f2a4d9c3b1f7"


def test_a_package_of_ray_is_told_from_a_checkout() -> None:
    for name in (PACKAGED, f"{PACKAGED}/x2vlm", "other_temp/runtime_resources/py_modules_files/_ray_pkg_1"):
        assert project.is_packaged(Path("/tmp") / name)
    for name in ("/home/me/x2vlm", "/home/me/runtime_resources/x2vlm", "/srv/working_dir_files/x2vlm"):
        assert not project.is_packaged(Path(name))


def job(folder: Path, code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where a job's package lies: the project's code below a folder of Ray's, and it first on the path."""
    package = folder / PACKAGED
    if not package.exists():
        package.mkdir(parents=True)
        for name in ("pipelines", "x2vlm", "datasets"):
            (package / name).symlink_to(project.PROJECT_ROOT / name)
        # Modules resolve their own links: the code must look as if it lay in the package.
        (package / "pipelines").unlink()
        (package / "pipelines").mkdir()
        for path in (project.PROJECT_ROOT / "pipelines").iterdir():
            if path.name != "project.py":
                (package / "pipelines" / path.name).symlink_to(path)
        (package / "pipelines" / "project.py").write_bytes((project.PROJECT_ROOT / "pipelines/project.py").read_bytes())
    kept = {key: value for key, value in os.environ.items() if not key.startswith("X2VLM_")}
    path = os.pathsep.join(filter(None, [str(package), str(folder / "site")]))
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder,
        env={**kept, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def installed(folder: Path, checkout: Path, editable: bool = True) -> None:
    """What an installer leaves of `pip install --editable checkout`."""
    (checkout / "pipelines").mkdir(parents=True, exist_ok=True)
    (checkout / "pipelines" / "project.py").touch()
    facts = folder / "site" / "x2vlm-0.1.0.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: x2vlm\nVersion: 0.1.0\n")
    origin = {"url": checkout.as_uri(), "dir_info": {"editable": True} if editable else {}}
    (facts / "direct_url.json").write_text(json.dumps(origin))


SAY_STORE = "from pipelines.experiment import load_experiment; print(load_experiment('sample').store_uri)"


def test_a_submitted_job_finds_the_store_of_the_checkout(tmp_path: Path) -> None:
    installed(tmp_path, tmp_path / "my checkout")
    done = job(tmp_path, SAY_STORE)
    assert done.stdout.strip() == str(tmp_path / "my checkout" / "runs" / "store"), done.stderr


@pytest.mark.parametrize("given", ["home", "store"])
def test_variables_name_another_place(given: str, tmp_path: Path) -> None:
    installed(tmp_path, tmp_path / "checkout")
    if given == "home":
        done = job(tmp_path, SAY_STORE, X2VLM_HOME=str(tmp_path / "shared"))
        assert done.stdout.strip() == str(tmp_path / "shared" / "runs" / "store"), done.stderr
    else:
        done = job(tmp_path, SAY_STORE, X2VLM_STORE="s3://bucket/prefix")
        assert done.stdout.strip() == "s3://bucket/prefix", done.stderr


def test_a_container_without_a_checkout_refuses_a_relative_store(tmp_path: Path) -> None:
    """Whether the code was never installed, was installed from elsewhere, or its folder is not on this machine."""
    for editable, exists in ((False, True), (True, False)):
        installed(tmp_path, tmp_path / "gone", editable=editable)
        if not exists:
            (tmp_path / "gone" / "pipelines" / "project.py").unlink()
        # -S: without the environment of this test, whose own installation is another one.
        done = job(tmp_path, "import pipelines.project as p; print(p.lasting_root())", "-S")
        assert done.stdout.strip() == "None", done.stdout + done.stderr


@pytest.mark.parametrize("store", ["runs/store", "store", "../elsewhere"])
def test_the_refusal_names_the_remedy(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.experiment.lasting_root", lambda: None)
    with pytest.raises(ConfigError, match=r"--store s3://bucket/prefix.*X2VLM_STORE.*Nothing has run"):
        store_location(store)


def test_whole_paths_and_addresses_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.experiment.lasting_root", lambda: None)
    assert store_location("s3://bucket/prefix") == "s3://bucket/prefix"
    assert store_location(str(tmp_path / "store")) == str(tmp_path / "store")
    assert store_location("~/store") == str(Path.home() / "store")


def test_the_variable_names_the_store_where_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X2VLM_STORE", str(tmp_path / "default"))
    assert load_experiment("sample").store_uri == str(tmp_path / "default")
    assert load_experiment("sample", str(tmp_path / "given")).store_uri == str(tmp_path / "given")
    own = tmp_path / "own.yaml"
    own.write_text("store: runs/own\n" + (project.PROJECT_ROOT / "pipelines/experiments/sample.yaml").read_text())
    assert load_experiment(str(own)).store_uri == str(project.PROJECT_ROOT / "runs" / "own")


def test_the_users_files_are_found_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped files come from the project, all others from X2VLM_HOME, under the same `project:` names."""
    monkeypatch.setenv("X2VLM_HOME", str(tmp_path))
    names = ("data/clip/weights.bin", "data/bert-base-uncased/vocab.txt", "runs/world/cards/coco.yaml")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert project.project_path(name) == tmp_path / name
        assert local_path_of(f"project:{name}") == tmp_path / name
    shipped = "datasets/sample/vocab.txt"
    (tmp_path / "datasets/sample").mkdir(parents=True)
    (tmp_path / shipped).touch()
    assert project.project_path(shipped) == project.PROJECT_ROOT / shipped
