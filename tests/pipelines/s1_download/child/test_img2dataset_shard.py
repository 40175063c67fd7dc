"""img2dataset without the rest of its package: what is imported, what comes out, what an error does."""

import json
import subprocess
import sys
import urllib.request

import pytest

from pipelines.project import PROJECT_ROOT
from pipelines.s1_download.child.img2dataset_shard import _bare_package, run_shard
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Refusal
from pipelines.s1_download.http.transport import Outcome, guarded_opener

HEAVY = ("wandb", "albumentations", "cv2", "pandas", "webdataset", "torch", "ray", "pyspark", "img2dataset.main")


@pytest.fixture(autouse=True)
def opener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards urllib opens what it opened before."""
    monkeypatch.setattr(urllib.request, "_opener", None)


def in_a_process(script: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_child_imports_the_downloader_and_no_more() -> None:
    script = f"""
import json, sys, urllib.request
import pipelines.s1_download.child.worker
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.child.img2dataset_shard import downloader_module, run_shard
from pipelines.s1_download.http.transport import Outcome, guarded_opener
found = downloader_module()
assert found is downloader_module()
fetch = lambda url: Outcome(url, final_url=url, http_status=200, body=b"x")
urllib.request.install_opener(guarded_opener(fetch))
taken = []
run_shard(["http://a.example/1"], DownloadConfig(), lambda *what: taken.append(what))
heavy = [name for name in {HEAVY!r} if name in sys.modules]
stands_in = "img2dataset" in sys.modules
print(json.dumps({{"heavy": heavy, "module": found.__name__, "taken": len(taken), "stands_in": stands_in}}))
"""
    assert in_a_process(script) == {"heavy": [], "module": "img2dataset.downloader", "taken": 1, "stands_in": False}


@pytest.mark.slow
def test_who_imports_the_whole_package_afterwards_gets_it() -> None:
    script = """
import json, sys
from pipelines.s1_download.child.img2dataset_shard import downloader_module
sys.modules |= dict.fromkeys(("torch", "ray", "pyspark"))  # not installed, as far as it can tell: a minute less
light = downloader_module()
import img2dataset, wandb
print(json.dumps({"download": callable(img2dataset.download), "wandb": hasattr(wandb, "init")}))
"""
    assert in_a_process(script) == {"download": True, "wandb": True}


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


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(ImportError, match="no_such_package is not installed"):
        _bare_package("no_such_package")
