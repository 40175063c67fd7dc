"""The shipped corpus: small, attributed, free of leaks, and in the upstream formats."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.corpora.sample_files import (
    ANNOTATIONS,
    CORPUS,
    MEDIA,
    media_of,
    openimages,
    read_csv,
    read_json,
    sha256,
    webvid_rows,
)


def held_out_names() -> set[str]:
    return {image["file_name"] for image in read_json("coco/captions_val2017.json")["images"]}


# ---- size, attribution, leaks


def test_corpus_is_under_12_mb() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 12_000_000


def test_every_media_file_has_one_attribution_with_its_sha256() -> None:
    rows = read_csv(CORPUS / "ATTRIBUTION.csv")
    recorded = {row["file"]: row["sha256"] for row in rows}
    assert len(recorded) == len(rows)
    assert recorded == {str(path.relative_to(MEDIA)): sha256(path) for path in MEDIA.rglob("*") if path.is_file()}


def test_photos_are_cc_by_and_at_least_64_are_unmodified() -> None:
    photos = [row for row in read_csv(CORPUS / "ATTRIBUTION.csv") if row["file"].startswith("photos/")]
    assert {row["licence"] for row in photos} == {"CC BY 2.0"}
    assert all(row["author"] and row["landing_url"].startswith("https://www.flickr.com/photo") for row in photos)
    assert sum(row["changes"] == "none" for row in photos) >= 64


def test_three_clips_or_more_under_open_licences() -> None:
    clips = [row for row in read_csv(CORPUS / "ATTRIBUTION.csv") if row["file"].startswith("clips/")]
    assert len(clips) >= 3
    assert {row["licence"] for row in clips} <= {"public domain", "CC BY 3.0"}


def test_held_out_photos_are_in_no_training_file() -> None:
    names = held_out_names()
    assert len(names) == 16
    for path in ANNOTATIONS.rglob("*"):
        if path.is_file() and "val2017" not in path.name:
            content = path.read_bytes()
            assert not [name for name in names if name.encode() in content], path


def test_held_out_photos_have_no_second_copy_and_no_derivative() -> None:
    names = held_out_names()
    digests = [sha256(path) for path in MEDIA.rglob("*") if path.is_file()]
    assert len(digests) == len(set(digests))
    flickr_ids = {url_id(image["flickr_url"]) for image in read_json("coco/captions_val2017.json")["images"]}
    others = [row for row in read_csv(CORPUS / "ATTRIBUTION.csv") if Path(row["file"]).name not in names]
    assert not [row["file"] for row in others if any(number in row["source"] for number in flickr_ids)]


def url_id(flickr_url: str) -> str:
    return f"/{flickr_url.rsplit('/', 1)[1].split('_')[0]}_"


def test_no_training_photo_is_in_karpathys_val_or_test(excerpts_dir: Path) -> None:
    lists = [excerpts_dir / "coco_karpathy" / f"karpathy_{split}_images.txt" for split in ("val", "test")]
    evaluated = {f"{int(line.split()[1]):012d}.jpg" for path in lists for line in path.read_text().splitlines()}
    assert len(evaluated) == 10_000
    photos = {path.name for path in (MEDIA / "photos").iterdir()}
    assert photos & evaluated  # some of the held-out ones are
    assert not (photos - held_out_names()) & evaluated


# ---- formats


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_files_have_the_upstream_keys(split: str) -> None:
    captions, instances = read_json(f"coco/captions_{split}2017.json"), read_json(f"coco/instances_{split}2017.json")
    assert {"info", "licenses", "images", "annotations"} <= captions.keys()
    image_keys = {"license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url", "id"}
    box_keys = {"segmentation", "area", "iscrowd", "image_id", "bbox", "category_id", "id"}
    assert all(image.keys() == image_keys for image in [*captions["images"], *instances["images"]])
    assert all(record.keys() == {"image_id", "id", "caption"} for record in captions["annotations"])
    assert all(record.keys() == box_keys for record in instances["annotations"])
    assert len(instances["categories"]) == 80


def test_every_held_out_photo_has_captions_and_boxes() -> None:
    ids = {image["id"] for image in read_json("coco/captions_val2017.json")["images"]}
    for name in ("captions", "instances"):
        assert {record["image_id"] for record in read_json(f"coco/{name}_val2017.json")["annotations"]} == ids


def test_visual_genome_files_have_the_upstream_keys() -> None:
    images = read_json("visual_genome/image_data.json")
    assert all(i.keys() == {"image_id", "url", "width", "height", "coco_id", "flickr_id"} for i in images)
    region_keys = {"region_id", "image_id", "phrase", "x", "y", "width", "height"}
    entries = read_json("visual_genome/region_descriptions.json")
    assert all(region.keys() == region_keys for entry in entries for region in entry["regions"])
    object_keys = {"object_id", "x", "y", "w", "h", "names", "synsets"}
    objects = [o for entry in read_json("visual_genome/attributes.json") for o in entry["attributes"]]
    assert all(o.keys() - {"attributes"} == object_keys for o in objects)
    assert 0 < sum("attributes" in o for o in objects) < len(objects)


def test_laion_has_the_upstream_columns() -> None:
    names = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
    assert pq.read_schema(ANNOTATIONS / "laion/part-00000.parquet").names == names


def test_webvid_is_quoted_and_has_the_upstream_columns() -> None:
    text = (ANNOTATIONS / "webvid/results_2M_train.csv").read_text(encoding="utf-8")
    assert text.startswith('"videoid","contentUrl","duration","page_dir","name"\n')
    assert all(row["duration"].startswith("PT00H00M") for row in webvid_rows())


def test_openimages_boxes_and_relations_are_normalised_and_named() -> None:
    classes = {row["LabelName"] for row in openimages("oidv6-class-descriptions-boxable.csv")}
    attributes = {row["LabelName"] for row in openimages("oidv6-attributes-description.csv")}
    images = {row["ImageID"] for row in openimages("train-images-boxable-with-rotation.csv")}
    for box in openimages("oidv6-train-annotations-bbox.csv"):
        assert box["LabelName"] in classes
        assert box["ImageID"] in images
        assert 0 <= float(box["XMin"]) < float(box["XMax"]) <= 1
        assert 0 <= float(box["YMin"]) < float(box["YMax"]) <= 1
    for row in openimages("oidv6-train-annotations-vrd.csv"):
        is_attribute = row["RelationshipLabel"] == "is"
        assert row["LabelName2"] in (attributes if is_attribute else classes)
        first, second = ([float(row[f"{side}{n}"]) for side in ("XMin", "XMax", "YMin", "YMax")] for n in (1, 2))
        assert not is_attribute or first == second
        if row["RelationshipLabel"] == "inside_of":
            assert second[0] <= first[0] < first[1] <= second[1]
            assert second[2] <= first[2] < first[3] <= second[3]


def test_curated_sources_point_to_photos_of_the_stated_size() -> None:
    images = [
        *read_json("coco/instances_train2017.json")["images"],
        *read_json("coco/instances_val2017.json")["images"],
    ]
    stated = [(image["coco_url"], image["width"], image["height"]) for image in images]
    stated += [(i["url"], i["width"], i["height"]) for i in read_json("visual_genome/image_data.json")]
    for url, width, height in stated:
        with Image.open(media_of(url)) as photo:
            assert photo.size == (width, height)
    for row in openimages("train-images-boxable-with-rotation.csv"):
        assert media_of(row["OriginalURL"]).stat().st_size == int(row["OriginalSize"])
