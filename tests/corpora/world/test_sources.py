"""Upstream files are laid out as upstream, and say what the truth says."""

import base64
import csv
import gzip
import hashlib
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpora.world.drawing.shots import image_id
from pipelines.corpora.world.sources.coco import run_lengths
from tests.support.corpora.world import World


def annotations(world: World, source: str) -> Path:
    return world.out / "annotations" / source


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_sbu_is_a_dict_of_lists_of_equal_length(noisy_world: World) -> None:
    content = load(annotations(noisy_world, "sbu") / "sbu-captions-all.json")
    assert list(content) == ["image_urls", "captions", "user_ids"]
    rows = noisy_world.of("sbu", "row")
    assert {len(column) for column in content.values()} == {len(rows)}
    for row in rows:
        assert content["image_urls"][int(row["row_key"])].endswith(f"{image_id(row['scene']):012d}.jpg")
        assert (not content["captions"][int(row["row_key"])]) == (row["planted"] == "empty_text")


def test_cc12m_has_the_address_first_and_true_checksums(noisy_world: World) -> None:
    folder = annotations(noisy_world, "cc12m")
    lines = (folder / "cc12m.tsv").read_text(encoding="utf-8").splitlines()
    rows = noisy_world.of("cc12m", "row")
    assert len(lines) == len(rows)
    assert all(line.split("\t")[0].startswith("http://") and line.count("\t") == 1 for line in lines)
    hashes = gzip.decompress((folder / "cc_hashes" / "cc12m.tsv.gz").read_bytes()).decode().splitlines()
    assert len(hashes) == sum(row["planted"] != "dead_link" for row in rows)
    for line in hashes:
        url, sha256, md5 = line.split("\t")
        data = (noisy_world.out / "media" / url.removeprefix("http://world.invalid/")).read_bytes()
        assert (sha256, md5) == (hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest())


def test_laion_releases_differ_in_types(noisy_world: World) -> None:
    english = pq.read_table(annotations(noisy_world, "laion_en") / "part-00000.parquet")
    several = pq.read_table(annotations(noisy_world, "laion_multi") / "part-00000.parquet")
    assert english.schema.names[:6] == ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE"]
    assert english.schema.field("HEIGHT").type == pa.int32()
    assert several.schema.field("HEIGHT").type == pa.float64()
    assert several.schema.names[-2:] == ["LANGUAGE", "md5"]
    foreign = [int(row["row_key"]) for row in noisy_world.of("laion_en", "row") if row["planted"] == "foreign_text"]
    texts = english["TEXT"].to_pylist()
    assert foreign
    assert not [texts[row] for row in foreign if re.match(r"(a|an|there|the|\"?the) [a-z]+ [a-z]+ ", texts[row])]


def test_objects365_has_upstream_names_and_all_boxes(noisy_world: World) -> None:
    content = load(annotations(noisy_world, "objects365") / "zhiyuan_objv2_train.json")
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert min(names) == 1
    assert {"Diamond/Rhombus", "Crescent "} <= set(names.values())
    truths = noisy_world.of("objects365", "concept")
    assert [str(one["id"]) for one in content["annotations"]] == [row["item"] for row in truths]
    assert len(content["images"]) == len(noisy_world.of("objects365", "row"))
    assert all(
        re.fullmatch(r"images/v[12]/patch\d+/objects365_v1_\d{8}\.jpg", i["file_name"]) for i in content["images"]
    )


def test_openimages_checksums_are_base64_of_the_bytes(noisy_world: World) -> None:
    path = annotations(noisy_world, "openimages") / "train-images-boxable-with-rotation.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = 0
    for row in rows:
        media = noisy_world.out / "media" / row["OriginalURL"].removeprefix("http://world.invalid/")
        if media.is_file():
            assert base64.b64decode(row["OriginalMD5"]) == hashlib.md5(media.read_bytes()).digest()
            found += 1
    assert found > 5


def test_entities_boxes_count_pixels_from_one(noisy_world: World) -> None:
    archive = zipfile.ZipFile(annotations(noisy_world, "flickr_entities") / "annotations.zip")
    rows = [row for row in noisy_world.of("flickr_entities", "row") if row["planted"] in ("", "dead_link")]
    assert rows
    for row in rows:
        tree = ElementTree.fromstring(archive.read(f"Annotations/{row['row_key']}.xml"))
        boxes = {}
        for one in tree.iter("object"):
            corners = [int(one.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")]
            boxes[one.findtext("name")] = [*corners[:2], corners[2] - corners[0] + 1, corners[3] - corners[1] + 1]
        things = noisy_world.scenes[row["scene"]]["things"]
        assert [[box[0] - 1, box[1] - 1, *box[2:]] for box in boxes.values()] == [thing["box"] for thing in things]
        sentences = archive.read(f"Sentences/{row['row_key']}.txt").decode().splitlines()
        marks = re.findall(r"\[/EN#(\d+)/\w+ [^\]]+\]", "\n".join(sentences))
        assert len(sentences) == 5
        assert set(marks) <= set(boxes)
        assert len(marks) >= 5


def test_howto100m_captions_lack_the_stop_words_that_the_raw_ones_have(noisy_world: World) -> None:
    folder = annotations(noisy_world, "howto100m")
    raw, bare = load(folder / "raw_caption.json"), load(folder / "caption.json")
    with (folder / "HowTo100M_v1.csv").open(newline="") as file:
        videos = [row["video_id"] for row in csv.DictReader(file)]
    assert videos == list(raw) == list(bare)
    rows = [f"{video}#{number}" for video in videos for number in range(len(raw[video]["text"]))]
    assert rows == [row["row_key"] for row in noisy_world.of("howto100m", "row")]
    for video in videos:
        assert (noisy_world.out / "media" / "clips" / f"{video}.mp4").is_file()
        assert len(raw[video]["text"]) == len(raw[video]["start"]) == len(raw[video]["end"])
        assert all(start < end for start, end in zip(raw[video]["start"], raw[video]["end"], strict=True))
        assert len(" ".join(bare[video]["text"]).split()) < len(" ".join(raw[video]["text"]).split())
    texts = [text for video in videos for text in raw[video]["text"]]
    assert len(texts) - texts.count("[Music]") == len(noisy_world.of("howto100m", "caption"))
    overlapping = [
        start < end for video in videos for end, start in zip(raw[video]["end"], raw[video]["start"][1:], strict=False)
    ]
    assert any(overlapping)


def test_yttemporal_words_are_in_time(noisy_world: World) -> None:
    shards = sorted(annotations(noisy_world, "yttemporal").glob("*.gz"))
    assert all(re.fullmatch(r"yttemporal180m_\d{3}of100\.jsonl\.gz", path.name) for path in shards)
    lines = [json.loads(line) for path in shards for line in gzip.decompress(path.read_bytes()).splitlines()]
    rows = {f"{line['info']['id']}#{number}" for line in lines for number in range(len(line["denoised"]))}
    assert rows == {row["row_key"] for row in noisy_world.of("yttemporal", "row")}
    for line in lines:
        times = [word["time"] for word in line["subtitles"]]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] < line["info"]["duration"]
        noisy = [word for stretch in line["denoised"] for word in stretch["noisyasr"].split()]
        assert noisy == [word["word"] for word in line["subtitles"]]


def test_refs_join_with_their_boxes(noisy_world: World) -> None:
    folder = annotations(noisy_world, "refcoco")
    instances = load(folder / "instances.json")
    boxes = {one["id"]: one for one in instances["annotations"]}
    images = {image["id"] for image in instances["images"]}
    refs = load(folder / "refs.json")
    assert {str(ref["image_id"]) for ref in refs} == {row["row_key"] for row in noisy_world.of("refcoco", "row")}
    sentences = sum(len(ref["sentences"]) for ref in refs)
    assert sentences == len(noisy_world.of("refcoco", "concept")) > 60
    for ref in refs:
        assert boxes[ref["ann_id"]]["category_id"] == ref["category_id"]
        assert ref["image_id"] in images
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]


def test_gqa_graphs_show_the_same_boxes_as_visual_genome(noisy_world: World) -> None:
    graphs = load(annotations(noisy_world, "gqa") / "train_sceneGraphs.json")
    images = load(annotations(noisy_world, "visual_genome") / "image_data.json")
    assert list(graphs) == [str(image["image_id"]) for image in images]
    objects = {
        str(one["object_id"]): one
        for entry in load(annotations(noisy_world, "visual_genome") / "objects.json")
        for one in entry["objects"]
    }
    for graph in graphs.values():
        for number, one in graph["objects"].items():
            assert [one[side] for side in "xywh"] == [objects[number][side] for side in "xywh"]
            assert all(relation["object"] in graph["objects"] for relation in one["relations"])
    overlap = Counter(image["coco_id"] is not None for image in images)
    assert min(overlap[True], overlap[False]) >= 5


def test_relationships_point_at_objects(noisy_world: World) -> None:
    entries = load(annotations(noisy_world, "visual_genome") / "relationships.json")
    relations = [relation for entry in entries for relation in entry["relationships"]]
    assert len(relations) > 100
    assert all(isinstance(one["subject"]["name"], str) and one["object"]["names"] for one in relations)


def test_crowd_outlines_decode_to_their_area(noisy_world: World) -> None:
    content = load(annotations(noisy_world, "coco") / "instances_train2017.json")
    crowds = [one for one in content["annotations"] if one["iscrowd"]]
    assert crowds
    for one in crowds:
        height, width = one["segmentation"]["size"]
        counts = one["segmentation"]["counts"]
        assert sum(counts) == height * width
        flat = np.repeat(np.arange(len(counts)) % 2, counts)
        mask = flat.reshape(width, height).T
        y, x = np.nonzero(mask)
        assert [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1] == one["bbox"]
        assert mask.sum() == one["area"]
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
