"""YT-Temporal-180M: clips from words, denoised texts at the time of what was said, and lines that are no videos.

No real file was at hand; the lines here are made by hand from the published description.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable


def words(text: str, start: float = 0.0, step: float = 0.5) -> list[dict[str, Any]]:
    return [{"word": word, "time": start + step * number} for number, word in enumerate(text.split())]


def video(video_id: str, subtitles: list[Any], duration: Any = 1000, **more: Any) -> dict[str, Any]:
    return {"info": {"id": video_id, "title": "t", "duration": duration}, "subtitles": subtitles} | more


def write(folder: Path, *lines: Any, name: str = "yttemporal180m_000of100.jsonl.gz") -> Path:
    data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return folder / name


def spans(samples: list[Any]) -> list[tuple[str, str, float, float]]:
    return [(one.source_row, one.captions[0].text, one.start_seconds, one.end_seconds) for one in samples]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl"])
def test_words_become_one_clip_without_leftovers_of_html(tmp_path: Path, name: str) -> None:
    subtitles = words("so &nbsp take the gt; flour [Music] now", 3.0)
    samples, drops = read("yttemporal", source(rows=write(tmp_path, video("-a_1", subtitles), name=name)))
    assert spans(samples) == [("-a_1#0", "so take the flour now", 3.0, 7.5)]
    assert samples[0].url == "https://www.youtube.com/watch?v=-a_1"
    assert samples[0].captions[0].origin == "asr"
    assert drops == []


def test_no_clip_is_longer_than_31_words_and_no_word_is_lost(tmp_path: Path) -> None:
    text = " ".join(f"w{number}" for number in range(63))
    samples, _ = read("yttemporal", source(rows=write(tmp_path, video("a", words(text)))))
    assert [len(sample.captions[0].text.split()) for sample in samples] == [21, 21, 21]
    assert " ".join(sample.captions[0].text for sample in samples) == text
    assert [(sample.start_seconds, sample.end_seconds) for sample in samples] == [(0, 10.5), (10.5, 21), (21, 32)]
    [sample], _ = read("yttemporal", source(rows=write(tmp_path, video("a", words(text)[:31]))))
    assert sample.source_row == "a#0"


def test_denoised_texts_keep_the_times_of_the_spoken_words(tmp_path: Path) -> None:
    spoken = "um hi guys today we gonna bake bred at home so preheat you're oven"
    denoised = [
        {"noisyasr": "hi guys today we gonna bake bred", "cleanasr": "Hi, guys! Today we are going to bake bread."},
        {"noisyasr": "so preheat you're oven", "cleanasr": "So preheat your oven."},
        {"noisyasr": None, "cleanasr": "not used"},
    ]
    samples, drops = read("yttemporal", source(rows=write(tmp_path, video("a", words(spoken), denoised=denoised))))
    # "hi" is word 1, "bred" word 7 (its next word begins at 4.0), "so" word 10, "oven" word 13.
    assert spans(samples) == [
        ("a#0", "Hi, guys! Today we are going to bake bread.", 0.5, 4.0),
        ("a#1", "So preheat your oven.", 5.0, 7.5),
    ]
    assert drops == []


def test_the_last_clip_may_pass_the_end_of_the_video(tmp_path: Path) -> None:
    late = [{"word": "bye", "time": 99.0}]
    rows = write(
        tmp_path,
        video("a", words("hello there", 98.0), 99.2),
        video("b", late, 100),
        video("c", late, 99.9),
        video("d", late, None),
    )
    samples, drops = read("yttemporal", source(rows=rows))
    assert spans(samples) == [("a#0", "hello there", 98.0, 99.2), ("d#0", "bye", 99.0, 100.0)]
    assert rules(drops) == [("b#0", "row", "", "past_duration"), ("c#0", "row", "", "past_duration")]


def test_lines_that_are_no_good(tmp_path: Path) -> None:
    rows = write(
        tmp_path,
        video("a", words("one")),
        '{"info": {',
        {"subtitles": []},
        video("", []),
        {"info": {"id": "b"}},
        video("c", words("[Music] &amp")),
        video("d", [{"word": "late"}, {"word": 3, "time": 0}, {"word": "early", "time": "0"}, 7]),
        video("a", words("again")),
    )
    samples, drops = read("yttemporal", source(**{"rows-000": rows}))
    assert [sample.source_row for sample in samples] == ["a#0"]
    name = rows.name
    assert rules(drops) == [
        *[(f"{name} line {number}", "row", "", "malformed_row") for number in (2, 3, 4, 5)],
        ("c", "row", "", "no_speech"),
        ("d", "row", "", "no_speech"),
        (f"{name} line 8", "row", "", "duplicate_row"),
    ]


def test_a_truncated_or_other_file(tmp_path: Path) -> None:
    path = write(tmp_path, *[video(f"v{number}", words(f"word{number} {number * 7919}")) for number in range(500)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceUnavailable, match=r"not readable after line \d+: .* download it again"):
        read("yttemporal", source(rows=path))
    with pytest.raises(SourceUnavailable, match=r"none of its first 2 lines is a video. Expected lines of JSON"):
        read("yttemporal", source(rows=write(tmp_path, "<html>", "</html>", name="b.jsonl")))
    with pytest.raises(SourceUnavailable, match="the file is empty"):
        read("yttemporal", source(rows=write(tmp_path, name="c.jsonl")))
    with pytest.raises(SourceUnavailable, match="needs a file for role `rows`"):
        read("yttemporal", source())
