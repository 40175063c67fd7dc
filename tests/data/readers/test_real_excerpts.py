"""Every real excerpt: what was written down by looking at it is what its reader makes of it, and none is forgotten.

Expectations are copied by hand from the raw files. The tests of single readers hold more of the same.
"""

import csv
import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.samples import Box, Caption, Concept, Grain

FLICKR_BY = "http://creativecommons.org/licenses/by/2.0/"
BY = "https://creativecommons.org/licenses/by/2.0/"

READ = {  # excerpt -> the test that reads it
    "cc3m/*.tsv": "here",
    "coco/annotations/captions_train2017.json": "test_coco.py",
    "coco/annotations/instances_train2017.json": "test_coco.py",
    "coco/annotations/*.json": "here",
    "laion_img2dataset/sample_image.parquet": "test_laion.py and here",
    "objects365/*.json": "test_objects365.py: without a list of categories it must be refused, with one it must read",
    "openimages/credits.csv": "here",
    "openimages/train-images-boxable-with-rotation.csv": "here",
    "openimages/dict.head.csv": "here",
    "openimages/oidv6-class-descriptions-boxable.csv": "test_openimages.py",
    "openimages/oidv6-attributes-description.csv": "test_openimages.py",
    "openimages/*-annotations-*.csv": "here",
    "video2dataset/test_yt.csv": "test_webvid.py and here",
    "visual_genome/attributes.json": "here",
    "visual_genome/objects.json": "test_visual_genome.py",
    "visual_genome/region_descriptions.json": "here",
    "visual_genome/relationships.json": "here",
}
DOWNSTREAM = "downstream/test_downstream_excerpts.py"
NOT_READ = {  # excerpt -> why no reader of pre-training data takes it
    "coco/results/*.json": DOWNSTREAM,
    "nlvr2/*.json": DOWNSTREAM,
    "marvl/*.jsonl": DOWNSTREAM,
    "vqav2/*.json": DOWNSTREAM,
    "xgqa/*.json": DOWNSTREAM,
    "xvnli/*.jsonl": DOWNSTREAM,
    "wit/*.jsonl": DOWNSTREAM,
    "winoground/*.json": DOWNSTREAM,
    "visual_genome/question_answers.json": DOWNSTREAM,
    "coco_karpathy/*": "ids of held-out images: for decontamination and retrieval",
    "gqa/*": "questions: for evaluation. No scene graph is among the excerpts; the questions must be refused",
    "refcoco/*": "a result file: for evaluation. No refs and no instances are among the excerpts",
    "openimages/images/*.jpg": "images alone: what the shipped corpus is cut from",
    "tricky/*": "images alone: for decoding",
    "videos/*": "clips alone: for decoding",
    "PROVENANCE.csv": "about the excerpts",
    "README.md": "about the excerpts",
    "*LICENSE": "about the excerpts",
    "*_observed.csv": "about the excerpts",
}


def test_every_excerpt_is_read_or_there_is_a_reason_why_not(excerpts_dir: Path) -> None:
    paths = {path.relative_to(excerpts_dir).as_posix() for path in excerpts_dir.rglob("*") if path.is_file()}
    assert len(paths) > 120
    unaccounted = [path for path in sorted(paths) if not any(fnmatch(path, pattern) for pattern in (*READ, *NOT_READ))]
    assert unaccounted == []
    idle = [pattern for pattern in (*READ, *NOT_READ) if not any(fnmatch(path, pattern) for path in paths)]
    assert idle == []


def test_every_excerpt_is_recorded_with_its_source_and_licence(excerpts_dir: Path) -> None:
    with (excerpts_dir / "PROVENANCE.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    assert all(row["repo"] and row["licence"] for row in rows.values())
    paths = {path.relative_to(excerpts_dir).as_posix(): path for path in excerpts_dir.rglob("*") if path.is_file()}
    ours = {"PROVENANCE.csv", "README.md", "tricky_observed.csv"}
    assert ours == paths.keys() - rows.keys()
    for name in paths.keys() - ours:
        assert hashlib.sha256(paths[name].read_bytes()).hexdigest() == rows[name]["sha256"], name
    assert all(name.startswith("coco/images/") for name in rows.keys() - paths.keys())  # these are in datasets/sample


@dataclass(frozen=True)
class Row:
    """A row of a raw file as it must be read."""

    row: str
    url: str
    captions: tuple[Caption, ...] = ()
    concepts: tuple[Concept, ...] = ()  # of a row with many, the first and the last
    size: tuple[int, int] | None = None
    licence: str = "card licence"
    author: str = ""


@dataclass(frozen=True)
class Excerpt:
    """An excerpt, and what stands in it. `totals`: rows, captions, concepts, drops."""

    reader: str
    files: dict[str, str]
    totals: tuple[int, int, int, int]
    rows: tuple[Row, ...]
    dropped: tuple[tuple[str, str, str, str], ...] = ()


def human(text: str) -> Caption:
    return Caption(text, "en", "human")


def alt(text: str) -> Caption:
    return Caption(text, "en", "alt")


def thing(text: str, box: tuple[float, float, float, float], annotation_id: str, *attributes: str) -> Concept:
    return Concept(Grain.OBJECT, text, Box(*box), attributes, annotation_id)


def region(text: str, box: tuple[float, float, float, float], annotation_id: str) -> Concept:
    return Concept(Grain.REGION, text, Box(*box), (), annotation_id)


COCO_5001 = (
    "A group of people cutting a ribbon on a street.",
    "A man uses a pair of big scissors to cut a pink ribbon.",
    "A man cutting a ribbon at a ceremony",
    "A group of people on the sidewalk watching two young children.",
    "A group of people holding a large pair of scissors to a ribbon.",
)
VG_PAGE = "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"
RAW = "https://raw.githubusercontent.com/rom1504/img2dataset/main/tests/blur_test_files/original.png"

EXCERPTS = {
    "coco val2017, captions and boxes": Excerpt(
        "coco",
        {
            "captions": "coco/annotations/captions_val2017.json",
            "instances": "coco/annotations/instances_val2017.json",
        },
        (101, 505, 430, 6),
        (
            Row(
                "5001",
                "http://images.cocodataset.org/val2017/000000005001.jpg",
                tuple(map(human, COCO_5001)),
                (
                    thing("scissors", (173.66, 204.76, 107.87, 238.39), "1158531"),
                    thing("scissors", (450.78, 334.49, 19.25, 58.02), "2146793"),
                ),
                (640, 480),
                FLICKR_BY,
            ),
        ),
        tuple(
            (row, "concept", item, "iscrowd")
            for row, item in (
                ("5001", "900100005001"),
                ("166918", "904600166918"),
                ("255165", "908400255165"),
                ("329323", "900100329323"),
                ("520707", "900100520707"),
                ("553664", "908400553664"),
            )
        ),
    ),
    "coco train2017, one image with boxes alone": Excerpt(
        "coco",
        {"instances": "coco/annotations/instances_train2017_extra.json"},
        (1, 0, 8, 0),
        (
            Row(
                "401416",
                "http://images.cocodataset.org/train2017/000000401416.jpg",
                (),
                (
                    thing("refrigerator", (173.97, 0.0, 175.55, 342.49), "331378"),
                    thing("knife", (156.38, 232.9, 9.81, 15.76), "2105145"),
                ),
                (640, 480),
                FLICKR_BY,
            ),
        ),
    ),
    "cc3m validation": Excerpt(
        "cc3m",
        {"rows": "cc3m/Validation_GCC-1.1.0-Validation.head.tsv"},
        (200, 200, 0, 0),
        (
            Row(
                "0",
                "https://i.pinimg.com/736x/66/01/6c/66016c3ba27c0e04f39e2bd81a934e3e--anita-ekberg-bob-hope.jpg",
                (alt("author : a life in photography -- in pictures"),),
            ),
            Row(
                "199",
                "https://s-media-cache-ak0.pinimg.com/736x/5e/87/cd/5e87cd61c40f224fa4b47153ef86bcb5.jpg",
                (alt("day of the dead skull is actually a box ."),),
            ),
        ),
    ),
    "laion as img2dataset writes it": Excerpt(
        "laion",
        {"rows": "laion_img2dataset/sample_image.parquet"},
        (2, 2, 0, 0),
        (Row("0", RAW, (alt("Lorem Ipsum"),)), Row("1", RAW, (alt("Lorem Ipsum"),))),
    ),
    "openimages, eighteen photos and boxes of others": Excerpt(
        "openimages",
        {
            "images": "openimages/credits.csv",
            "classes": "openimages/dict.head.csv",
            "attributes": "openimages/oidv6-attributes-description.csv",
            "boxes": "openimages/validation-annotations-bbox.csv",
        },
        (18, 0, 0, 1),
        (
            Row(
                "004e02a535337d9b",  # its author holds a comma and two spaces, its rotation is NaN or 0
                "https://c4.staticflickr.com/1/28/40822753_105bf3f247_o.jpg",
                licence=BY,
                author="Claudia de Lucca, Cáu",
            ),
            Row(
                "008e55802c9e2f90",
                "https://farm1.staticflickr.com/1268/4662802031_b1a43fd2d4_o.jpg",
                licence=BY,
                author="Louisiana Sea Grant College Program Louisiana State University",
            ),
        ),
        (("0001eeaf4aed83f9", "concept", "bbox:0", "unknown_image"),),
    ),
    "openimages, table of boxable images": Excerpt(
        "openimages",
        {
            "images": "openimages/train-images-boxable-with-rotation.csv",
            "classes": "openimages/oidv6-class-descriptions-boxable.csv",
            "boxes": "openimages/oidv6-train-annotations-bbox.csv",
            "relations": "openimages/oidv6-train-annotations-vrd.csv",
        },
        (2, 0, 0, 5),
        (
            Row(
                "4fa8054781a4c382",
                "https://farm3.staticflickr.com/5310/5898076654_51085e157c_o.jpg",
                licence=BY,
                author="Michael Beat",
            ),
            Row(
                "b37f763ae67d0888",
                "https://c1.staticflickr.com/1/67/197493648_628a7cb2ee_o.jpg",
                licence=BY,
                author="Karen",
            ),
        ),
        (
            *(("000002b66c9c498e", "concept", f"bbox:{number}", "unknown_image") for number in range(3)),
            *(("000ac95750ac7399", "concept", f"vrd:{number}", "unknown_image") for number in range(2)),
        ),
    ),
    "video2dataset in webvid's columns": Excerpt(
        "webvid",
        {"rows": "video2dataset/test_yt.csv"},
        (3, 3, 0, 0),
        (
            Row(
                "jLX0D8qQUBM",
                "https://www.youtube.com/watch?v=jLX0D8qQUBM",
                (alt("Aesthetics predictor from side-by-side comparisions"),),
            ),
            Row(
                "aBfjTAQ8qpM",
                "https://www.youtube.com/watch?v=aBfjTAQ8qpM",
                (alt("Merge embeddings from low abstraction level to higher levels with k-means (idea)"),),
            ),
        ),
    ),
    "visual genome, image 1": Excerpt(
        "visual_genome",
        {
            "regions": "visual_genome/region_descriptions.json",
            "attributes": "visual_genome/attributes.json",
            "relationships": "visual_genome/relationships.json",
        },
        (1, 0, 10, 0),
        (
            Row(
                "1",
                VG_PAGE,
                (),
                (
                    region("the clock is green in colour", (421, 57, 82, 139), "1382"),
                    # bikes (321, 319, 40 x 35) and tree (249, 0, 176 x 360): together x 249 to 425, y 0 to 360
                    region("bikes near tree", (249, 0, 176, 360), "rel:3186260"),
                ),
                (800, 600),
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", EXCERPTS)
def test_an_excerpt_reads_as_it_was_written_down(excerpts_dir: Path, tmp_path: Path, name: str) -> None:
    excerpt = EXCERPTS[name]
    files = {role: excerpts_dir / path for role, path in excerpt.files.items()}
    if excerpt.reader == "visual_genome":
        # No image table is among the excerpts: the address is that of objects.json, the size is made up.
        files["images"] = tmp_path / "image_data.json"
        files["images"].write_text(f'[{{"image_id": 1, "url": "{VG_PAGE}", "width": 800, "height": 600}}]')
    samples, drops = read(excerpt.reader, source(**files))
    num_captions = sum(len(sample.captions) for sample in samples)
    num_concepts = sum(len(sample.concepts) for sample in samples)
    assert (len(samples), num_captions, num_concepts, len(drops)) == excerpt.totals
    assert sorted(rules(drops)) == sorted(excerpt.dropped)
    by_row = {sample.source_row: sample for sample in samples}
    for row in excerpt.rows:
        sample = by_row[row.row]
        assert (sample.url, sample.captions, sample.licence, sample.author) == (
            row.url,
            row.captions,
            row.licence,
            row.author,
        )
        ends = (*sample.concepts[:1], *sample.concepts[-1:])
        assert ends == row.concepts
        size = (sample.claimed_width, sample.claimed_height)
        assert size == (row.size or (None, None))
