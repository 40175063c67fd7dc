"""OpenImages: real heads of the CSVs, relations in words, flags, and rows that are no good."""

from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.data.boxes import denormalise_boxes
from x2vlm.data.readers.annotated.openimages import attribute_name, spoken
from x2vlm.data.text.texts import concept_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Grain

IMAGES = "ImageID,Subset,OriginalURL,License,Author,Title,Rotation\n"
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
RELATIONS = "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel\n"
CLASSES = "/m/woman,Woman\n/m/guitar,Guitar\n/m/table,Table\n/m/bag,Handbag\n"
ATTRIBUTES = "id,name\n/m/wooden,Wooden\n/m/leather,(made of)Leather\n/m/jump,Jump\n"


def files(folder: Path, **texts: str) -> dict[str, Path]:
    contents = {"images": IMAGES + "a1,train,http://x/a1.jpg,CC,Ann,,0\n", "classes": CLASSES, "boxes": BOXES} | texts
    for role, text in contents.items():
        (folder / f"{role}.csv").write_text(text, encoding="utf-8")
    return {role: folder / f"{role}.csv" for role in contents}


def test_real_heads_of_the_files(excerpts_dir: Path) -> None:
    folder = excerpts_dir / "openimages"
    given = {
        "images": folder / "credits.csv",
        "classes": folder / "oidv6-class-descriptions-boxable.csv",
        "attributes": folder / "oidv6-attributes-description.csv",
        "boxes": folder / "oidv6-train-annotations-bbox.csv",
        "relations": folder / "oidv6-train-annotations-vrd.csv",
    }
    samples, drops = read("openimages", source("openimages", **given))
    assert len(samples) == 18
    assert (samples[0].source_row, samples[0].author) == ("0006400c1c224e19", "sneakerdog")
    assert samples[0].licence == "https://creativecommons.org/licenses/by/2.0/"
    assert samples[0].url == "https://c2.staticflickr.com/2/1433/946782888_84c5811a41_o.jpg"
    # The heads were cut independently: their boxes belong to images that this table does not list.
    assert rules(drops) == [
        *[("000002b66c9c498e", "concept", f"bbox:{number}", "unknown_image") for number in range(3)],
        *[("000ac95750ac7399", "concept", f"vrd:{number}", "unknown_image") for number in range(2)],
    ]


def test_real_boxes_of_a_listed_image(excerpts_dir: Path, tmp_path: Path) -> None:
    boxes = excerpts_dir / "openimages" / "oidv6-train-annotations-bbox.csv"
    given = files(tmp_path, images=IMAGES + "000002b66c9c498e,train,http://x,,,,0.0\n", classes="/m/01g317,Person\n")
    [sample], drops = read("openimages", source(**(given | {"boxes": boxes})))
    assert drops == []
    assert [concept.annotation_id for concept in sample.concepts] == ["norm:bbox:0", "norm:bbox:1", "norm:bbox:2"]
    first = denormalise_boxes(sample, 1000, 1000).concepts[0]
    assert (first.text, first.annotation_id) == ("Person", "bbox:0")
    box = first.box
    assert [box.x, box.y, box.w, box.h] == pytest.approx([12.5, 148.438, 182.812, 439.062])


def relation(label1: str, label2: str, name: str, boxes: str = "0,0.5,0,0.25,0.25,1,0.5,0.75") -> str:
    return f"a1,/m/{label1},/m/{label2},{boxes},{name}\n"


@pytest.mark.parametrize(
    ("row", "grain", "text", "box"),
    [
        (relation("woman", "guitar", "plays"), Grain.REGION, "Woman plays Guitar", Box(0, 0, 1, 0.75)),
        (relation("guitar", "bag", "inside_of"), Grain.REGION, "Guitar inside of Handbag", Box(0, 0, 1, 0.75)),
        (relation("woman", "table", "at"), Grain.REGION, "Woman at Table", Box(0, 0, 1, 0.75)),
        (relation("table", "wooden", "is"), Grain.OBJECT, "wooden Table", Box(0, 0, 0.5, 0.25)),
        (relation("bag", "leather", "is"), Grain.OBJECT, "Handbag made of leather", Box(0, 0, 0.5, 0.25)),
        (relation("woman", "jump", "is"), Grain.REGION, "Woman jumping", Box(0, 0, 0.5, 0.25)),
    ],
)
def test_relations_in_words(tmp_path: Path, row: str, grain: Grain, text: str, box: Box) -> None:
    given = files(tmp_path, attributes=ATTRIBUTES, relations=RELATIONS + row)
    [sample], drops = read("openimages", source(**given))
    [concept] = sample.concepts
    assert (concept.grain, concept_text(concept), concept.box, concept.annotation_id) == (
        grain,
        text,
        box,
        "norm:vrd:0",
    )
    assert drops == []


@pytest.mark.parametrize(
    ("label", "words"),
    [("inside_of", "inside of"), ("insideOf", "inside of"), ("at", "at"), ("holding_hands", "holding hands")],
)
def test_labels_are_split_into_words(label: str, words: str) -> None:
    assert spoken(label) == words


def test_attribute_names_are_lower_case_words() -> None:
    assert attribute_name("(made of)Textile") == "made of textile"
    assert attribute_name("Transparent") == "transparent"


def box_row(
    image: str = "a1", label: str = "/m/bag", box: str = "0.1,0.5,0.2,0.6", group: int = 0, depicts: int = 0
) -> str:
    return f"{image},xclick,{label},1,{box},0,0,{group},{depicts},0\n"


def test_flags_and_bad_rows_become_drops_of_their_own(tmp_path: Path) -> None:
    rows = [
        box_row(),
        box_row(group=1),
        box_row(depicts=1),
        box_row(label="/m/nothing"),
        box_row(box="0.1,wide,0.2,0.6"),
        "a1,xclick,/m/bag\n",
        box_row(image="zz"),
        box_row(group=-1, depicts=-1),
    ]
    [sample], drops = read("openimages", source(**files(tmp_path, boxes=BOXES + "".join(rows))))
    assert [concept.annotation_id for concept in sample.concepts] == ["norm:bbox:0", "norm:bbox:7"]
    assert sorted(rules(drops)) == [
        ("a1", "concept", "bbox:1", "group_of"),
        ("a1", "concept", "bbox:2", "depiction"),
        ("a1", "concept", "bbox:3", "unknown_label"),
        ("a1", "concept", "bbox:4", "malformed_box"),
        ("a1", "concept", "bbox:5", "wrong_column_count"),
        ("zz", "concept", "bbox:6", "unknown_image"),
    ]


def test_relations_that_cannot_be_put_in_words_or_placed_are_dropped(tmp_path: Path) -> None:
    rows = [
        relation("nobody", "table", "at"),
        relation("woman", "nothing", "at"),
        relation("woman", "table", "at", "0,0.5,0,0.25,,,,"),
    ]
    [sample], drops = read("openimages", source(**files(tmp_path, relations=RELATIONS + "".join(rows))))
    assert sample.concepts == ()
    assert rules(drops) == [
        ("a1", "concept", "vrd:0", "unknown_label"),
        ("a1", "concept", "vrd:1", "unknown_label"),
        ("a1", "concept", "vrd:2", "malformed_box"),
    ]
    assert [drop.reason for drop in drops[:2]] == ["no name for /m/nobody", "no name for /m/nothing"]


def test_a_name_that_is_not_utf8_is_unknown_and_the_others_are_read(tmp_path: Path) -> None:
    given = files(tmp_path, boxes=BOXES + "a1,,/m/bag,1,0,1,0,1,0,0,0,0,0\na1,,/m/table,1,0,1,0,1,0,0,0,0,0\n")
    given["classes"].write_bytes(b'/m/bag,caf\xe9\n/m/odd,"a"b\n/m/table,Table\n')
    [sample], drops = read("openimages", source(**given))
    assert [concept.text for concept in sample.concepts] == ["Table"]
    assert rules(drops) == [("a1", "concept", "bbox:0", "unknown_label")]


def test_rows_of_an_image_may_lie_anywhere_and_keep_their_order(tmp_path: Path) -> None:
    images = IMAGES + "b2,train,http://x/b2,,,,\na1,train,http://x/a1,,,,NaN\n"
    rows = box_row("a1") + box_row("b2") + box_row("a1") + box_row("b2")
    samples, _ = read("openimages", source(**files(tmp_path, images=images, boxes=BOXES + rows)))
    assert [(sample.source_row, [concept.annotation_id for concept in sample.concepts]) for sample in samples] == [
        ("b2", ["norm:bbox:1", "norm:bbox:3"]),
        ("a1", ["norm:bbox:0", "norm:bbox:2"]),
    ]


def test_bad_images_take_their_boxes_with_them(tmp_path: Path) -> None:
    images = [
        "a1,train,http://x/a1,CC,Ann,,0\n",
        "a1,train,http://x/twice,CC,Ann,,0\n",
        "r9,train,http://x/r9,CC,Ann,,90.0\n",
        "u7,train,,CC,Ann,,0\n",
        "x,train\n",
        ",train,http://x,CC,Ann,,0\n",
    ]
    boxes = BOXES + box_row("r9") + box_row("u7")
    samples, drops = read("openimages", source(**files(tmp_path, images=IMAGES + "".join(images), boxes=boxes)))
    assert [sample.source_row for sample in samples] == ["a1"]
    assert rules(drops) == [
        ("a1", "row", "", "duplicate_row"),
        ("r9", "row", "", "rotation_unclear"),
        ("r9", "concept", "bbox:0", "row_dropped"),
        ("u7", "row", "", "missing_url"),
        ("u7", "concept", "bbox:1", "row_dropped"),
        ("line 6", "row", "", "wrong_column_count"),
        ("line 7", "row", "", "malformed_row"),
    ]


def test_titles_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    images = IMAGES + 'a1,train,http://x/a1,CC,"Ann, ""the"" Second","two\nlines",0\n'
    [sample], drops = read("openimages", source(**files(tmp_path, images=images)))
    assert (sample.author, drops) == ('Ann, "the" Second', [])


def test_class_names_are_read_with_and_without_a_header(tmp_path: Path) -> None:
    for header in ("", "id,name\n", "LabelName,DisplayName\n"):
        given = files(tmp_path, classes=header + '/m/bag,"Bag, large"\n', boxes=BOXES + box_row())
        [sample], _ = read("openimages", source(**given))
        assert sample.concepts == (
            Concept(Grain.OBJECT, "Bag, large", Box(0.1, 0.2, 0.4, 0.39999999999999997), (), "norm:bbox:0"),
        )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"images": "ImageID,Subset\n"},
            "images file images.csv: line 1 has no column OriginalURL, License, Author, Rotation",
        ),
        (
            {"boxes": "ImageID,LabelName\na,b\n"},
            "boxes file boxes.csv: line 1 has no column XMin, XMax, .*; it has ImageID, LabelName",
        ),
        ({"boxes": ""}, "boxes file boxes.csv: line 1 has no column ImageID, .*; it has nothing"),
        ({"classes": "<html>\n"}, "classes file classes.csv: no row like `/m/011k07,Tortoise`"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    with pytest.raises(SourceUnavailable, match=f"card test_card: {message}"):
        read("openimages", source(**files(tmp_path, **texts)))
