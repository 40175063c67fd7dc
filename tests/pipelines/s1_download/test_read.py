"""The read stage on the shipped corpus and on small files: planted verdicts, chunks, order, repeatability."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.flow.stage import Part, PartSummary
from pipelines.s1_download.read import READ, ReadConfig, finish_read, read_config
from tests.support.flow_helpers import folder_bytes, read_rows, run_stage_part, upstream_input
from x2vlm.data.cards import file_paths, load_card
from x2vlm.errors import ConfigError
from x2vlm.samples import DROP_SCHEMA, SAMPLE_SCHEMA, sample_key

SAMPLE_CARDS = ["coco", "coco_heldout", "visual_genome", "cc3m", "laion", "openimages", "webvid"]


def plan(project_root: Path, name: str, **changes: object) -> tuple[ReadConfig, Part]:
    """The config and the only part that reads a sample card's files."""
    path = project_root / "datasets" / "sample" / f"{name}.yaml"
    card = load_card(path)
    config = read_config(card).model_copy(update=changes)
    files = tuple(upstream_input(Path(file), name) for file in file_paths(card, project_root).values())
    [part] = READ.plan_parts(config, {"card": (upstream_input(path, name),), "files": files})
    return config, part


def planted(project_root: Path, source: str, stage: str) -> list[tuple[str, str]]:
    """(row key, rule) of the rows that were planted for a stage."""
    with (project_root / "datasets" / "sample" / "planted.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["source"], row["stage"]) == (source, stage)]
    return [(row["row_key"], row["rule"]) for row in rows]


@pytest.mark.parametrize("name", SAMPLE_CARDS)
def test_planted_rows_get_their_verdict_and_nothing_else_goes(project_root: Path, tmp_path: Path, name: str) -> None:
    config, part = plan(project_root, name)
    result = run_stage_part(READ, config, part, tmp_path / "out")
    drops = read_rows(tmp_path / "out", "drops.parquet")
    got = {
        (f"concept:{drop['item']}" if drop["unit"] == "concept" else drop["source_row"], drop["rule"]) for drop in drops
    }
    expected = set(planted(project_root, name, "read"))
    assert got >= expected
    # The held-out photos come with one upstream crowd that nobody planted.
    assert {rule for _, rule in got - expected} <= ({"iscrowd"} if name == "coco_heldout" else set())
    assert result.counts["rows"].num_out > 0
    assert all(drop["stage"] == "read" for drop in drops)


@pytest.mark.parametrize("name", SAMPLE_CARDS)
def test_rows_that_later_stages_must_judge_are_read(project_root: Path, tmp_path: Path, name: str) -> None:
    config, part = plan(project_root, name)
    run_stage_part(READ, config, part, tmp_path / "out")
    rows = read_rows(tmp_path / "out", "rows-*.parquet")
    keys = {row["source_row"] for row in rows}
    concepts = {f"concept:{concept['annotation_id']}" for row in rows for concept in row["concepts"]}
    later = [*planted(project_root, name, "download"), *planted(project_root, name, "filter")]
    assert {key for key, _ in later} <= keys | concepts


def test_files_hold_so_many_rows_each_in_upstream_order(project_root: Path, tmp_path: Path) -> None:
    config, part = plan(project_root, "cc3m", rows_per_file=4)
    result = run_stage_part(READ, config, part, tmp_path / "out")
    names = [path.name for path in sorted((tmp_path / "out").glob("rows-*"))]
    assert names == [f"rows-{number:05d}.parquet" for number in range(4)]
    assert [result.file_rows[name] for name in names] == [4, 4, 4, 2]
    rows = read_rows(tmp_path / "out", "rows-*.parquet")
    assert [int(row["source_row"]) for row in rows] == [*range(9), 10, 12, 13, 14, 15]
    assert all(row["key"] == sample_key("cc3m", row["source_row"]) for row in rows)


def test_tables_have_the_schemas_of_the_contract(project_root: Path, tmp_path: Path) -> None:
    config, part = plan(project_root, "webvid")
    result = run_stage_part(READ, config, part, tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "rows-00000.parquet").equals(SAMPLE_SCHEMA)
    assert pq.read_schema(tmp_path / "out" / "drops.parquet").equals(DROP_SCHEMA)
    assert result.file_rows["drops.parquet"] == pq.read_metadata(tmp_path / "out" / "drops.parquet").num_rows


@pytest.mark.parametrize("name", SAMPLE_CARDS)
def test_reading_twice_gives_the_same_bytes(project_root: Path, tmp_path: Path, name: str) -> None:
    config, part = plan(project_root, name)
    results = [run_stage_part(READ, config, part, tmp_path / run) for run in ("first", "second")]
    assert folder_bytes(tmp_path / "first") == folder_bytes(tmp_path / "second")
    assert results[0] == results[1]


def test_known_broken_rows_go_with_all_they_hold(project_root: Path, tmp_path: Path) -> None:
    config, part = plan(project_root, "coco", known_broken={"790": "scrambled upstream"})
    result = run_stage_part(READ, config, part, tmp_path / "out")
    drops = [row for row in read_rows(tmp_path / "out", "drops.parquet") if row["source_row"] == "790"]
    assert (drops[0]["rule"], drops[0]["reason"]) == ("known_broken", "scrambled upstream")
    assert {drop["rule"] for drop in drops[1:]} == {"row_dropped"}
    assert result.counts["rows"].dropped == {"known_broken": 1}
    assert "790" not in {row["source_row"] for row in read_rows(tmp_path / "out", "rows-*.parquet")}


def test_images_about_which_nothing_is_said_are_not_worth_a_download(tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text(
        '{"images": [{"id": 1, "coco_url": "http://x/1"}, {"id": 2, "coco_url": "http://x/2"}],'
        ' "annotations": [{"id": 5, "image_id": 2, "caption": "a dog"}]}'
    )
    config = ReadConfig(reader="coco", source="toy", card="toy", files={"captions": captions.name})
    [part] = READ.plan_parts(config, {"card": (), "files": (upstream_input(captions),)})
    result = run_stage_part(READ, config, part, tmp_path / "out")
    assert [row["source_row"] for row in read_rows(tmp_path / "out", "rows-*.parquet")] == ["2"]
    assert result.counts["rows"].dropped == {"nothing_left": 1}


def test_a_published_count_that_differs_is_reported(project_root: Path, tmp_path: Path) -> None:
    config, part = plan(project_root, "cc3m", expected_rows=3_318_333)
    result = run_stage_part(READ, config, part, tmp_path / "out")
    summary = finish_read(config, [PartSummary(part.name, result.counts, result.summary)])
    assert summary == {"expected_rows": 3_318_333, "seen_rows": 16, "kept_rows": 14}


def test_many_drops_are_written_in_pieces_without_losing_one(tmp_path: Path) -> None:
    rows = tmp_path / "rows.tsv"
    rows.write_text("a dog\thttp://x/1.jpg\n" + "one column\n" * 20_005)
    config = ReadConfig(reader="cc3m", source="toy", card="toy", files={"rows": rows.name})
    [part] = READ.plan_parts(config, {"card": (), "files": (upstream_input(rows),)})
    result = run_stage_part(READ, config, part, tmp_path / "out")
    numbers = pq.read_table(tmp_path / "out" / "drops.parquet")["source_row"].to_pylist()
    assert numbers == [str(number) for number in range(1, 20_006)]
    assert result.file_rows["drops.parquet"] == 20_005


def test_a_plan_without_a_role_s_file_says_so(project_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv"
    other.write_text("a dog\thttp://x/1.jpg\n")
    config = ReadConfig(reader="cc3m", source="toy", card="toy", files={"rows": "rows.tsv"})
    with pytest.raises(ConfigError, match=r"file rows.tsv for role `rows` is not among the node's files \(other.tsv\)"):
        READ.plan_parts(config, {"card": (), "files": (upstream_input(other),)})


def test_a_card_without_a_reader_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text("{id: toy, title: Toy, licence: CC0, availability: open, grains: [image], files: {}}")
    with pytest.raises(ConfigError, match="card toy: has no `reader`"):
        read_config(load_card(path))


def test_an_unknown_reader_is_refused_when_the_config_is_made() -> None:
    with pytest.raises(ValueError, match="no reader `coca`; known: cc12m, cc3m, coco"):
        ReadConfig(reader="coca", source="toy", card="toy", files={})
