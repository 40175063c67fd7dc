"""The filter stage: the planted rows of the shipped corpus with their real sizes, and every rule at its edge."""

import csv
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.s1_download.read import READ, read_config
from pipelines.s2_filter import FILTER, FilterConfig
from tests.support.flow_helpers import artifact_input, folder_bytes, read_rows, run_stage_part, upstream_input
from tests.support.stages.filtering import concept, dropped, filter_samples, image, kept, video
from x2vlm.data.boxes import denormalise_boxes
from x2vlm.data.cards import file_paths, load_card
from x2vlm.samples import (
    DROP_SCHEMA,
    SAMPLE_SCHEMA,
    Box,
    Caption,
    Grain,
    Media,
    Sample,
    sample_table,
    samples_of,
    write_table,
)

SAMPLE_CARDS = ["coco", "coco_heldout", "visual_genome", "cc3m", "laion", "openimages", "webvid"]


def as_downloaded(project_root: Path, folder: Path, name: str) -> list[Sample]:
    """A sample source as the download stage hands it on: the sizes of the shipped media filled in, bad media gone."""
    path = project_root / "datasets" / "sample" / f"{name}.yaml"
    card = load_card(path)
    files = tuple(upstream_input(Path(file)) for file in file_paths(card, project_root).values())
    config = read_config(card)
    [part] = READ.plan_parts(config, {"card": (upstream_input(path),), "files": files})
    run_stage_part(READ, config, part, folder)
    samples = [sample for file in sorted(folder.glob("rows-*")) for sample in samples_of(pq.read_table(file))]
    with (project_root / "datasets" / "sample" / "planted.csv").open(newline="") as planted:
        gone = {
            row["row_key"] for row in csv.DictReader(planted) if (row["source"], row["stage"]) == (name, "download")
        }
    found = []
    for sample in samples:
        if sample.source_row not in gone:
            width, height = media_size(project_root / "datasets" / "sample" / "media", sample)
            media = Media(sample.kind, "0" * 64, 1, width, height, "jpeg")
            found.append(denormalise_boxes(replace(sample, media=media), width, height))
    return found


def media_size(folder: Path, sample: Sample) -> tuple[int, int]:
    if sample.kind == "video":
        return (320, 240)
    with Image.open(folder / urlsplit(sample.url).path.lstrip("/")) as opened:
        return opened.size


@pytest.mark.parametrize("name", SAMPLE_CARDS)
def test_planted_rows_get_their_verdict(project_root: Path, tmp_path: Path, name: str) -> None:
    samples = as_downloaded(project_root, tmp_path / "read", name)
    filter_samples(tmp_path, samples)
    with (project_root / "datasets" / "sample" / "planted.csv").open(newline="") as file:
        planted = [row for row in csv.DictReader(file) if (row["source"], row["stage"]) == (name, "filter")]
    verdicts = {
        (f"concept:{item}" if unit == "concept" else row): rule
        for row, unit, item, rule in dropped(tmp_path)
        if unit in ("row", "concept")
    }
    rows = {sample.source_row: "kept" for sample in kept(tmp_path)}
    concepts = {f"concept:{each.annotation_id}": "kept" for sample in kept(tmp_path) for each in sample.concepts}
    verdicts |= rows | concepts
    assert {row["row_key"]: verdicts.get(row["row_key"]) for row in planted} == {
        row["row_key"]: row["rule"] for row in planted
    }
    # The list of planted rows is complete on the level of rows; a photo may lose its last concept all the same.
    bad = {row["row_key"] for row in planted if row["rule"] != "kept" and not row["row_key"].startswith("concept:")}
    gone = {row: rule for row, unit, _, rule in dropped(tmp_path) if unit == "row"}
    assert {row for row, rule in gone.items() if rule != "nothing_left"} == bad
    assert {sample.source_row for sample in samples} == set(rows) | set(gone)


def test_rows_at_the_edges(tmp_path: Path) -> None:
    sizes = [(224, 224), (223, 500), (672, 224), (224, 673), (300, 100)]
    result = filter_samples(tmp_path, [image(str(number), size) for number, size in enumerate(sizes)])
    assert [sample.source_row for sample in kept(tmp_path)] == ["0", "2"]
    rows = [row for row in read_rows(tmp_path / "out", "drops.parquet") if row["unit"] == "row"]
    assert [(row["source_row"], row["rule"], row["value"], row["threshold"]) for row in rows] == [
        ("1", "min_short_edge", 223.0, 224.0),
        ("3", "max_aspect_ratio", 673 / 224, 3.0),
        ("4", "min_short_edge", 100.0, 224.0),
    ]
    assert result.counts["rows"].dropped == {"max_aspect_ratio": 1, "min_short_edge": 2}
    assert result.counts["captions"].dropped == {"row_dropped": 3}


def test_a_row_without_a_size_goes_and_says_so(tmp_path: Path) -> None:
    filter_samples(tmp_path, [image("1", media=None), image("2")])
    assert dropped(tmp_path) == [("1", "row", "", "size_unknown"), ("1", "caption", "0", "row_dropped")]
    [row, _] = read_rows(tmp_path / "out", "drops.parquet")
    assert (row["value"], row["threshold"]) == (None, 224.0)


def test_rules_can_be_switched_off(tmp_path: Path) -> None:
    samples = [image("1", (100, 900)), image("2", media=None), video("3", "one")]
    filter_samples(tmp_path, samples, min_short_edge=None, max_aspect_ratio=None, min_video_words=None)
    assert kept(tmp_path) == samples


def test_a_box_cannot_be_judged_without_the_image_s_size(tmp_path: Path) -> None:
    unknown = image("1", media=None, concepts=(concept("any", (0, 0, 60, 60)),))
    filter_samples(tmp_path, [unknown], min_short_edge=None, max_aspect_ratio=None)
    assert dropped(tmp_path) == [("1", "concept", "any", "size_unknown")]
    assert kept(tmp_path) == [replace(unknown, concepts=())]


def test_video_captions_are_judged_one_by_one(tmp_path: Path) -> None:
    result = filter_samples(
        tmp_path, [video("1", "waves", "waves crash"), video("2", "waves"), video("3", "two words")]
    )
    assert [[caption.text for caption in sample.captions] for sample in kept(tmp_path)] == [
        ["waves crash"],
        ["two words"],
    ]
    assert dropped(tmp_path) == [
        ("1", "caption", "0", "min_video_words"),
        ("2", "row", "", "min_video_words"),
        ("2", "caption", "0", "row_dropped"),
    ]
    assert result.counts["captions"].dropped == {"min_video_words": 1, "row_dropped": 1}


def test_captions_in_other_languages_go_where_languages_are_named(tmp_path: Path) -> None:
    both = replace(image(), captions=(Caption("ein Hund", "de"), Caption("a dog", "en")))
    filter_samples(tmp_path / "en", [both], languages=("en",))
    assert [caption.text for caption in kept(tmp_path / "en")[0].captions] == ["a dog"]
    filter_samples(tmp_path / "all", [both])
    assert kept(tmp_path / "all") == [both]


def test_boxes_at_the_edges(tmp_path: Path) -> None:
    concepts = (
        concept("whole", (0, 0, 448, 448)),
        concept("rounding", (400, 0, 48.4, 60)),
        concept("outside", (400, 0, 48.6, 60)),
        concept("negative", (-1, 0, 60, 60)),
        concept("flat", (0, 0, 60, 0)),
        concept("patch", (0, 0, 32, 32)),
        concept("less", (0, 0, 32, 31.9)),
        concept("thin", (0, 0, 440, 8)),
        concept("sliver", (-0.4, 0, 0.3, 60)),
    )
    result = filter_samples(tmp_path, [image(concepts=concepts)])
    [sample] = kept(tmp_path)
    assert [(each.annotation_id, each.box) for each in sample.concepts] == [
        ("whole", Box(0, 0, 448, 448)),
        ("rounding", Box(400, 0, 48, 60)),
        ("patch", Box(0, 0, 32, 32)),
        ("thin", Box(0, 0, 440, 8)),
    ]
    assert dropped(tmp_path) == [
        ("1", "concept", "outside", "box_invalid"),
        ("1", "concept", "negative", "box_invalid"),
        ("1", "concept", "flat", "box_invalid"),
        ("1", "concept", "less", "box_too_small"),
        ("1", "concept", "sliver", "box_invalid"),
    ]
    assert result.summary["boxes"] == {"moved_inside": 1, "small_by_any_side": 2, "small_by_area": 1}
    compared = {row["item"]: (row["value"], row["threshold"]) for row in read_rows(tmp_path / "out", "drops.parquet")}
    assert compared == {
        "outside": (pytest.approx(0.6), 0.5),
        "negative": (1.0, 0.5),
        "flat": (None, None),
        "less": (pytest.approx(255.2), 256.0),
        "sliver": (None, None),
    }


def test_the_other_reading_of_smaller_than_a_patch(tmp_path: Path) -> None:
    thin = image(concepts=(concept("thin", (0, 0, 440, 8)), concept("patch", (0, 0, 32, 32))))
    filter_samples(tmp_path, [thin], small_box_rule="any_side")
    assert dropped(tmp_path) == [("1", "concept", "thin", "box_too_small")]


def test_no_tolerance_is_the_strict_reading(tmp_path: Path) -> None:
    filter_samples(tmp_path, [image(concepts=(concept("rounding", (400, 0, 48.01, 60)),))], box_tolerance_pixels=0)
    assert dropped(tmp_path) == [("1", "concept", "rounding", "box_invalid")]


def test_near_repeats_go_among_regions_but_not_among_objects(tmp_path: Path) -> None:
    concepts = (
        concept("small", (0, 0, 60, 60), "a red dog on grass", Grain.REGION),
        concept("large", (0, 0, 90, 90), "a red dog on sand", Grain.REGION),
        concept("other", (0, 0, 60, 60), "a red dog in water today", Grain.REGION),
        concept("object", (0, 0, 50, 50), "dog"),
        concept("second", (9, 9, 50, 50), "dog"),
    )
    result = filter_samples(tmp_path, [image(concepts=concepts)])
    assert dropped(tmp_path) == [("1", "concept", "small", "region_text_overlap")]
    assert [each.annotation_id for each in kept(tmp_path)[0].concepts] == ["large", "other", "object", "second"]
    assert result.counts["concepts"].dropped == {"region_text_overlap": 1}


def test_an_invalid_region_takes_no_text_with_it(tmp_path: Path) -> None:
    concepts = (
        concept("outside", (0, 0, 900, 900), "man on the left", Grain.REGION),
        concept("inside", (0, 0, 90, 90), "man on the left", Grain.REGION),
    )
    filter_samples(tmp_path, [image(concepts=concepts)])
    assert [each.annotation_id for each in kept(tmp_path)[0].concepts] == ["inside"]


def test_rows_with_nothing_left_go(tmp_path: Path) -> None:
    samples = [
        image("1", captions=(), concepts=(concept("flat", (0, 0, 60, 0)),)),
        image("2", captions=()),
        image("3", concepts=(concept("flat", (0, 0, 60, 0)),)),
        image("4", captions=(), concepts=(concept("good", (0, 0, 60, 60)),)),
    ]
    result = filter_samples(tmp_path, samples)
    assert [(sample.source_row, len(sample.concepts)) for sample in kept(tmp_path)] == [("3", 0), ("4", 1)]
    assert result.counts["rows"].dropped == {"nothing_left": 2}
    assert result.counts["concepts"].dropped == {"box_invalid": 2}


def test_counts_are_exactly_what_the_drops_say(project_root: Path, tmp_path: Path) -> None:
    samples = as_downloaded(project_root, tmp_path / "read", "visual_genome") + as_downloaded(
        project_root, tmp_path / "read2", "laion"
    )
    result = filter_samples(tmp_path, samples)
    rows = read_rows(tmp_path / "out", "drops.parquet")
    for unit, count in result.counts.items():
        rules = [row["rule"] for row in rows if f"{row['unit']}s" == unit]
        assert {rule: rules.count(rule) for rule in rules} == dict(count.dropped)
    assert result.file_rows == {"rows.parquet": len(kept(tmp_path)), "drops.parquet": len(rows)}


def test_an_empty_part_stays_empty_with_the_schemas_of_the_contract(tmp_path: Path) -> None:
    result = filter_samples(tmp_path, [])
    assert result.counts["rows"].num_in == 0
    assert pq.read_schema(tmp_path / "out" / "rows.parquet").equals(SAMPLE_SCHEMA)
    assert pq.read_schema(tmp_path / "out" / "drops.parquet").equals(DROP_SCHEMA)


def test_filtering_twice_gives_the_same_bytes_and_a_second_pass_drops_nothing(
    project_root: Path, tmp_path: Path
) -> None:
    samples = as_downloaded(project_root, tmp_path / "read", "openimages")
    filter_samples(tmp_path / "first", samples)
    filter_samples(tmp_path / "second", samples)
    assert folder_bytes(tmp_path / "first" / "out") == folder_bytes(tmp_path / "second" / "out")
    filter_samples(tmp_path / "again", kept(tmp_path / "first"))
    assert dropped(tmp_path / "again") == []


def test_one_part_per_input_part_of_the_same_name(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        (tmp_path / name).mkdir()
        write_table(sample_table([image(name)]), tmp_path / name / "rows.parquet")
    artifact = artifact_input("download/a", {name: tmp_path / name for name in ("00000", "00001")})
    assert [part.name for part in FILTER.plan_parts(FilterConfig(), {"rows": (artifact,)})] == ["00000", "00001"]
    two = FILTER.plan_parts(FilterConfig(), {"rows": (artifact, artifact)})
    assert [part.name for part in two] == ["000-00000", "000-00001", "001-00000", "001-00001"]
