"""CC12M: URL before caption, and files that are not it. No real row was at hand when this was written."""

import gzip
import logging
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


def test_a_cc3m_file_is_refused(excerpts_dir: Path) -> None:
    path = excerpts_dir / "cc3m" / "Validation_GCC-1.1.0-Validation.head.tsv"
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


HASH_LINES = [
    "http://x/1.jpg\t" + "AB" * 32 + "\t" + "cd" * 16,
    "http://x/2.jpg\t\t" + "cd" * 16,
    "http://x/3.jpg\tnot hex\t",
    "http://x/1.jpg\t" + "00" * 32 + "\t" + "00" * 16,  # again: the first line counts
    "http://other\t" + "11" * 32 + "\t" + "11" * 16,
]


@pytest.mark.parametrize("name", ["hashes.tsv", "hashes.tsv.gz"])
def test_the_published_hashes_are_joined_by_url(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = write(tmp_path, "".join(f"http://x/{number}.jpg\ttext\n" for number in (4, 3, 2, 1)))
    data = "\n".join(HASH_LINES).encode()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    with caplog.at_level(logging.INFO):
        samples, drops = read("cc12m", source(rows=rows, hashes=tmp_path / name))
    assert [sample.published_hash for sample in samples] == ["", "", "md5:" + "cd" * 16, "sha256:" + "ab" * 32]
    assert drops == []
    assert "lines=5 lines_without_hash=1" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"http://x\ta caption\n", "none of its first 1 lines is a URL, a SHA256 and an MD5"),
        (gzip.compress("\n".join(HASH_LINES).encode(), mtime=0)[:-20], "hashes file h: not readable after line"),
    ],
)
def test_a_list_of_hashes_that_is_none_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "h").write_bytes(data)
    rows = write(tmp_path, "http://x/1.jpg\ttext\n")
    with pytest.raises(SourceUnavailable, match=message):
        read("cc12m", source(rows=rows, hashes=tmp_path / "h"))
