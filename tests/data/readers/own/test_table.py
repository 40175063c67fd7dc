"""A user's own table: every format gives the same samples, columns are told by name, and paths become addresses."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.helpers import read, rules
from x2vlm.data.readers import Source
from x2vlm.data.readers.own.layout import BoxFormat
from x2vlm.data.readers.own.table import read_table, seconds_of
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Caption, Drop, Grain, Sample, SourceScores

ROWS: list[dict[str, Any]] = [
    {"link": "http://a.example/1.jpg", "alt_text": "a dog", "w": 30, "lang": "de"},
    {"link": "http://a.example/2.jpg", "alt_text": 'été, "quoted"', "w": None, "lang": None},
    {"link": "http://a.example/3.jpg", "alt_text": "two\nlines\tand a tab", "w": 5, "lang": "en"},
]
COLUMNS = {"url": ("link",), "caption": ("alt_text",), "width": ("w",)}


def given(path: Path, **values: Any) -> Source:
    return Source("own_card", "own", "train", {"rows": path}, licence="card licence", **values)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def written(kind: str, rows: list[dict[str, Any]]) -> bytes:
    if kind == "jsonl":
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return bytes(sink.getvalue())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter={"csv": ",", "tsv": "\t", "csv;": ";"}[kind])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "csv;", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("is_named", [True, False])
def test_every_format_gives_the_same_samples(tmp_path: Path, kind: str, pack: str, is_named: bool) -> None:
    path = tmp_path / (f"rows.{kind.strip(';')}{pack}" if is_named else "rows.data")
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[pack](written(kind, ROWS)))
    samples, drops = read("table", given(path, columns=COLUMNS))
    assert [(one.source_row, one.url, one.claimed_width, one.captions) for one in samples] == [
        ("0", "http://a.example/1.jpg", 30, (Caption("a dog", "de", "alt"),)),
        ("1", "http://a.example/2.jpg", None, (Caption('été, "quoted"', "en", "alt"),)),
        ("2", "http://a.example/3.jpg", 5, (Caption("two lines and a tab", "en", "alt"),)),
    ]
    assert drops == []


@pytest.mark.parametrize(
    "header",
    [
        ("url", "caption"),
        ("URL", "TEXT"),
        ("image", "alt"),
        ("file_name", "text"),
        ("Link", "alt text"),
        ("path", "title"),
    ],
)
def test_usual_names_need_no_card(tmp_path: Path, header: tuple[str, str]) -> None:
    (tmp_path / "t.csv").write_text(f"note,{header[0]},{header[1]}\nx,http://a/1.jpg,a dog\n")
    [sample], _ = read("table", given(tmp_path / "t.csv"))
    assert (sample.url, sample.captions[0].text) == ("http://a/1.jpg", "a dog")


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("url,link,text", {}, "several columns could be the url: `url`, `link`. .* Columns: url, link, text"),
        ("url,text,alt", {}, r"several columns could be the caption: .*`columns: \{caption: text\}`"),
        ("where,text", {}, "no column is known to hold the address .* Columns: where, text"),
        ("url,words", {}, "no column is known to hold a caption"),
        ("url,words", {"caption": ("wrods",)}, "no column `wrods`, .*did you mean `words`"),
        ("", {}, "no column is known to hold the address .* Columns: none"),
    ],
)
def test_columns_that_do_not_say_what_is_what(
    tmp_path: Path, header: str, columns: dict[str, tuple[str, ...]], message: str
) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\na,b,c\n" if header else "")
    with pytest.raises(SourceUnavailable, match=f"card own_card: rows file t.csv: {message}"):
        read("table", given(tmp_path / "t.csv", columns=columns))


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_columns_by_position_where_there_is_no_header(tmp_path: Path, delimiter: str) -> None:
    lines = [("a dog", "http://a/1.jpg"), ("bad", "x", "y"), ("a cat", "http://a/2.jpg")]
    (tmp_path / "t.tsv").write_text("".join(delimiter.join(line) + "\n" for line in lines))
    path = (tmp_path / "t.tsv").rename(tmp_path / ("t.tsv" if delimiter == "\t" else "t.csv"))
    samples, drops = read("table", given(path, columns={"caption": (0,), "url": (1,)}))
    assert [(one.source_row, one.url) for one in samples] == [("0", "http://a/1.jpg"), ("2", "http://a/2.jpg")]
    assert rules(drops) == [("1", "row", "", "wrong_column_count")]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('http://a/1.jpg\t"old" film', '"old" film'),
        ('http://a/1.jpg\t5" and 6"', '5" and 6"'),
        ('http://a/1.jpg\t"never closed', '"never closed'),
        ('http://a/1.jpg\t"a ""quoted"" word"', 'a "quoted" word'),
        ('http://a/1.jpg\t"two\nlines"', "two lines"),
    ],
)
def test_quotes_in_tsv_enclose_fields_only_where_that_makes_rows(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "t.tsv").write_text(f'url\ttext\n{line}\nhttp://a/2.jpg\t"b\nhttp://a/3.jpg\tc"\n')
    samples, drops = read("table", given(tmp_path / "t.tsv"))
    assert [one.captions[0].text for one in samples] == [text, '"b', 'c"']
    assert drops == []


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("csv", b'http://a/2.jpg,"open\n'),
        ("csv", b"http://a/2.jpg,caf\xe9\n"),
        ("csv", b"http://a/2.jpg\n"),
        ("csv", b"http://a/2.jpg," + b"x" * 140_000 + b"\n"),
        ("tsv", b"http://a/2.jpg\tcaf\xe9\n"),
        ("jsonl", b'{"url": "http://a/2.jpg", "text": "caf\xe9"}\n'),
        ("jsonl", b'{"url": \n'),
    ],
)
def test_one_bad_row_does_not_end_a_table(tmp_path: Path, kind: str, row: bytes) -> None:
    good = written(kind, [{"url": f"http://a/{number}.jpg", "text": "a dog"} for number in (1, 3)])
    first, last = good[: good.rindex(b"\n", 0, -1) + 1], good[good.rindex(b"\n", 0, -1) + 1 :]
    (tmp_path / f"t.{kind}").write_bytes(first + row + last)
    samples, drops = read("table", given(tmp_path / f"t.{kind}"))
    assert [(one.source_row, one.url[-5:]) for one in samples] == [("0", "1.jpg"), ("2", "3.jpg")]
    assert [drop.source_row for drop in drops] == ["1"]


def test_several_captions_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"url": "http://a/1.jpg", "one": "a dog", "two": ["b", " ", "c"]},
        {"url": "http://a/2.jpg", "one": None, "two": ["d"]},
        {"url": "http://a/3.jpg", "one": " ", "two": []},
        {"url": "", "one": "e", "two": ["f"]},
    ]
    columns = {"caption": ("one", "two")}
    (tmp_path / "t.jsonl").write_bytes(written("jsonl", rows))
    (tmp_path / "t.parquet").write_bytes(written("parquet", rows))
    listed = [{**row, "two": json.dumps(row["two"])} for row in rows]
    listed[2]["two"] = ""
    (tmp_path / "t.csv").write_bytes(written("csv", listed))
    for name in ("t.jsonl", "t.parquet", "t.csv"):
        samples, drops = read("table", given(tmp_path / name, columns=columns))
        assert [[caption.text for caption in one.captions] for one in samples] == [["a dog", "b", "c"], ["d"]]
        assert rules(drops) == [
            ("0", "caption", "2", "empty_caption"),
            ("2", "row", "", "empty_caption"),
            ("2", "caption", "0", "row_dropped"),
            ("3", "row", "", "missing_url"),
            ("3", "caption", "0", "row_dropped"),
            ("3", "caption", "1", "row_dropped"),
        ], name


BOXES = {"xywh": [10, 20, 30, 40], "xyxy": [10, 20, 40, 60], "cxcywh": [25, 40, 30, 40]}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("box_format", BOXES)
@pytest.mark.parametrize("unit", ["pixels", "fraction"])
def test_boxes_in_every_format(tmp_path: Path, kind: str, box_format: str, unit: str) -> None:
    scale = 1 if unit == "pixels" else 0.01
    box = [number * scale for number in BOXES[box_format]]
    row: dict[str, Any] = {"url": "http://a/1.jpg", "bboxes": [box, box], "labels": ["dog", "cat"]}
    if kind == "csv":
        row = {name: value if name == "url" else json.dumps(value) for name, value in row.items()}
    (tmp_path / f"t.{kind}").write_bytes(written(kind, [row]))
    boxes = BoxFormat.model_validate({"format": box_format, "unit": unit})
    [sample], drops = read("table", given(tmp_path / f"t.{kind}", boxes=boxes))
    assert [(concept.grain, concept.text) for concept in sample.concepts] == [
        (Grain.OBJECT, "dog"),
        (Grain.OBJECT, "cat"),
    ]
    found = sample.concepts[0].box
    assert (found.x, found.y, found.w, found.h) == pytest.approx((10 * scale, 20 * scale, 30 * scale, 40 * scale))
    assert sample.concepts[1].annotation_id == ("box:1" if unit == "pixels" else "norm:box:1")
    assert (sample.captions, drops) == ((), [])


def test_boxes_that_are_none_cost_themselves_alone(tmp_path: Path) -> None:
    rows = [
        {"url": "http://a/1.jpg", "text": "a", "boxes": [[0, 0, 5, 5], [5, 5, 0, 9]], "phrases": ["the dog", "x"]},
        {"url": "http://a/2.jpg", "text": "b", "boxes": [[0, 0, 5, 5]], "phrases": ["the", "dog"]},
        {"url": "http://a/3.jpg", "text": "c", "boxes": "none", "phrases": None},
        {"url": "http://a/4.jpg", "text": "d", "boxes": None, "phrases": None},
        {"url": "", "text": "e", "boxes": [[0, 0, 5, 5]], "phrases": ["dog"]},
        {"url": "http://a/6.jpg", "text": "", "boxes": [{"bbox": [1, 2, 3, 4], "label": "own"}], "phrases": None},
        {"url": "http://a/7.jpg", "text": "g", "boxes": [1, 2, 3, 4], "phrases": "one"},
    ]
    (tmp_path / "t.jsonl").write_bytes(written("jsonl", rows))
    boxes = BoxFormat(format="xyxy", unit="pixels")
    samples, drops = read("table", given(tmp_path / "t.jsonl", boxes=boxes))
    assert [[(c.grain, c.text, c.box) for c in one.concepts] for one in samples] == [
        [(Grain.REGION, "the dog", Box(0, 0, 5, 5))],
        [],
        [],
        [],
        [(Grain.REGION, "own", Box(1, 2, 2, 2))],
        [(Grain.REGION, "one", Box(1, 2, 2, 2))],
    ]
    assert rules(drops) == [
        ("0", "concept", "box:1", "malformed_box"),
        ("1", "concept", "box:0", "unequal_lengths"),
        ("2", "concept", "box:0", "malformed_box"),
        ("4", "row", "", "missing_url"),
        ("4", "concept", "box:0", "row_dropped"),
        ("4", "caption", "0", "row_dropped"),
    ]


def test_what_else_a_row_may_say(tmp_path: Path) -> None:
    nan = float("nan")
    row = {
        **{"url": "http://a/1.jpg", "text": b"a dog", "language": b"de", "license": nan, "width": 30.0, "height": "20"},
        **{"sha256": "AB" * 32, "similarity": 0.3, "punsafe": nan, "nsfw": b"UNLIKELY", "key": 7.0, "author": None},
    }
    (tmp_path / "t.parquet").write_bytes(written("parquet", [row, {**row, "license": 1.0}, {**row, "key": None}, row]))
    samples, drops = read("table", given(tmp_path / "t.parquet", columns={"id": ("key",)}))
    [sample] = samples
    assert (sample.source_row, sample.captions) == ("7", (Caption("a dog", "de", "alt"),))
    assert (sample.licence, sample.author, sample.claimed_width, sample.claimed_height) == ("card licence", "", 30, 20)
    assert sample.published_hash == "sha256:" + "ab" * 32
    assert sample.source_scores == SourceScores(similarity=0.3, nsfw="UNLIKELY")
    assert rules(drops) == [
        ("1", "row", "", "duplicate_row"),
        ("2", "row", "", "malformed_row"),
        ("3", "row", "", "duplicate_row"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos/a b%.jpg", "http://local.invalid/photos/a%20b%25.jpg"),
        ("./photos/é.jpg", "http://local.invalid/photos/%C3%A9.jpg"),
        ("photos\\1.jpg", "http://local.invalid/photos/1.jpg"),
        ("../photos/1.jpg", "http://local.invalid/photos/1.jpg"),
        ("{root}/photos/1.jpg", "http://local.invalid/photos/1.jpg"),
        ("file://{root}/photos/a%20b.jpg", "http://local.invalid/photos/a%20b.jpg"),
        ("https://a.example/x.jpg?a=1&amp;b", "https://a.example/x.jpg?a=1&amp;b"),
        ("//a.example/x.jpg", "https://a.example/x.jpg"),
        ("/etc/passwd", "outside_media_folder"),
        ("photos/../../secret.jpg", "outside_media_folder"),
        ("../../secret.jpg", "outside_media_folder"),
    ],
)
def test_paths_become_addresses_below_the_served_folder(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "t.csv"
    path.write_text(f"path,text\n{text.replace('{root}', str(tmp_path))},a dog\n")
    local = {"media_url": "http://local.invalid", "media_folder": str(tmp_path)}
    samples, drops = read("table", given(path, **local))
    assert [one.url for one in samples] + [drop.rule for drop in drops if drop.unit == "row"] == [expected]


def test_a_path_without_a_folder_says_what_the_card_lacks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,text\na.jpg,a dog\n")
    samples, drops = read("table", given(tmp_path / "t.csv"))
    assert (samples, drops[0].rule) == ([], "no_media_folder")
    assert "url_base" in drops[0].reason


def test_images_and_clips_are_told_apart(tmp_path: Path) -> None:
    lines = [
        *("url,text,kind,start,end", "http://a/1.jpg,a,,,", "http://a/2.MP4?x=1.jpg,b,,,", "http://a/3,c,clip,,"),
        *("http://a/4,d,,1.5,0:03", "http://a/5,e,landscape,,", "http://a/6.mp4,f,,9,3", "http://a/7.mp4,g,image,,"),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    samples, drops = read("table", given(tmp_path / "t.csv"))
    kinds = ["image", "video", "video", "video", "image", "image"]
    assert [one.kind for one in samples] == kinds
    assert [(one.start_seconds, one.end_seconds) for one in samples][3] == (1.5, 3.0)
    assert rules(drops)[0] == ("5", "row", "", "malformed_span")
    samples, _ = read("table", given(tmp_path / "t.csv", kind="video"))
    assert [one.kind for one in samples] == ["video", "video", "video", "video", "video", "image"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(3, 3.0), ("3.5", 3.5), ("1:02", 62.0), ("01:00:00,5", 3600.5), ("1:2:3:4", None), ("a:1", None), (True, None)],
)
def test_times(value: Any, seconds: float | None) -> None:
    assert seconds_of(value) == seconds


def test_a_long_table_streams(tmp_path: Path) -> None:
    """The first samples come long before the file is read, and nothing is kept."""
    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("url,text\n")
        file.writelines(f"http://a.example/{number}.jpg,text number {number}\n" for number in range(200_000))
    seen: Counter[str] = Counter()
    items = read_table(given(path), seen)
    first = [next(items) for _ in range(1000)]
    assert seen["rows"] == 1000
    assert all(isinstance(item, Sample) for item in first)
    assert not any(isinstance(item, Drop) for item in items)
    assert seen["rows"] == 200_000
