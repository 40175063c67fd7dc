"""What img2dataset 1.47.0 has downloaded, in each of its formats, through read, download and filter."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.why.trace import trace_rows
from tests.support.sets.img2dataset_runs import BROKEN, FORMATS, GONE, NUM_ROWS, caption
from tests.support.sets.pipeline import EXPERIMENT, SetRun, make_card, run_set

READERS = {"webdataset": ("webdataset", "*.tar"), "parquet": ("webdataset", "*.parquet"), "files": ("folder", "**")}
GOOD = [number for number in range(NUM_ROWS) if number not in (*GONE, *BROKEN)]


@pytest.fixture(scope="module")
def runs(img2dataset_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SetRun]:
    """One run of the three stages on each."""
    found = {}
    for output_format in FORMATS:
        reader, path = READERS[output_format]
        card = make_card(reader, str(img2dataset_outputs / output_format), path)
        found[output_format] = run_set(tmp_path_factory.mktemp(output_format), card)
    return found


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_row_is_kept_or_dropped_with_its_reason(runs: dict[str, SetRun], output_format: str) -> None:
    run = runs[output_format]
    suffix = ".jpg" if output_format == "files" else ""
    samples = run.samples()
    by_row = {s.source_row: s for s in samples}
    assert by_row.keys() == {f"{number // 10:05d}/{number:06d}{suffix}" for number in GOOD}
    for number in GOOD:
        sample = by_row[f"{number // 10:05d}/{number:06d}{suffix}"]
        assert sample.url.endswith(f"/{number}.jpg")  # the address it came from, and the shard in its row
        assert [one.text for one in sample.captions] == [" ".join(caption(number).split())]
        assert sample.published_hash.startswith("sha256:")
    read, download = run.dropped("read/own"), run.dropped("download/own")
    if output_format == "parquet":
        assert (read, download) == ({"failed_to_download": len(GONE), "failed_to_resize": len(BROKEN)}, {})
    else:
        assert (read, download) == ({"failed_to_download": len(GONE)}, {"not_an_image": len(BROKEN)})


@pytest.mark.parametrize("output_format", FORMATS)
def test_published_hashes_are_compared_with_the_bytes(runs: dict[str, SetRun], output_format: str) -> None:
    """img2dataset hashes what it fetched: only where it has not encoded anew can the bytes have that hash."""
    checks = [row["hash_check"] for row in runs[output_format].tables("download/own", "ledger")]
    assert set(checks) == {"mismatch" if output_format == "parquet" else "match"}


def test_the_formats_hold_the_same_bytes(runs: dict[str, SetRun]) -> None:
    media = [{s.url: s.media.sha256 for s in runs[name].samples() if s.media} for name in ("webdataset", "files")]
    assert media[0] == media[1]
    assert len(media[0]) == len(GOOD)


@pytest.mark.parametrize("output_format", FORMATS)
def test_why_tells_the_reason_of_a_row_that_img2dataset_could_not_fetch(
    runs: dict[str, SetRun], output_format: str
) -> None:
    (trace,) = trace_rows(runs[output_format].store, EXPERIMENT, f"own:00000/00000{GONE[0]}")
    text = "\n".join(trace.lines())
    assert "failed_to_download" in text
    assert "404" in text
    assert f"/{GONE[0]}.jpg" in text


def test_a_shard_that_was_not_finished_is_said_and_used(
    img2dataset_outputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As img2dataset leaves it when it is killed: no statistics, no end of the table, a tar that breaks off."""
    shutil.copytree(img2dataset_outputs / "webdataset", tmp_path / "set")
    (tmp_path / "set" / "00001_stats.json").unlink()
    for name in ("00001.parquet", "00001.tar"):
        path = tmp_path / "set" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = run_set(tmp_path, make_card("webdataset", str(tmp_path / "set"), "{00000..00002}.tar"))
    dropped = run.dropped("read/own")
    assert dropped["truncated_shard"] == 1
    rows = [s.source_row for s in run.samples()]
    assert 1 <= len([row for row in rows if row.startswith("00001/")]) < 9
    assert len([row for row in rows if not row.startswith("00001/")]) == len([n for n in GOOD if not 10 <= n < 20])
    assert "shard_unfinished" in caplog.text
    assert "shard=00001" in caplog.text
    assert "shard=00000" not in caplog.text


def test_a_picture_that_the_table_promises_is_missed(img2dataset_outputs: Path, tmp_path: Path) -> None:
    shutil.copytree(img2dataset_outputs / "files", tmp_path / "set")
    for ending in ("jpg", "txt", "json"):
        (tmp_path / "set" / "00002" / f"000020.{ending}").unlink()
    stats = json.loads((tmp_path / "set" / "00002_stats.json").read_text())
    run = run_set(tmp_path, make_card("folder", str(tmp_path / "set"), "**"))
    dropped = run.dropped("read/own")
    assert dropped == {"failed_to_download": len(GONE), "missing_from_shard": 1}
    assert stats["successes"] == 4
