"""What a run leaves is a model ready for use: the page of captions and boxes, and the example in README.md."""

from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, SampleRun, run_job
from tests.support.documentation import readme_example


def test_the_job_makes_a_page_of_the_sample_model(sample_run: SampleRun, tmp_path: Path) -> None:
    (folder,) = sample_run.store.glob("parts/pretrain/*/*")
    media = ROOT / "datasets" / "sample" / "media"
    photo, clip, bad = media / "photos" / "000000000785.jpg", media / "clips" / "nasa.mp4", media / "bad"
    files = [str(path) for path in (photo, clip, bad)]
    out = tmp_path / "page.html"
    job = run_job("show.py", str(folder), *files, "--phrases", "a woman", "--out", str(out), "--json")
    assert job.returncode == 0, job.stderr
    # Three of the eight bad files are sound images of a size that training refuses.
    assert (job.json["shown"], len(job.json["skipped"])) == (5, 5)
    assert out.read_text(encoding="utf-8").count("data:image/jpeg") == 4 + 3
    assert run_job("show.py", str(folder), str(photo)).returncode == 3


def test_the_readme_example_runs_on_the_sample_model(
    sample_run: SampleRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "store").symlink_to(sample_run.store)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    monkeypatch.chdir(tmp_path)
    exec(compile(readme_example(ROOT), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().split("\n")) == 3
