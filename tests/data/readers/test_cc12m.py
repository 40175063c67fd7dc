"""CC12M: URL before caption, and files that are not it. No real row was at hand when this was written."""

from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable


def write(folder: Path, text: str) -> Path:
    path = folder / "cc12m.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_url_then_caption(tmp_path: Path) -> None:
    text = 'http://x/1.jpg\t<PERSON> was "the first US president"\nhttp://x/2.jpg\tnull\n\thi\nhttp://x/3.jpg\n'
    samples, drops = read("cc12m", source("cc12m", rows=write(tmp_path, text)))
    assert [(sample.source_row, sample.url, sample.captions[0].text) for sample in samples] == [
        ("0", "http://x/1.jpg", '<PERSON> was "the first US president"'),
        ("1", "http://x/2.jpg", "null"),
    ]
    assert samples[0].captions[0].origin == "alt"
    assert rules(drops) == [("2", "row", "", "missing_url"), ("3", "row", "", "wrong_column_count")]


def test_a_cc3m_file_is_refused(shared_dir: Path) -> None:
    path = shared_dir / "samples" / "cc3m" / "Validation_GCC-1.1.0-Validation.head.tsv"
    with pytest.raises(SourceUnavailable) as error:
        read("cc12m", source(rows=path))
    assert str(error.value) == (
        f"card test_card: rows file {path.name}: none of its first 100 rows is a CC12M row: "
        "caption and URL are swapped, as in CC3M. Check the card's reader and download the file again"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the file is empty"), ("a b\n", "1 rows is a CC12M row: expected a URL, a tab and a caption per line")],
)
def test_another_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceUnavailable, match=message):
        read("cc12m", source(rows=write(tmp_path, text)))
