"""One bad row never ends a source, whichever reader takes it; and optional columns never become words of their own."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.helpers import read, source
from x2vlm.data.duplicates.id_files import IdFile, read_test_ids
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import sample_table

VIDEO = b'{"info": {"id": "%s"}, "subtitles": [{"word": "%s", "time": 1.0}]}\n'
IMAGES = b"ImageID,OriginalURL,License,Author,Rotation,Title\n"
# reader, role, what comes before the rows, a good row, another good row
TEXTS: dict[str, tuple[str, bytes, bytes, bytes]] = {
    "webvid": ("rows", b"videoid,contentUrl,name\n", b"1,http://a/1.mp4,one dog\n", b"3,http://a/3.mp4,two dogs\n"),
    "cc3m": ("rows", b"", b"one dog\thttp://a/1.jpg\n", b"two dogs\thttp://a/3.jpg\n"),
    "cc12m": ("rows", b"", b"http://a/1.jpg\tone dog\n", b"http://a/3.jpg\ttwo dogs\n"),
    "table": ("rows", b"url,text\n", b"http://a/1.jpg,one dog\n", b"http://a/3.jpg,two dogs\n"),
    "yttemporal": ("rows", b"", VIDEO % (b"a", b"dog"), VIDEO % (b"b", b"cat")),
}
BAD = {
    "webvid": [b'2,u,"old" film\n', b'2,u,"open\n', b"2,u,caf\xe9\n", b"2,u," + b"x" * 140_000 + b"\n", b"2,u,a\0b\n"],
    "cc3m": [b"caf\xe9\thttp://a/2.jpg\n", b"a\0b\thttp://a/2.jpg\n", b"no tab\n"],
    "cc12m": [b"http://a/\xff.jpg\tcat\n", b"http://a/2.jpg\ta\0b\n", b"a\tb\tc\n"],
    "table": [b'u,"old" film\n', b'u,"open\n', b"u,caf\xe9\n", b"u," + b"x" * 140_000 + b"\n", b"u,a,b\n"],
    "yttemporal": [b"{\n", b"\xe9\n", VIDEO % (b"caf\xe9", b"x"), b"[" * 100_000 + b"\n"],
}


@pytest.mark.parametrize(("reader", "row"), [(reader, row) for reader, rows in BAD.items() for row in rows])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_a_bad_row_is_a_drop_and_the_rest_is_read(tmp_path: Path, reader: str, row: bytes, mark: bytes) -> None:
    role, head, first, last = TEXTS[reader]
    (tmp_path / "t").write_bytes(mark + head + first + row + last)
    (tmp_path / "t").rename(tmp_path / "rows.csv")
    samples, drops = read(reader, source(**{role: tmp_path / "rows.csv"}))
    assert len(samples) == 2
    assert [drop.unit for drop in drops] == ["row"]
    assert "\ufeff" not in samples[0].captions[0].text + samples[0].url
    assert sample_table(samples).num_rows == 2


@pytest.mark.parametrize(
    "row", [b'a2,u,"CC" BY,Ann,0,\n', b"a2,u,CC,Bj\xf6rn,0,\n", b'a2,u,CC,Ann,0,"open\n', b"a2,u\n"]
)
def test_a_bad_image_or_box_of_openimages(tmp_path: Path, row: bytes) -> None:
    (tmp_path / "images.csv").write_bytes(
        IMAGES + b"a1,http://x/1.jpg,CC,Ann,0,\n" + row + b"a3,http://x/3.jpg,CC,,0,\n"
    )
    (tmp_path / "classes.csv").write_bytes(b"/m/bag,Bag\n")
    boxes = b"ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf,IsDepiction\n"
    bad = [b'a1,"/m/bag" x,0,1,0,1,0,0\n', b"a1,/m/\xe9,0,1,0,1,0,0\n", b"a1,/m/bag\n"]
    good = b"a3,/m/bag,0,1,0,1,0,0\n"
    for number, line in enumerate(bad):
        (tmp_path / "boxes.csv").write_bytes(boxes + good + line + good)
        given = {name: tmp_path / f"{name}.csv" for name in ("images", "classes", "boxes")}
        samples, drops = read("openimages", source(**given))
        assert [sample.source_row for sample in samples] == ["a1", "a3"], number
        assert [concept.annotation_id for concept in samples[1].concepts] == ["norm:bbox:0", "norm:bbox:2"]
        assert sorted((drop.unit, drop.item) for drop in drops) == [("concept", "bbox:1"), ("row", "")]


KINDS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.binary()))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_texts_of_laion_in_every_arrow_type(tmp_path: Path, kind: pa.DataType) -> None:
    def column(*texts: str | None) -> pa.Array:
        plain = pa.array(texts, pa.string())
        return plain.cast(pa.binary()).dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)

    columns = {"URL": column("http://a", "http://b"), "TEXT": column("été", "b"), "LANGUAGE": column("fr", None)}
    columns |= {"LICENSE": column("CC0", None), "NSFW": column("UNLIKELY", None)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    samples, drops = read("laion", source(rows=tmp_path / "t.parquet"))
    assert [(one.captions[0].text, one.captions[0].language) for one in samples] == [("été", "fr"), ("b", "en")]
    assert [one.licence for one in samples] == ["CC0", "card licence"]
    assert [one.source_scores.nsfw for one in samples if one.source_scores] == ["UNLIKELY", None]
    assert drops == []


@pytest.mark.parametrize("missing", [float("nan"), None, ["a"], {"a": 1}])
@pytest.mark.parametrize("name", ["LICENSE", "LANGUAGE", "NSFW"])
def test_a_value_that_is_no_text_is_missing(tmp_path: Path, name: str, missing: Any) -> None:
    table = pa.table({"URL": ["http://a"], "TEXT": ["a dog"], name: pa.array([missing])})
    pq.write_table(table, tmp_path / "t.parquet")
    [sample], _ = read("laion", source(rows=tmp_path / "t.parquet"))
    assert (sample.licence, sample.captions[0].language) == ("card licence", "en")
    assert not sample.source_scores or not sample.source_scores.nsfw


def test_lone_halves_of_pairs_can_be_stored(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(VIDEO % (b"a", b"\\ud83d word"))
    samples, _ = read("yttemporal", source(rows=tmp_path / "t.jsonl"))
    assert sample_table(samples)["captions"].to_pylist()[0][0]["text"] == "\ufffd word"


def test_a_list_of_test_images_loses_no_image(tmp_path: Path) -> None:
    """Of a source a bad row is dropped; here it would let an image of a test into the training set."""
    file = IdFile(name="oi", format="openimages", path="t.csv", split="test")
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + IMAGES + b"a1,http://x/1.jpg,CC,Bj\xf6rn,0,\n")
    ids = read_test_ids(file, tmp_path / "t.csv").to_pylist()
    assert ("openimages", "a1") in [tuple(row.values())[3:5] for row in ids]
    (tmp_path / "t.csv").write_bytes(IMAGES + b'a1,http://x/1.jpg,"CC" BY,Ann,0,\n')
    with pytest.raises(SourceUnavailable, match=r"t.csv: line 2: .*Correct that line: an image that is not listed"):
        read_test_ids(file, tmp_path / "t.csv")
