"""LAION: a real file, every spelling and type that releases use, and broken Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import SourceScores, sample_table, samples_of


def parquet(folder: Path, name: str = "part.parquet", **columns: Any) -> Path:
    path = folder / name
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_a_real_file(excerpts_dir: Path) -> None:
    path = excerpts_dir / "laion_img2dataset" / "sample_image.parquet"
    samples, drops = read("laion", source("laion", rows=path))
    assert drops == []
    assert [(sample.source_row, sample.captions[0].text) for sample in samples] == [
        ("0", "Lorem Ipsum"),
        ("1", "Lorem Ipsum"),
    ]
    assert samples[0].url.endswith("/tests/blur_test_files/original.png")


@pytest.mark.parametrize(
    "columns",
    [
        {"SAMPLE_ID": [1], "URL": ["http://x"], "TEXT": ["a dog"], "HEIGHT": [20], "WIDTH": [10]},
        {"sample_id": [None], "url": ["http://x"], "text": ["a dog"], "height": [20.0], "width": [10.0]},
        {"URL": ["http://x"], "txt": ["a dog"], "HEIGHT": ["20"], "WIDTH": ["10"]},
        {"Url": pa.array(["http://x"]).dictionary_encode(), "Caption": ["a dog"], "Height": [20], "Width": [10]},
        {
            "URL": pa.array(["http://x"], pa.large_string()),
            "TEXT": pa.array(["a dog"], pa.large_string()),
            "HEIGHT": pa.array([20], pa.int32()),
            "WIDTH": pa.array([10], pa.float32()),
        },
    ],
)
def test_spellings_and_types_of_releases(tmp_path: Path, columns: dict[str, Any]) -> None:
    [sample], drops = read("laion", source(rows=parquet(tmp_path, **columns)))
    assert (sample.url, sample.captions[0].text, sample.claimed_width, sample.claimed_height) == (
        "http://x",
        "a dog",
        10,
        20,
    )
    assert drops == []


def test_sizes_that_are_not_sizes_are_unknown(tmp_path: Path) -> None:
    heights = [float("nan"), None, 0.0, -5.0, float("inf"), 7.0]
    path = parquet(tmp_path, URL=["http://x"] * 6, TEXT=["a"] * 6, HEIGHT=heights, WIDTH=[3] * 6)
    samples, _ = read("laion", source(rows=path))
    assert [sample.claimed_height for sample in samples] == [None, None, None, None, None, 7]


def test_rows_without_url_or_text_keep_their_number(tmp_path: Path) -> None:
    path = parquet(tmp_path, URL=["http://0", None, "http://2", " ", "http://4"], TEXT=["a", "b", None, "d", " \n"])
    samples, drops = read("laion", source(rows=path))
    assert [sample.source_row for sample in samples] == ["0"]
    assert rules(drops) == [
        ("1", "row", "", "missing_url"),
        ("2", "row", "", "empty_caption"),
        ("3", "row", "", "missing_url"),
        ("4", "row", "", "empty_caption"),
    ]


def test_languages_and_licences_come_from_the_row_where_it_names_them(tmp_path: Path) -> None:
    values = {"URL": ["u:0", "u:1"], "TEXT": ["a", "b"], "LANGUAGE": ["de", None], "LICENSE": ["CC0", "?"]}
    samples, _ = read("laion", source(rows=parquet(tmp_path, **values)))
    assert [(sample.captions[0].language, sample.licence) for sample in samples] == [
        ("de", "CC0"),
        ("en", "card licence"),
    ]


def test_adding_a_file_changes_no_key(tmp_path: Path) -> None:
    first = parquet(tmp_path, "a.parquet", URL=["http://a"], TEXT=["a"])
    second = parquet(tmp_path, "b.parquet", URL=["http://b"], TEXT=["b"])
    [alone], _ = read("laion", source(**{"rows-b": second}))
    [one, two], _ = read("laion", source(**{"rows": first, "rows-b": second}))
    assert (one.source_row, two.source_row) == ("0", "b:0")
    assert two == alone


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"LINK": ["http://x"], "TEXT": ["a"]}, "no column URL; it has LINK, TEXT"),
        ({"URL": ["http://x"], "WORDS": ["a"]}, "no column TEXT; it has URL, WORDS"),
        ({"URL": [1], "TEXT": ["a"]}, "column URL holds int64, not text"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceUnavailable, match=f"card test_card: rows file part.parquet: {message}"):
        read("laion", source(rows=parquet(tmp_path, **columns)))


def test_broken_parquet_says_after_which_row(tmp_path: Path) -> None:
    path = parquet(tmp_path, URL=[f"http://{n}" for n in range(6)], TEXT=[str(n) for n in range(6)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceUnavailable, match=r"not readable as Parquet after row 0: .*download it again"):
        read("laion", source(rows=path))
    path.write_bytes(b"<html>")
    with pytest.raises(SourceUnavailable, match="not readable as Parquet"):
        read("laion", source(rows=path))


def test_no_file_at_all() -> None:
    with pytest.raises(SourceUnavailable, match="LAION needs a file for role `rows`"):
        read("laion", source())


@pytest.mark.parametrize(
    ("columns", "scores"),
    [
        ({"LICENSE": ["?"], "NSFW": ["UNLIKELY"], "similarity": [0.3]}, SourceScores(0.3, None, None, "UNLIKELY")),
        ({"NSFW": [None], "Similarity": [0.3], "PUNSAFE": [0.5], "pwatermark": [0.4]}, SourceScores(0.3, 0.5, 0.4)),
        ({"punsafe": pa.array([0.25], pa.float32())}, SourceScores(punsafe=0.25)),
        ({"punsafe": [float("nan")], "pwatermark": ["much"], "similarity": [None]}, SourceScores()),
        ({"nsfw": pa.array(["NSFW"]).dictionary_encode()}, SourceScores(nsfw="NSFW")),
        ({"LICENSE": ["?"]}, None),
    ],
)
def test_what_a_release_says_about_its_rows_goes_with_them(
    tmp_path: Path, columns: dict[str, Any], scores: SourceScores | None
) -> None:
    [sample], _ = read("laion", source(rows=parquet(tmp_path, URL=["http://x"], TEXT=["a dog"], **columns)))
    assert sample.source_scores == scores
    assert samples_of(sample_table([sample])) == [sample]


@pytest.mark.parametrize(
    "extra",
    [
        {"SAMPLE_ID": [7], "LICENSE": ["?"]},
        {"LANGUAGE": ["en"], "md5": [None], "hash": [-5]},
        {"hash": ["d41d8cd98f00b204e9800998ecf8427e"], "md5": pa.array([5], pa.int64())},
        {"__index_level_0__": [3], "sha256hash": ["e3b0c442"]},
    ],
)
def test_columns_without_a_place_change_nothing(tmp_path: Path, extra: dict[str, Any]) -> None:
    plain = parquet(tmp_path, "plain.parquet", URL=["http://x"], TEXT=["a dog"])
    joined = parquet(tmp_path, "joined.parquet", URL=["http://x"], TEXT=["a dog"], **extra)
    assert read("laion", source(rows=joined)) == read("laion", source(rows=plain))


def test_hashes_of_the_images_are_read_in_every_spelling(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "MD5": ["D41D8CD98F00B204E9800998ECF8427E", "d41d8cd98f00b204e9800998ecf8427e", "no hash", None],
        "sha256hash": ["", "ab" * 32, "ab" * 31, None],
    }
    path = parquet(tmp_path, URL=["http://x"] * 4, TEXT=["a dog"] * 4, **columns)
    samples, _ = read("laion", source(rows=path))
    md5 = "md5:d41d8cd98f00b204e9800998ecf8427e"
    assert [sample.published_hash for sample in samples] == [md5, "sha256:" + "ab" * 32, "", ""]
