"""WebVid: columns by name in any order, ids as text, and rows that are no good."""

from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable

HEADER = '"videoid","contentUrl","duration","page_dir","name"\n'


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "results.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_real_file_with_another_order_of_columns(excerpts_dir: Path) -> None:
    path = excerpts_dir / "video2dataset" / "test_yt.csv"
    samples, drops = read("webvid", source("webvid", rows=path))
    assert drops == []
    assert (samples[0].source_row, samples[0].kind) == ("jLX0D8qQUBM", "video")
    assert samples[0].url == "https://www.youtube.com/watch?v=jLX0D8qQUBM"
    assert samples[0].captions[0].text == "Aesthetics predictor from side-by-side comparisions"
    assert len(samples) == len(path.read_text().splitlines()) - 1


def test_ids_stay_text_and_quoted_commas_stay_inside(tmp_path: Path) -> None:
    rows = '"007","http://x/7.mp4","PT00H00M17S","p","Waves, seen ""from"" above"\n"-5","http://x/5.mp4","","p","b c"\n'
    samples, drops = read("webvid", source(rows=csv_file(tmp_path, "\ufeff" + HEADER + rows)))
    assert [sample.source_row for sample in samples] == ["007", "-5"]
    assert samples[0].captions[0].text == 'Waves, seen "from" above'
    assert (samples[0].start_seconds, samples[0].end_seconds, drops) == (None, None, [])


def test_bad_rows_are_dropped(tmp_path: Path) -> None:
    rows = [
        "1,http://x/1.mp4,PT1S,p,a dog",
        "2,http://x/2.mp4,PT1S,p,",
        "3,,PT1S,p,a cat",
        "1,http://x/other.mp4,PT1S,p,again",
        "5,http://x/5.mp4",
        ",http://x/6.mp4,PT1S,p,no id",
    ]
    samples, drops = read("webvid", source(rows=csv_file(tmp_path, HEADER + "\n".join(rows) + "\n")))
    assert [sample.source_row for sample in samples] == ["1"]
    assert rules(drops) == [
        ("2", "row", "", "empty_caption"),
        ("3", "row", "", "missing_url"),
        ("1", "row", "", "duplicate_row"),
        ("line 6", "row", "", "wrong_column_count"),
        ("line 7", "row", "", "malformed_row"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("videoid,name\n1,a\n", "line 1 has no column contentUrl; it has videoid, name"),
        ("", "line 1 has no column videoid, contentUrl, name; it has nothing"),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceUnavailable, match=f"card test_card: rows file results.csv: {message}"):
        read("webvid", source(rows=csv_file(tmp_path, text)))
