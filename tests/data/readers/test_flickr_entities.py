"""Flickr30k Entities: phrases with boxes out of the archive, and photos and archives that are no good."""

import zipfile
from pathlib import Path

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Caption, Concept, Grain

SENTENCES = (
    "[/EN#221796/people A girl] with [/EN#221797/bodyparts brown hair] sits on [/EN#221798/scene the beach] .\n"
    "[/EN#221796/people/animals Two girls] play as [/EN#0/notvisual it] rains .\n"
)
BOXES = """<annotation><filename>10.jpg</filename><size><width>500</width><height>333</height><depth>3</depth></size>
<object><name>221796</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>110</xmax><ymax>220</ymax></bndbox></object>
<object><name>221796</name><bndbox><xmin>200</xmin><ymin>5</ymin><xmax>300</xmax><ymax>100</ymax></bndbox></object>
<object><name>221797</name><name>221799</name><bndbox><xmin>20</xmin><ymin>20</ymin><xmax>60</xmax><ymax>50</ymax>
</bndbox></object>
<object><name>221798</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"""


def archive(folder: Path, **members: str) -> Path:
    path = folder / "annotations.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text)
    return path


def photo(number: int, sentences: str = SENTENCES, boxes: str = BOXES) -> dict[str, str]:
    return {f"Sentences/{number}.txt": sentences, f"annotations/Annotations/{number}.xml": boxes}


def test_captions_lose_their_marks_and_phrases_get_the_box_around_all_boxes(tmp_path: Path) -> None:
    [sample], drops = read("flickr_entities", source("flickr_entities", entities=archive(tmp_path, **photo(10))))
    assert (sample.source_row, sample.url) == ("10", "http://flickr_entities.invalid/10.jpg")
    assert (sample.claimed_width, sample.claimed_height) == (500, 333)
    assert sample.captions == (
        Caption("A girl with brown hair sits on the beach .", "en", "human"),
        Caption("Two girls play as it rains .", "en", "human"),
    )
    assert sample.concepts == (
        Concept(Grain.REGION, "A girl", Box(9, 4, 291, 216), (), "221796@0.0"),
        Concept(Grain.REGION, "brown hair", Box(19, 19, 41, 31), (), "221797@0.1"),
        Concept(Grain.REGION, "Two girls", Box(9, 4, 291, 216), (), "221796@1.0"),
    )
    assert rules(drops) == [
        ("10", "concept", "221798@0.2", "no_box"),
        ("10", "concept", "0@1.1", "not_visual"),
    ]


def test_captions_may_come_from_the_token_file(tmp_path: Path) -> None:
    tokens = tmp_path / "results_20130124.token"
    tokens.write_text("10.jpg#0\tA girl , smiling .\n10.jpg#1\t \n11.jpg#0\tnobody\n")
    given = source(entities=archive(tmp_path, **photo(10, "[/EN#221796/people A girl]\n")), tokens=tokens)
    [sample], drops = read("flickr_entities", given)
    assert sample.captions == (Caption("A girl , smiling .", "en", "human"),)
    assert rules(drops) == [("10", "caption", "1", "empty_caption")]
    tokens.write_text("10.jpg#0 no tab\n")
    with pytest.raises(SourceUnavailable, match=r"tokens file results_20130124.token: line 1 is no caption"):
        read("flickr_entities", given)


def test_photos_that_are_no_good(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'
    members = photo(1, boxes="<annotation>") | photo(2, boxes=bomb) | photo(3) | {"Sentences/4.txt": "A dog .\n"}
    members |= {"__MACOSX/Sentences/._3.txt": "x", "README.txt": "x"} | photo(5, boxes=" " * (1 << 20) + BOXES)
    samples, drops = read("flickr_entities", source(entities=archive(tmp_path, **members)))
    assert [sample.source_row for sample in samples] == ["3"]
    assert rules(drops)[:2] == [("1", "row", "", "malformed_row"), ("2", "row", "", "malformed_row")]
    assert rules(drops)[-2:] == [("4", "row", "", "malformed_row"), ("5", "row", "", "malformed_row")]


def test_archives_that_are_no_good(tmp_path: Path) -> None:
    path = archive(tmp_path, **{"README.txt": "x"})
    with pytest.raises(
        SourceUnavailable, match=r"entities file annotations.zip: no file like Sentences/1000092795.txt"
    ):
        read("flickr_entities", source(entities=path))
    path.write_bytes(archive(tmp_path, **photo(10)).read_bytes()[:-40])
    with pytest.raises(SourceUnavailable, match=r"not readable as ZIP: .*download it again"):
        read("flickr_entities", source(entities=path))
