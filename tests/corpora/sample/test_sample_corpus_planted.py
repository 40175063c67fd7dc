"""Every planted row of the shipped corpus is what planted.csv says, by checks that share no code with the rules."""

from collections.abc import Callable
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.support.corpora.sample_files import (
    CORPUS,
    cc3m_lines,
    laion_rows,
    media_of,
    openimages,
    read_csv,
    read_json,
    webvid_rows,
)

SOURCES = ["coco", "visual_genome", "cc3m", "laion", "openimages", "webvid"]
PLANTED = read_csv(CORPUS / "planted.csv")


def test_planted_names_known_sources_and_stages_and_plants_nothing_twice() -> None:
    keys = [(row["source"], row["row_key"]) for row in PLANTED]
    assert len(keys) == len(set(keys))
    assert {source for source, _ in keys} == set(SOURCES)
    assert {row["stage"] for row in PLANTED} == {"read", "download", "filter"}


def fails_to_decode(path: Path) -> bool:
    try:
        if path.suffix == ".mp4":
            with av.open(str(path)) as container:
                return not list(container.decode(video=0))
        with Image.open(path) as photo:
            photo.load()
    except (OSError, av.FFmpegError, IndexError):
        return True
    return False


def shape(url: str) -> tuple[int, int]:
    """Short and long edge of the decoded photo."""
    with Image.open(media_of(url)) as photo:
        photo.load()
        return min(photo.size), max(photo.size)


def claimed_pixels(path: Path) -> int:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return int.from_bytes(header[16:20], "big") * int.from_bytes(header[20:24], "big")


ROW_PROOFS: dict[str, Callable[[str, str], bool]] = {
    "http_404": lambda text, url: not media_of(url).exists(),
    "address_forbidden": lambda text, url: "169.254.169.254" in url,
    "scheme_forbidden": lambda text, url: url.startswith("file:"),
    "decode_failed": lambda text, url: fails_to_decode(media_of(url)),
    "too_many_pixels": lambda text, url: claimed_pixels(media_of(url)) > 178_956_970,
    "not_an_image": lambda text, url: media_of(url).read_bytes().startswith(b"<!DOCTYPE html"),
    "empty_body": lambda text, url: media_of(url).read_bytes() == b"",
    "min_short_edge": lambda text, url: shape(url)[0] < 224,
    "max_aspect_ratio": lambda text, url: shape(url)[0] >= 224 and shape(url)[1] > 3 * shape(url)[0],
    "min_video_words": lambda text, url: len(text.split()) == 1 and media_of(url).exists(),
    "empty_caption": lambda text, url: not text and media_of(url).exists(),
}


def web_rows() -> dict[tuple[str, str], tuple[str, str | None]]:
    """Caption and url of every web row by source and row key; rows of one column have no url."""
    rows: dict[tuple[str, str], tuple[str, str | None]] = {}
    for i, cells in enumerate(cc3m_lines()):
        rows["cc3m", str(i)] = (cells[0], cells[1] if len(cells) == 2 else None)
    for i, row in enumerate(laion_rows()):
        rows["laion", str(i)] = (row["TEXT"], row["URL"])
    for row in webvid_rows():
        rows["webvid", row["videoid"]] = (row["name"], row["contentUrl"])
    return rows


WEB_PLANTS = [row for row in PLANTED if row["source"] in ("cc3m", "laion", "webvid")]


@pytest.mark.parametrize("plant", [p for p in WEB_PLANTS if p["rule"] in ROW_PROOFS], ids=lambda p: p["what"])
def test_planted_web_row_breaks_exactly_its_rule(plant: dict[str, str]) -> None:
    caption, url = web_rows()[plant["source"], plant["row_key"]]
    assert url is not None
    assert ROW_PROOFS[plant["rule"]](caption, url)


def test_planted_rows_without_url_are_the_only_ones() -> None:
    without = {key for key, (_, url) in web_rows().items() if url is None}
    rules = {"wrong_column_count", "missing_url"}
    assert without == {(p["source"], p["row_key"]) for p in WEB_PLANTS if p["rule"] in rules}


def test_web_rows_that_are_not_planted_or_are_kept_satisfy_every_rule() -> None:
    bad = {(p["source"], p["row_key"]) for p in WEB_PLANTS if p["rule"] != "kept"}
    good = {key: row for key, row in web_rows().items() if key not in bad}
    assert len(good) >= 10 + 10 + 6
    for (source, key), (caption, url) in good.items():
        assert url is not None
        assert len(caption.split()) >= 2
        if source == "webvid":
            with av.open(str(media_of(url))) as container:
                assert len(list(container.decode(video=0))) >= 8, key
        else:
            short, long = shape(url)
            assert short >= 224
            assert long <= 3 * short


def test_kept_rows_sit_on_their_edges() -> None:
    kept = {(p["source"], p["what"]): web_rows()[p["source"], p["row_key"]] for p in WEB_PLANTS if p["rule"] == "kept"}
    assert shape(str(kept["laion", "short edge exactly 224"][1]))[0] == 224
    short, long = shape(str(kept["laion", "672 x 224: aspect exactly 3"][1]))
    assert long == 3 * short
    assert len(kept["webvid", "two words"][0].split()) == 2
    assert kept["cc3m", "caption opens a quote and never closes it"][0].count('"') == 1
    assert '"' in kept["cc3m", "literal quotes in the caption"][0]


def concept_boxes() -> dict[tuple[str, str], tuple[tuple[float, float, float, float], int, int]]:
    """Box xywh, photo width and photo height of every COCO train and Visual Genome concept, by source and row key."""
    boxes = {}
    instances = read_json("coco/instances_train2017.json")
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    for record in instances["annotations"]:
        boxes["coco", f"concept:{record['id']}"] = (tuple(record["bbox"]), *sizes[record["image_id"]])
    sizes = {i["image_id"]: (i["width"], i["height"]) for i in read_json("visual_genome/image_data.json")}
    for entry in read_json("visual_genome/region_descriptions.json"):
        for r in entry["regions"]:
            box = (r["x"], r["y"], r["width"], r["height"])
            boxes["visual_genome", f"concept:{r['region_id']}"] = (box, *sizes[entry["id"]])
    for entry in read_json("visual_genome/attributes.json"):
        for o in entry["attributes"]:
            box = (o["x"], o["y"], o["w"], o["h"])
            boxes["visual_genome", f"concept:{o['object_id']}"] = (box, *sizes[entry["image_id"]])
    return boxes


def box_verdict(box_xywh: tuple[float, float, float, float], width: int, height: int) -> str:
    x, y, w, h = box_xywh
    if x < 0 or y < 0 or w <= 0 or h <= 0 or x + w > width + 0.5 or y + h > height + 0.5:
        return "box_invalid"
    return "box_too_small" if w * h * 224 * 224 < 256 * width * height else "kept"


BOX_RULES = ("box_invalid", "box_too_small", "kept")
BOX_PLANTS = [p for p in PLANTED if p["row_key"].startswith("concept:") and p["rule"] in BOX_RULES]


@pytest.mark.parametrize("plant", BOX_PLANTS, ids=lambda p: f"{p['source']}-{p['row_key']}")
def test_planted_box_gets_its_verdict_by_arithmetic(plant: dict[str, str]) -> None:
    assert box_verdict(*concept_boxes()[plant["source"], plant["row_key"]]) == plant["rule"]


def test_all_box_invalid_concepts_are_planted() -> None:
    invalid = {key for key, box in concept_boxes().items() if box_verdict(*box) == "box_invalid"}
    assert invalid == {(p["source"], p["row_key"]) for p in PLANTED if p["rule"] == "box_invalid"}


def test_the_planted_region_text_is_the_only_near_duplicate() -> None:
    duplicates = []
    for entry in read_json("visual_genome/region_descriptions.json"):
        regions = sorted(entry["regions"], key=lambda r: -r["width"] * r["height"])
        for i, later in enumerate(regions):
            for earlier in regions[:i]:
                a, b = earlier["phrase"].split(), later["phrase"].split()
                shared = len(a) - len(list(subtract(a, b)))
                if shared > 0.75 * min(len(a), len(b)):
                    duplicates.append(f"concept:{later['region_id']}")
    assert duplicates == [p["row_key"] for p in PLANTED if p["rule"] == "region_text_overlap"]


def subtract(a: list[str], b: list[str]) -> list[str]:
    left = list(a)
    for token in b:
        if token in left:
            left.remove(token)
    return left


def test_all_crowds_group_boxes_and_depictions_are_planted() -> None:
    crowds = {f"concept:{a['id']}" for a in read_json("coco/instances_train2017.json")["annotations"] if a["iscrowd"]}
    assert crowds == {p["row_key"] for p in PLANTED if p["rule"] == "iscrowd"}
    assert crowds
    boxes = openimages("oidv6-train-annotations-bbox.csv")
    for column, rule in (("IsGroupOf", "group_of"), ("IsDepiction", "depiction")):
        flagged = {f"concept:bbox:{i}" for i, box in enumerate(boxes) if box[column] == "1"}
        assert flagged == {p["row_key"] for p in PLANTED if p["rule"] == rule}
        assert flagged


def test_the_planted_unknown_image_is_the_only_one() -> None:
    content = read_json("coco/captions_train2017.json")
    unknown = {a["image_id"] for a in content["annotations"]} - {image["id"] for image in content["images"]}
    assert [str(i) for i in unknown] == [p["row_key"] for p in PLANTED if p["rule"] == "unknown_image"]
