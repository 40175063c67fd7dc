"""`pip install .` without extras: the library works from its wheel, beside nothing but its own dependencies."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.e2e.conftest import ROOT
from tests.support.imports import modules_of, project_files
from tests.support.models.folders import CLIPS, PHOTOS, save_folder, small_pretrained

# Run by a Python that sees the light installation and no site-packages.
USE = """
import importlib, json, pkgutil, sys
from pathlib import Path
import x2vlm
from x2vlm import inference
from x2vlm.errors import MissingPackage
from x2vlm.inference.show import show

folder, out, clip, *photos = sys.argv[1:]
model = inference.load(folder)
told = {
    "from": x2vlm.__file__,
    "features": inference.embed_images(model, photos).tolist(),
    "texts": inference.embed_texts(model, ["a bus"]).tolist(),
    "ranked": [ranked.index for ranked in inference.rank_images(model, "a bus", photos)],
    "boxes": [[*vars(found.box).values()] for found in inference.ground(model, photos[0], ["a woman"])],
    "captions": inference.caption(model, photos),
    "page": show(None, [folder, *photos, "--phrases", "a woman", "--out", out]),
}
names = [module.name for module in pkgutil.walk_packages(x2vlm.__path__, "x2vlm.")]
told["imported"] = len([importlib.import_module(name) for name in names])
try:
    inference.caption(model, [clip])
except MissingPackage as error:
    told["clip"] = str(error)
told["page_of_clip"] = show(None, [folder, clip, "--out", out])
told["there"] = [name for name in ("ray", "mlflow", "img2dataset", "av", "open_clip") if importlib.util.find_spec(name)]
print(json.dumps(told))
"""
# What a job answers where the pipeline's packages are missing.
JOB = """
from pipelines import driver
from x2vlm.command_line import JobParser

def start(options):
    from pipelines.flow.run.ray_runner import RayRunner

text, code = driver.run_as_job(start, JobParser(None))
print(code, text)
"""


def base_distributions(wheel_metadata: str) -> set[str]:
    """Names of all installed distributions that the wheel needs without any extra, and that those need in turn."""
    found: set[str] = set()
    waiting = re.findall(r"^Requires-Dist: (.+)$", wheel_metadata, re.MULTILINE)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        wanted = [{"extra": extra} for extra in requirement.extras or {""}]
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in wanted):
                waiting.append(text.partition(";")[0])
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages of a plain `pip install .`: the wheel's content, and links to what it requires."""
    place = tmp_path_factory.mktemp("light")
    source = tmp_path_factory.mktemp("source")
    for path in project_files(ROOT, ["x2vlm", "pipelines", "pyproject.toml", "README.md", "LICENSE"]):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    built = subprocess.run([*command, "--target", str(place), str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (metadata,) = place.glob("x2vlm-*.dist-info/METADATA")
    for name in base_distributions(metadata.read_text(encoding="utf-8")):
        distribution = importlib.metadata.distribution(name)
        for entry in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (place / entry).exists():
                (place / entry).symlink_to(Path(str(distribution.locate_file(entry))))
    return place


def run(light: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    # -S: no site-packages. -E: no PYTHONPATH.
    code = f"import sys; sys.path.insert(0, {str(light)!r})\n{code}"
    command = [sys.executable, "-S", "-E", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=light, capture_output=True, text=True, check=False)


def test_the_wheel_has_every_file_of_its_packages(light: Path) -> None:
    files = project_files(ROOT, ["x2vlm", "pipelines"])
    assert len(modules_of(files)) > 200
    assert len([path for path in files if path.suffix == ".yaml"]) > 10
    assert not [str(path) for path in files if not (light / path).is_file()]


def test_inference_works_without_the_packages_of_the_extras(light: Path, tmp_path: Path) -> None:
    pretrained = small_pretrained("bert", tmp_path / "made", 3)
    folder = save_folder(pretrained, tmp_path / "small")
    done = run(light, USE, folder, tmp_path / "page.html", CLIPS[0], *PHOTOS[:3])
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["from"]).is_relative_to(light)
    assert told["there"] == []
    assert told["imported"] > 100

    from x2vlm import inference  # the same answers as here, where everything is installed

    assert told["captions"] == inference.caption(pretrained, PHOTOS[:3])
    assert told["ranked"] == [ranked.index for ranked in inference.rank_images(pretrained, "a bus", PHOTOS[:3])]
    features = inference.embed_images(pretrained, PHOTOS[:3])
    assert [sum(row) for row in told["features"]] == pytest.approx(features.sum(dim=1).tolist(), abs=1e-4)
    assert len(told["boxes"][0]) == 4
    assert told["page"][1] == 0
    assert "pip install 'x2vlm[video]'" in told["clip"]
    assert CLIPS[0].name in told["clip"]
    assert told["page_of_clip"][1] == 4


def test_a_job_without_its_packages_names_the_extra(light: Path) -> None:
    done = run(light, JOB)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("4 ")
    assert "pip install 'x2vlm[pipeline]'" in done.stdout
