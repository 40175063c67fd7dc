"""The shipped corpus is what its script makes, byte for byte, and a changed input stops the script."""

import csv
import filecmp
import importlib.metadata
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.corpora.inputs import lay_out_corpus_inputs
from tests.support.corpora.sample_files import ANNOTATIONS, CORPUS, MEDIA, ROOT, read_csv


def locked_version(library: str) -> str:
    match = re.search(rf"^{library}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert match, library
    return match[1]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with everything the corpus is made from."""
    return lay_out_corpus_inputs(tmp_path / "samples")


def test_building_again_gives_identical_bytes(inputs: Path, tmp_path: Path) -> None:
    for library in ("pillow", "pyarrow"):
        if importlib.metadata.version(library) != locked_version(library):
            pytest.skip(f"{library} is not the locked version; its encoder may write other bytes")
    command = [sys.executable, str(ROOT / "pipelines/corpora/sample/build.py")]
    command += ["--samples", str(inputs), "--out", str(tmp_path / "again")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shipped = {"ATTRIBUTION.csv", "planted.csv"}
    for folder in (MEDIA, ANNOTATIONS):
        shipped |= {str(path.relative_to(CORPUS)) for path in folder.rglob("*") if path.is_file()}
    built = {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert built == shipped
    _, different, errors = filecmp.cmpfiles(CORPUS, tmp_path / "again", shipped, shallow=False)
    assert (different, errors) == ([], [])


def test_a_photo_that_is_not_as_recorded_stops_the_build(inputs: Path, tmp_path: Path) -> None:
    rows = read_csv(inputs / "PROVENANCE.csv")
    (inputs / "PROVENANCE.csv").unlink()
    changed = next(row for row in rows if row["file"] == "coco/images/train2017/000000000790.jpg")
    changed["licence"] = "image: CC BY-NC 2.0"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (inputs / "PROVENANCE.csv").write_text(text.getvalue(), encoding="utf-8")
    command = [sys.executable, str(ROOT / "pipelines/corpora/sample/build.py"), "--samples", str(inputs)]
    result = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "000000000790.jpg: not under CC BY 2.0" in result.stderr
    assert not list((tmp_path / "out").iterdir())
