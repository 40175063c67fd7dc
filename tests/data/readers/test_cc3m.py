"""CC3M: real lines, literal quotes, words that look like nothing, and files of another kind."""

from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable


def test_real_lines(excerpts_dir: Path) -> None:
    path = excerpts_dir / "cc3m" / "Validation_GCC-1.1.0-Validation.head.tsv"
    samples, drops = read("cc3m", source("cc3m", rows=path))
    assert (len(samples), drops) == (200, [])
    assert [sample.source_row for sample in samples] == [str(number) for number in range(200)]
    assert samples[1].captions[0].text == "an angler fishes river on a snowy day ."
    assert samples[1].url == ("http://www.standard.net/image/2015/02/04/800x_a16-9_b0_q81_p1/winter-fly-fishing.jpg")
    assert samples[0].captions[0].origin == "alt"


def tsv(folder: Path, content: bytes) -> Path:
    path = folder / "rows.tsv"
    path.write_bytes(content)
    return path


def test_quotes_and_null_words_are_text(tmp_path: Path) -> None:
    lines = b'"a dog\thttp://x/1.jpg\r\nnull\thttp://x/2.jpg\nnan\thttp://x/3.jpg\n say ""hi""\thttp://x/4.jpg'
    samples, drops = read("cc3m", source(rows=tsv(tmp_path, lines)))
    assert [sample.captions[0].text for sample in samples] == ['"a dog', "null", "nan", 'say ""hi""']
    assert [sample.url for sample in samples] == [f"http://x/{number}.jpg" for number in (1, 2, 3, 4)]
    assert drops == []


def test_bad_lines_are_dropped_under_their_line_number(tmp_path: Path) -> None:
    lines = [
        b"a dog\thttp://x/0.jpg",
        b"one column",
        b"a\tb\tc",
        b"",
        b" \thttp://x/4.jpg",
        b"a cat\t ",
        b"\xff\xfe\thttp://x/6.jpg",
        b"a file\tfile:///etc/hostname",
    ]
    samples, drops = read("cc3m", source(rows=tsv(tmp_path, b"\n".join(lines) + b"\n")))
    assert [sample.source_row for sample in samples] == ["0", "7"]
    assert rules(drops) == [
        ("1", "row", "", "wrong_column_count"),
        ("2", "row", "", "wrong_column_count"),
        ("3", "row", "", "wrong_column_count"),
        ("4", "row", "", "empty_caption"),
        ("5", "row", "", "missing_url"),
        ("6", "row", "", "not_utf8"),
    ]
    assert [drop.value for drop in drops[:3]] == [1, 3, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b"http://x/1.jpg\ta dog\n",
            "none of its first 100 rows is a CC3M row: caption and URL are swapped, as in CC12M",
        ),
        (b"<html>not found</html>\n", "expected a caption, a tab and a URL per line"),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, line: bytes, message: str) -> None:
    with pytest.raises(SourceUnavailable, match=f"card test_card: rows file rows.tsv: .*{message}"):
        read("cc3m", source(rows=tsv(tmp_path, line * 200)))


def test_a_short_or_empty_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="none of its first 3 rows"):
        read("cc3m", source(rows=tsv(tmp_path, b"x\n" * 3)))
    with pytest.raises(SourceUnavailable, match="the file is empty"):
        read("cc3m", source(rows=tsv(tmp_path, b"")))
