"""Every file that one of our readers takes reads with exactly the counts and drops that the truth says."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import SOURCES, WorldConfig
from pipelines.flow.stage import Part, Read
from pipelines.s2_filter import FILTER, FilterConfig
from tests.support.corpora.world import Reading, World, media_path, read, with_media
from tests.support.flow_helpers import artifact_input, run_stage_part
from x2vlm.data.boxes import denormalise_boxes
from x2vlm.samples import sample_table, write_table

HELD_OUT = "coco_heldout"


@pytest.fixture(scope="module")
def readings(noisy_world: World, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reading]:
    """What the read stage makes of every card of the world."""
    folder = tmp_path_factory.mktemp("readings")
    return {name: read(noisy_world.out, name, project_root, folder / name) for name in (*SOURCES, HELD_OUT)}


def check_reading(out: Path, name: str, reading: Reading) -> None:
    """Rows, concepts and captions are as many and the same as the truth has, and so is everything that is dropped."""
    samples, drops, counts = reading
    truths = pq.read_table(out / "truth.parquet", filters=[("source", "=", name)]).to_pylist()
    truth = {unit: [row for row in truths if row["unit"] == unit] for unit in ("row", "concept", "caption")}
    assert counts["rows"].num_in == len(truth["row"])
    assert counts["concepts"].num_in == len(truth["concept"])
    for count in counts.values():
        assert count.num_in == count.num_out + sum(count.dropped.values())
    kept = {unit: [row for row in rows if row["expected_stage"] != "read"] for unit, rows in truth.items()}
    assert sorted(sample.source_row for sample in samples) == sorted(row["row_key"] for row in kept["row"])
    found = [(s.source_row, c.annotation_id.removeprefix("norm:")) for s in samples for c in s.concepts]
    assert sorted(found) == sorted((row["row_key"], row["item"]) for row in kept["concept"])
    found = [(sample.source_row, str(position)) for sample in samples for position in range(len(sample.captions))]
    assert sorted(found) == sorted((row["row_key"], row["item"]) for row in kept["caption"])
    dropped = sorted((drop.source_row, drop.unit, drop.item, drop.rule) for drop in drops)
    assert dropped == sorted(
        (row["row_key"], unit, row["item"], row["expected_rule"])
        for unit, rows in truth.items()
        for row in rows
        if row["expected_stage"] == "read"
    )


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_concept_and_caption_gets_the_verdict_of_the_truth(
    noisy_world: World, readings: dict[str, Reading], name: str
) -> None:
    check_reading(noisy_world.out, name, readings[name])


@pytest.mark.parametrize("name", SOURCES)
def test_a_thousand_scenes_read_as_the_truth_says(
    plain_world: World, name: str, project_root: Path, tmp_path: Path
) -> None:
    reading = read(plain_world.out, name, project_root, tmp_path / "read")
    check_reading(plain_world.out, name, reading)
    assert len(reading[0]) >= 10


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("large") / "world"
    build_world(WorldConfig(seed=11, scenes=50_000, media="none"), out, workers=2)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_fifty_thousand_scenes_read_as_the_truth_says(
    large_world: Path, name: str, project_root: Path, tmp_path: Path
) -> None:
    check_reading(large_world, name, read(large_world, name, project_root, tmp_path / "read"))


def test_captions_speak_the_language_that_the_row_says(noisy_world: World, readings: dict[str, Reading]) -> None:
    samples, _, _ = readings["laion_multi"]
    details = {row["row_key"]: row["detail"] for row in noisy_world.of("laion_multi", "caption")}
    assert {sample.source_row: f"language {sample.captions[0].language}" for sample in samples} == details


@pytest.mark.parametrize("name", SOURCES)
def test_links_are_dead_where_the_truth_says_so(noisy_world: World, readings: dict[str, Reading], name: str) -> None:
    samples, _, _ = readings[name]
    rules = {row["row_key"]: row["expected_rule"] for row in noisy_world.of(name, "row")}
    for sample in samples:
        there = media_path(noisy_world, sample).is_file()
        assert there == (rules[sample.source_row] != "http_404"), sample.url


@pytest.mark.parametrize("name", SOURCES)
def test_the_filter_drops_what_was_planted_for_it_and_nothing_else(
    noisy_world: World, readings: dict[str, Reading], name: str, tmp_path: Path
) -> None:
    samples, _, _ = readings[name]
    fetched = [with_media(noisy_world, sample) for sample in samples if media_path(noisy_world, sample).is_file()]
    rows = tmp_path / "rows" / "00000"
    rows.mkdir(parents=True)
    write_table(sample_table(fetched), rows / "rows.parquet")
    file = artifact_input("download", {"00000": rows}).parts[0].file("rows.parquet")
    run_stage_part(FILTER, FilterConfig(), Part("00000", (Read("rows", file),)), tmp_path / "filtered")
    drops = pq.read_table(tmp_path / "filtered" / "drops.parquet").to_pylist()
    found = sorted((drop["source_row"], drop["unit"], drop["item"], drop["rule"]) for drop in drops)
    # Text in another language under an English label takes the detector, which is off (see test_foreign_texts).
    foreign = {row["row_key"] for row in noisy_world.of(name, "caption") if row["expected_rule"] == "language"}
    planted = sorted(
        (row["row_key"], row["unit"], row["item"], row["expected_rule"])
        for row in noisy_world.truth
        if row["source"] == name
        and row["expected_stage"] == "filter"
        and row["unit"] != "media"
        and row["row_key"] not in foreign
    )
    assert found == planted
    if name in ("coco", "visual_genome"):
        rules = {rule for _, _, _, rule in found}
        assert {"box_too_small", "box_invalid", "min_short_edge", "max_aspect_ratio"} <= rules


@pytest.mark.parametrize("name", ["coco", "visual_genome", "openimages", "objects365", "gqa"])
def test_boxes_read_are_the_boxes_of_the_scenes(noisy_world: World, readings: dict[str, Reading], name: str) -> None:
    samples, _, _ = readings[name]
    scenes = {row["row_key"]: row["scene"] for row in noisy_world.of(name, "row") if row["planted"] in ("", "rotated")}
    compared = 0
    for sample in samples:
        if sample.source_row in scenes:
            scene = noisy_world.scenes[scenes[sample.source_row]]
            sized = denormalise_boxes(sample, scene["width"], scene["height"])
            objects = [one for one in sized.concepts if one.grain == "object" and one.text != "speck"]
            boxes = [[round(side, 3) for side in (c.box.x, c.box.y, c.box.w, c.box.h)] for c in objects]
            for thing in scene["things"]:
                assert thing["box"] in boxes
                compared += 1
    assert compared >= 6


def test_heldout_card_reads_the_held_out_images(noisy_world: World, readings: dict[str, Reading]) -> None:
    samples, drops, _ = readings[HELD_OUT]
    assert {drop.rule for drop in drops} <= {"unknown_image"}
    assert samples
    assert all(sample.split == "test" and sample.concepts for sample in samples)
    assert all(media_path(noisy_world, sample).is_file() for sample in samples)
