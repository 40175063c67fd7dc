"""HowTo100M: clips with their times, ids that look like something else, and the transcript without stop words."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Caption

VIDEOS = "video_id,category_1,category_2,rank,task_id\n"


def captions(folder: Path, content: Any, name: str = "raw_caption.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def videos(folder: Path, *ids: str) -> Path:
    path = folder / "HowTo100M_v1.csv"
    path.write_text(VIDEOS + "".join(f"{video_id},Food,Recipes,1,2\n" for video_id in ids))
    return path


def said(*texts: str) -> dict[str, list[Any]]:
    times = range(len(texts))
    return {"text": list(texts), "start": [4 * time for time in times], "end": [4 * time + 6.5 for time in times]}


def test_clips_of_videos_whose_ids_look_like_flags_and_numbers(tmp_path: Path) -> None:
    ids = ["-1", "--help", "_", "1e5", "0012345678", "nan", "True"]
    content = {video_id: said(f"now {video_id}") for video_id in ids}
    files = {"raw_captions": captions(tmp_path, content), "videos": videos(tmp_path, *ids)}
    samples, drops = read("howto100m", source("howto100m", **files))
    assert [sample.source_row for sample in samples] == [f"{video_id}#0" for video_id in ids]
    assert samples[0].url == "https://www.youtube.com/watch?v=-1"
    assert (samples[4].captions, samples[4].kind) == ((Caption("now 0012345678", "en", "asr"),), "video")
    assert drops == []


def test_neighbours_share_their_video_and_count_on_over_dropped_clips(tmp_path: Path) -> None:
    content = {"aaa": said("add the\nflour", "[Music]", " [Applause]  and stir [Music] ", "")}
    samples, drops = read("howto100m", source(raw_captions=captions(tmp_path, content)))
    assert [(one.source_row, one.captions[0].text, one.start_seconds, one.end_seconds) for one in samples] == [
        ("aaa#0", "add the flour", 0.0, 6.5),
        ("aaa#2", "and stir", 8.0, 14.5),
    ]
    assert rules(drops) == [("aaa#1", "row", "", "no_speech"), ("aaa#3", "row", "", "no_speech")]


def test_rows_that_are_no_good(tmp_path: Path) -> None:
    content = {
        "aaa": {"text": ["a", "b", 3, "d", "e"], "start": [0, 5, 0, None, -1], "end": [1, 5, 1, 2, 2]},
        "bbb": {"text": ["a", "b"], "start": [0], "end": [1, 2]},
        "ccc": {"text": "abc", "start": [0], "end": [1]},
        "ddd": said("nobody listed me"),
        "eee": {"text": [], "start": [], "end": []},
    }
    listed = videos(tmp_path, "aaa", "bbb", "ccc", "eee", "fff", "aaa", "")
    listed.write_text(listed.read_text() + "ggg,Food\n")
    samples, drops = read("howto100m", source(raw_captions=captions(tmp_path, content), videos=listed))
    assert [sample.source_row for sample in samples] == ["aaa#0"]
    assert rules(drops) == [
        ("line 7", "row", "", "duplicate_row"),
        ("line 8", "row", "", "malformed_row"),
        ("line 9", "row", "", "wrong_column_count"),
        ("aaa#1", "row", "", "malformed_span"),
        ("aaa#2", "row", "", "malformed_row"),
        ("aaa#3", "row", "", "malformed_span"),
        ("aaa#4", "row", "", "malformed_span"),
        ("bbb", "row", "", "unequal_lengths"),
        ("ccc", "row", "", "malformed_row"),
        ("ddd", "row", "", "unlisted_video"),
        ("eee", "row", "", "no_captions"),
        ("fff", "row", "", "no_captions"),
    ]
    assert drops[7].reason == "text 2, start 1, end 2"


def test_a_video_that_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "raw_caption.json"
    path.write_text(f'{{"a": {json.dumps(said("one"))}, "a": {json.dumps(said("two"))}}}')
    samples, drops = read("howto100m", source(raw_captions=path))
    assert [sample.captions[0].text for sample in samples] == ["one"]
    assert rules(drops) == [("a", "row", "", "duplicate_row")]


def test_the_transcript_without_stop_words_is_refused_by_its_name(tmp_path: Path) -> None:
    path = captions(tmp_path, {"a": said("take the flour")}, "caption.json")
    with pytest.raises(SourceUnavailable) as error:
        read("howto100m", source(raw_captions=path))
    assert str(error.value) == (
        "card test_card: raw_captions file caption.json: this is the transcript without stop words. "
        "Give raw_caption.json, unpacked from raw_caption.zip. "
        "To read it nevertheless, name its role `captions_without_stop_words`"
    )
    [sample], _ = read("howto100m", source(captions_without_stop_words=path))
    assert sample.captions[0].text == "take the flour"


def test_the_transcript_without_stop_words_is_refused_by_its_text(tmp_path: Path) -> None:
    content = {f"v{number}": said("take flour bowl mix water") for number in range(200)}
    path = captions(tmp_path, content)
    with pytest.raises(SourceUnavailable, match=r"raw_caption.json: none of its first 500 words is one like `the`"):
        read("howto100m", source(raw_captions=path))
    content["v50"] = said("mix it")
    samples, drops = read("howto100m", source(raw_captions=captions(tmp_path, content)))
    assert (len(samples), drops) == (200, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"text": ["one", "tw', r"raw_caption.json: not valid JSON: Unterminated .* at byte 23\."),
        ("[]", "not a JSON object at the top level. Give raw_caption.json"),
        ("PK\x03\x04", "not a JSON object at the top level. Give raw_caption.json, unpacked from raw_caption.zip"),
    ],
)
def test_another_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "raw_caption.json"
    path.write_text(text)
    with pytest.raises(SourceUnavailable, match=message):
        read("howto100m", source(raw_captions=path))


def test_a_list_of_something_else(tmp_path: Path) -> None:
    listed = tmp_path / "HowTo100M_v1.csv"
    listed.write_text("id,name\n")
    with pytest.raises(SourceUnavailable, match="line 1 has no column video_id; it has id, name"):
        read("howto100m", source(raw_captions=captions(tmp_path, {}), videos=listed))


def test_a_list_of_urls_says_where_videos_are(tmp_path: Path) -> None:
    urls = tmp_path / "urls.tsv"
    urls.write_text("-1\thttp://howto100m.invalid/-1.mp4\n")
    content = {"-1": said("take the flour", "stir it"), "_": said("and bake")}
    samples, _ = read("howto100m", source(raw_captions=captions(tmp_path, content), urls=urls))
    assert [sample.url for sample in samples] == [
        "http://howto100m.invalid/-1.mp4",
        "http://howto100m.invalid/-1.mp4",
        "https://www.youtube.com/watch?v=_",
    ]
