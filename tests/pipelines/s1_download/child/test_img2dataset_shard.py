"""img2dataset without the rest of its package: what is imported, what comes out, what an error does.

Whatever these tests compare is the installed img2dataset; a new version makes them fail until somebody has looked.
"""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from pathlib import Path

import pytest

from pipelines.project import PROJECT_ROOT
from pipelines.s1_download.child import runner
from pipelines.s1_download.child.img2dataset_shard import VERSION, download_function, run_shard
from pipelines.s1_download.child.protocol import Item
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Refusal
from pipelines.s1_download.http.transport import Outcome, guarded_opener
from x2vlm.errors import StageFailed

HEAVY = ("wandb", "albumentations", "cv2", "pandas", "webdataset", "torch", "ray", "pyspark", "img2dataset.main")

# Prints what the function is and what it says to eight answers, those with and without an opt-out among them.
DESCRIBE = """
def describe(function):
    import email.message, hashlib, inspect, io, urllib.request

    names = ("is_disallowed", "download_image", "download_image_with_retry")
    sources = [inspect.getsource(function.__globals__[name]) for name in names]
    answers = {"error": None, "none": [], "all": ["noai"], "another": ["other: noai"], "ours": ["us: noai"]}
    answers |= {"several": ["index, NoImageAI"], "second": ["index", "noai"], "unknown": ["us: nosnippet"]}

    class Opener:
        def open(self, request, data=None, timeout=None):
            values = answers[request.full_url.rpartition("/")[2]]
            if values is None:
                raise OSError(f"{request.get_header('User-agent')} {timeout}")
            answer = io.BytesIO(request.full_url.encode())
            answer.headers = email.message.Message()
            for value in values:
                answer.headers["X-Robots-Tag"] = value
            return answer

    urllib.request.install_opener(Opener())
    said = {}
    for name in answers:
        url = f"http://a.example/{name}"
        _, body, error = function((name, url), 20, 0, "us", {"noai", "noimageai"})
        said[name] = [body and body.getvalue().decode(), error]
    return {"sha256": hashlib.sha256("".join(sources).encode()).hexdigest(), "said": said}
"""


@pytest.fixture(autouse=True)
def opener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards urllib opens what it opened before."""
    monkeypatch.setattr(urllib.request, "_opener", None)


def in_a_process(script: str, *options: str) -> dict[str, object]:
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # it would ask pypi.org for its newest version
    command = [sys.executable, *options, "-c", script]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_child_imports_the_downloader_and_no_more() -> None:
    script = f"""
import json, sys, types, urllib.request
import pipelines.s1_download.child.worker
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.child.img2dataset_shard import download_function, run_shard
from pipelines.s1_download.http.transport import Outcome, guarded_opener
found = download_function()
assert found is download_function()
fetch = lambda url: Outcome(url, final_url=url, http_status=200, body=b"x")
urllib.request.install_opener(guarded_opener(fetch))
taken = []
run_shard(["http://a.example/1"], DownloadConfig(), lambda *what: taken.append(what))
heavy = [name for name in {HEAVY!r} if name in sys.modules]
stand_ins = [name for name in sys.modules if name.partition(".")[0] in ("img2dataset", "wandb")]
for name, module in sys.modules.items():  # nobody has taken a stand-in for the real one
    values = list(vars(module).values()) if isinstance(module, types.ModuleType) else []
    named = [value.__name__ for value in values if isinstance(value, types.ModuleType)]
    stand_ins += [name for value in named if value.partition(".")[0] in ("img2dataset", "wandb")]
print(json.dumps({{"heavy": heavy, "module": found.__module__, "taken": len(taken), "stand_ins": stand_ins}}))
"""
    assert in_a_process(script) == {"heavy": [], "module": "img2dataset.downloader", "taken": 1, "stand_ins": []}


def test_the_function_is_the_one_that_was_checked(project_root: Path) -> None:
    """After an upgrade: read what has changed, run the slow tests here, then write down the new version and hash."""
    requirements = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    assert f"img2dataset=={VERSION}" in requirements["optional-dependencies"]["pipeline"]
    names = ("is_disallowed", "download_image", "download_image_with_retry")
    source = "".join(inspect.getsource(download_function().__globals__[name]) for name in names)  # type: ignore[attr-defined]
    assert (
        hashlib.sha256(source.encode()).hexdigest()
        == "e7da987442d9f274d58c21243296f098c6704a6de6d15e5935c137c22a9db717"
    )


@pytest.mark.slow
def test_it_is_the_function_of_the_ordinary_import_and_does_the_same() -> None:
    ours = in_a_process(
        f"""{DESCRIBE}
import json
from pipelines.s1_download.child.img2dataset_shard import download_function
print(json.dumps(describe(download_function())))
"""
    )
    ordinary = in_a_process(
        f"""{DESCRIBE}
import json
from img2dataset.downloader import download_image_with_retry
print(json.dumps(describe(download_image_with_retry)))
"""
    )
    assert ours == ordinary
    said = ours["said"]
    assert isinstance(said, dict)
    refused = {name for name, (body, _) in said.items() if body is None}
    assert refused == {"error", "all", "ours", "several", "second"}
    assert said["none"] == ["http://a.example/none", None]


@pytest.mark.slow
def test_who_imports_the_whole_package_before_or_afterwards_gets_it() -> None:
    script = """
import json, sys
from pipelines.s1_download.child.img2dataset_shard import download_function
sys.modules |= dict.fromkeys(("torch", "ray", "pyspark"))  # not installed, as far as it can tell: a minute less
alone = download_function()
import img2dataset.downloader, img2dataset.logger, wandb
real = callable(img2dataset.download) and hasattr(wandb, "init") and img2dataset.logger.wandb is wandb
other = img2dataset.downloader.download_image_with_retry
download_function.cache_clear()
print(json.dumps({"real": real, "before": alone is not other, "after": download_function() is other}))
"""
    assert in_a_process(script) == {"real": True, "before": True, "after": True}


def fake_root(folder: Path, files: dict[str, str]) -> Path:
    """A folder that holds this project and, before every installed package, `files`."""
    for name in ("pipelines", "x2vlm", "datasets"):
        (folder / name).symlink_to(PROJECT_ROOT / name)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


OTHER_VERSION = "Metadata-Version: 2.1\nName: img2dataset\nVersion: 1.46.0\n"
BROKEN = {
    "of another version": ({"img2dataset-1.46.0.dist-info/METADATA": OTHER_VERSION}, "img2dataset 1.46.0 is installed"),
    "without its function": ({"img2dataset/__init__.py": "", "img2dataset/downloader.py": ""}, "cannot import name"),
    "cut off": ({"img2dataset/__init__.py": "", "img2dataset/downloader.py": "def ("}, "cannot be imported"),
    "without the file": ({"img2dataset/__init__.py": ""}, "No module named 'img2dataset.downloader'"),
    "no package": ({"img2dataset.py": ""}, "there is no package of that name"),
}


@pytest.mark.parametrize("install", BROKEN)
def test_a_broken_install_fails_the_part_and_says_what_to_do(
    install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, words = BROKEN[install]
    (tmp_path / "root").mkdir()
    (tmp_path / "part").mkdir()
    monkeypatch.setattr(runner, "PROJECT_ROOT", fake_root(tmp_path / "root", files))
    config = DownloadConfig()
    with pytest.raises(StageFailed, match="make setup") as failure:
        runner.fetch_items([Item(0, "image", "http://a.invalid/1")], tmp_path / "part", config, config.policy())
    assert words in str(failure.value)
    assert f"img2dataset=={VERSION}" in str(failure.value)


def test_a_machine_without_img2dataset_says_what_to_do(tmp_path: Path) -> None:
    """Every installed package is linked into a folder but this one; `-S` leaves the installed ones out."""
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("img2dataset", "__editable__")):
            (tmp_path / entry.name).symlink_to(entry)
    script = f"""
import json, sys
sys.path += [{str(PROJECT_ROOT)!r}, {str(tmp_path)!r}]
from pipelines.s1_download.child.img2dataset_shard import download_function
try:
    download_function()
except Exception as error:
    print(json.dumps({{"type": type(error).__name__, "words": str(error)}}))
"""
    found = in_a_process(script, "-S")
    assert found["type"] == "StageFailed"
    assert "is not installed here; run `make setup`" in str(found["words"])


def test_every_url_gets_its_outcome() -> None:
    urls = [f"http://a.example/{number}-ü" for number in range(50)]

    def fetch(url: str) -> Outcome:
        if url.endswith("7-ü"):
            raise Refusal("connect_failed", "nobody there")
        return Outcome(url, final_url=url, http_status=200, body=url.encode())

    urllib.request.install_opener(guarded_opener(fetch))
    taken: dict[str, tuple[bytes | None, str]] = {}
    run_shard(urls, DownloadConfig(threads=4), lambda url, body, why: taken.update({url: (body, why)}))
    assert set(taken) == set(urls)
    for url, (body, why) in taken.items():
        if url.endswith("7-ü"):
            assert body is None
            assert "nobody there" in why
        else:
            assert (body, why) == (url.encode(), "")


def test_what_the_taker_raises_is_raised() -> None:
    def full(url: str, body: bytes | None, why: str) -> None:
        raise OSError("the disk is full")

    fetch = lambda url: Outcome(url, final_url=url, http_status=200, body=b"x")  # noqa: E731
    urllib.request.install_opener(guarded_opener(fetch))
    with pytest.raises(OSError, match="the disk is full"):
        run_shard(["http://a.example/1", "http://a.example/2"], DownloadConfig(threads=2), full)
