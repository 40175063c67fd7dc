"""Ids of rows and test images: from real addresses and real records of the upstream files."""

from typing import Any

import pyarrow as pa
import pytest

from tests.support.corpora.sample_files import ANNOTATIONS, read_csv, read_json
from x2vlm.data.duplicates import evaluation_ids as ev
from x2vlm.data.duplicates.identities import (
    ID_SCHEMA,
    LINK_SCHEMA,
    coco_links,
    identify,
    ids_of_row,
    ids_of_url,
    media_ids,
    openimages_links,
    visual_genome_links,
    with_identity,
)
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import SAMPLE_SCHEMA, Sample, sample_key, sample_table


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        # Real addresses: COCO's flickr_url and coco_url, SBU's, OpenImages' and XM3600's tables, Visual Genome's.
        ("http://farm9.staticflickr.com/8292/7866247804_e0486b75b8_z.jpg", ("flickr", "7866247804")),
        ("http://static.flickr.com/2723/4385058960_b0f291553e.jpg", ("flickr", "4385058960")),
        ("https://farm3.staticflickr.com/5310/5898076654_51085e157c_o.jpg", ("flickr", "5898076654")),
        ("https://c7.staticflickr.com/4/3951/15576892702_61503080f0_o.jpg", ("flickr", "15576892702")),
        ("https://www.flickr.com/photos/michael-beat/5898076654", ("flickr", "5898076654")),
        ("https://www.flickr.com/photos/74881150@N00/8644566109", ("flickr", "8644566109")),
        ("https://www.flickr.com/photo.gne?id=5457068434", ("flickr", "5457068434")),
        ("http://images.cocodataset.org/train2017/000000000790.jpg", ("coco", "790")),
        ("http://images.cocodataset.org/val2014/COCO_val2014_000000253964.jpg", ("coco", "253964")),
        ("http://mirror.example/x/COCO_train2014_000000581857_16.jpg", ("coco", "581857")),
        ("https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", ("visual_genome", "1")),
        ("https://cs.stanford.edu/people/rak248/VG_100K/2346321.jpg", ("visual_genome", "2346321")),
        ("https://www.youtube.com/watch?v=jLX0D8qQUBM", ("youtube", "jLX0D8qQUBM")),
        ("https://www.youtube.com/watch?app=desktop&v=9Zn4pID_BJ0&t=3s", ("youtube", "9Zn4pID_BJ0")),
        ("https://youtu.be/aBfjTAQ8qpM", ("youtube", "aBfjTAQ8qpM")),
        ("https://www.youtube.com/embed/aBfjTAQ8qpM", ("youtube", "aBfjTAQ8qpM")),
    ],
)
def test_an_address_says_which_image_it_is(url: str, expected: tuple[str, str]) -> None:
    assert ids_of_url(url)[0] == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/000000000790.jpg",  # twelve digits anywhere else are no COCO id
        "https://notflickr.com/photos/a/123",
        "https://evil-staticflickr.com/1/7866247804_e0486b75b8_z.jpg",
        "https://www.youtube.com/watch?v=short",
        "https://www.youtube.com/playlist?list=PLabc",
        "https://example.org/watch?v=jLX0D8qQUBM",
        "https://www.flickr.com/photos/tags/dog",
    ],
)
def test_an_address_that_looks_like_one_says_nothing(url: str) -> None:
    assert [kind for kind, _ in ids_of_url(url)] == ["url"]


def test_addresses_compare_without_scheme_www_case_of_host_port_80_and_fragment() -> None:
    forms = ("http://www.Example.org/A?b=1", "https://example.org/A?b=1#top", "http://example.org:80/A?b=1")
    assert {tuple(ids_of_url(form)) for form in forms} == {(("url", "example.org/A?b=1"),)}
    assert ids_of_url("https://example.org/a?b=1") != ids_of_url(forms[0])
    assert ids_of_url("http://[bad") == [("url", "http://[bad")]
    assert ids_of_url("http://a:99999/x") == [("url", "http://a:99999/x")]
    assert ids_of_url("") == []


@pytest.mark.parametrize(
    ("reader", "row", "expected"),
    [
        ("coco", "000790", [("coco", "790")]),
        ("refcoco", "581857", [("coco", "581857")]),
        ("visual_genome", "1", [("visual_genome", "1")]),
        ("gqa", "2407890", [("visual_genome", "2407890")]),
        ("gqa", "n578564", [("gqa", "n578564")]),
        ("openimages", "4fa8054781a4c382", [("openimages", "4fa8054781a4c382")]),
        ("flickr_entities", "1000092795", [("flickr", "1000092795")]),
        ("howto100m", "-_abcdefghi#12", [("youtube", "-_abcdefghi")]),
        ("yttemporal", "---------#3#0", [("youtube", "---------#3")]),
        ("cc3m", "17", []),
        ("", "17", []),
    ],
)
def test_row_keys_of_known_readers_are_ids(reader: str, row: str, expected: list[tuple[str, str]]) -> None:
    assert ids_of_row(reader, row) == expected


def sample(source: str, row: str, url: str, **values: Any) -> Sample:
    return Sample(sample_key(source, row), source, row, "train", values.pop("kind", "image"), url, **values)


def test_ids_of_samples_keep_a_clips_time() -> None:
    clip = sample("my_how_to", "jLX0D8qQUBM#4", "https://www.youtube.com/watch?v=jLX0D8qQUBM", kind="video")
    clip = sample(clip.source, clip.source_row, clip.url, kind="video", start_seconds=3.0, end_seconds=9.5)
    photo = sample("sbu", "8", "http://static.flickr.com/2723/4385058960_b0f291553e.jpg")
    table = media_ids(sample_table([clip, photo]), {"my_how_to": "howto100m", "sbu": "sbu"})
    assert table.schema == ID_SCHEMA
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == [
        (clip.key, "my_how_to", "youtube", "jLX0D8qQUBM", 3.0, 9.5),  # once, though row and address both say it
        (photo.key, "sbu", "flickr", "4385058960", None, None),
        (photo.key, "sbu", "url", "static.flickr.com/2723/4385058960_b0f291553e.jpg", None, None),
    ]
    assert media_ids(SAMPLE_SCHEMA.empty_table(), {}).num_rows == 0


def test_links_of_real_records_join_three_collections() -> None:
    """COCO photo 790 is in the shipped Visual Genome excerpt; its Flickr id stands in COCO's own record."""
    vg = visual_genome_links(read_json("visual_genome/image_data.json"))
    coco = coco_links(
        [
            {
                "id": 790,
                "coco_url": "http://images.cocodataset.org/train2017/000000000790.jpg",
                "flickr_url": "http://farm9.staticflickr.com/8292/7866247804_e0486b75b8_z.jpg",
            }
        ]
    )
    identities = identify([vg, coco])
    ids = pa.Table.from_pylist(
        [
            {"id_kind": kind, "id_value": value}
            for kind, value in (
                ("coco", "790"),
                ("visual_genome", "2500001"),
                ("flickr", "7866247804"),
                ("coco", "107438"),
                ("flickr", "1"),
            )
        ],
        schema=ID_SCHEMA,
    )
    identity = with_identity(ids, identities)["identity"].to_pylist()
    assert identity[0] == identity[1] == identity[2]
    assert len(set(identity)) == 3
    assert identity[4] == "flickr:1"
    assert identities.largest() == 3
    assert with_identity(ids, identify([]))["identity"].to_pylist()[0] == "coco:790"


def test_openimages_landing_pages_link_to_flickr() -> None:
    images = read_csv(ANNOTATIONS / "openimages/train-images-boxable-with-rotation.csv")
    links = openimages_links(images).to_pylist()
    assert links[0] == {
        "id_kind": "openimages",
        "id_value": "809baec345912829",
        "other_kind": "flickr",
        "other_value": "5457068434",
    }
    assert len(links) == len(images)


def test_missing_ids_link_nothing() -> None:
    """The first real record of image_data.json has neither; a null must not join all images that have none."""
    first = {"width": 800, "height": 600, "image_id": 1, "coco_id": None, "flickr_id": None}
    first["url"] = "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"
    assert visual_genome_links([first, first | {"image_id": 2, "coco_id": 0}]) == LINK_SCHEMA.empty_table()
    assert coco_links([{"id": None, "flickr_url": "http://static.flickr.com/2/43_b0.jpg"}]).num_rows == 0


def rows(table: pa.Table) -> list[tuple[Any, ...]]:
    assert table.schema == ev.EVALUATION_ID_SCHEMA
    return [tuple(row.values()) for row in table.to_pylist()]


def test_karpathy_records_and_lists() -> None:
    images = [
        {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895, "split": "test"},
        {"filepath": "val2014", "filename": "COCO_val2014_000000522418.jpg", "cocoid": 522418, "split": "restval"},
    ]
    assert rows(ev.karpathy_ids("coco_retrieval", images)) == [
        ("coco_retrieval", "test", "391895", "coco", "391895", None, None),
        ("coco_retrieval", "restval", "522418", "coco", "522418", None, None),
    ]
    flickr = ev.karpathy_ids("flickr30k", [{"filename": "1000092795.jpg", "split": "train"}])
    assert rows(flickr) == [("flickr30k", "train", "1000092795.jpg", "flickr", "1000092795", None, None)]
    lines = ["val2014/COCO_val2014_000000253964.jpg 253964", "val2014/COCO_val2014_000000350334.jpg 350334", ""]
    listed = ev.karpathy_list_ids("coco_retrieval", "val", lines)
    assert [row[2:5] for row in rows(listed)] == [("253964", "coco", "253964"), ("350334", "coco", "350334")]
    with pytest.raises(SourceUnavailable, match="line 1"):
        ev.karpathy_list_ids("coco_retrieval", "val", ["253964"])


def test_questions_expressions_and_attributes_are_about_coco_images() -> None:
    questions = [
        {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
        {"image_id": 458752, "question": "What position is this man playing?", "question_id": 458752001},
    ]
    assert rows(ev.coco_ids("vqa2", "val", questions)) == [("vqa2", "val", "458752", "coco", "458752", None, None)]
    assert rows(ev.coco_ids("ovad", "test", [{"id": 139}], field="id"))[0][3:5] == ("coco", "139")
    ref = {"file_name": "COCO_train2014_000000581857_16.jpg", "ref_id": 0, "image_id": 581857, "split": "testA"}
    assert rows(ev.refcoco_ids("refcoco_plus", [ref])) == [
        ("refcoco_plus", "testA", "581857", "coco", "581857", None, None)
    ]


def test_nlvr2_images_by_their_addresses() -> None:
    pair = {
        "identifier": "dev-850-0-0",
        "left_url": "https://i.kinja-img.com/gawker-media/image/upload/s--UyhVSznS--/18iy0hwo5wdrpjpg.jpg",
        "right_url": "https://cdn.pixabay.com/photo/2015/09/21/12/57/beer-bottles-949793_960_720.jpg",
    }
    found = rows(ev.nlvr2_ids("nlvr2", "dev", [pair, pair | {"identifier": "dev-850-0-1"}]))
    assert [row[2] for row in found] == ["dev-850-0-img0", "dev-850-0-img1"]
    assert found[1][3:5] == ("url", "cdn.pixabay.com/photo/2015/09/21/12/57/beer-bottles-949793_960_720.jpg")


def test_gqa_flickr30k_and_wikipedia() -> None:
    questions = {"202218649": {"imageId": "n578564"}, "1": {"imageId": "2407890"}}
    assert [row[3:5] for row in rows(ev.gqa_ids("xgqa", "testdev", questions))] == [
        ("gqa", "n578564"),
        ("visual_genome", "2407890"),
    ]
    names = ["759822302", "1018148011.jpg", "COCO_val2014_000000398076.jpg#657409", "759822302"]
    assert [row[2:5] for row in rows(ev.flickr30k_ids("xvnli", "test", names))] == [
        ("759822302", "flickr", "759822302"),
        ("1018148011", "flickr", "1018148011"),
        ("COCO_val2014_000000398076", "coco", "398076"),
    ]
    wit = {
        "image_url": "http://upload.wikimedia.org/wikipedia/commons/3/38/Luis_Herrera.jpg",
        "wit_ix": "wit-test_1",
    }
    assert rows(ev.address_ids("wit", "test", [wit], "wit_ix", ("image_url",)))[0][2:5] == (
        "wit-test_1",
        "url",
        "upload.wikimedia.org/wikipedia/commons/3/38/Luis_Herrera.jpg",
    )


def test_xm3600_images_are_openimages_of_flickr() -> None:
    image = {
        "ImageID": "3b825ea9d84a44ee",
        "OriginalURL": "https://c7.staticflickr.com/4/3951/15576892702_61503080f0_o.jpg",
        "OriginalLandingURL": "https://www.flickr.com/photos/rosshuggett/15576892702",
    }
    found = rows(ev.openimages_ids("xm3600", "test", [image]))
    assert [row[3:5] for row in found[:2]] == [("openimages", "3b825ea9d84a44ee"), ("flickr", "15576892702")]


def test_videos_have_times() -> None:
    video = {
        "category": 9,
        "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
        "video_id": "video0",
        "start time": 137.72,
        "end time": 149.44,
        "split": "train",
        "id": 0,
    }
    other = video | {"video_id": "video1"}
    assert rows(ev.msrvtt_ids("msrvtt", [video, other], only=["video0"], split="test")) == [
        ("msrvtt", "test", "video0", "youtube", "9lZi22qLlEo", 137.72, 149.44)
    ]
    assert {row[1] for row in rows(ev.msrvtt_ids("msrvtt", [video, other]))} == {"train"}
    assert rows(ev.msvd_ids("msvd", "test", ["mv89psg6zh4_33_46.avi", "-_hbPLsZvvo_5_8", "vid1"])) == [
        ("msvd", "test", "mv89psg6zh4_33_46", "youtube", "mv89psg6zh4", 33.0, 46.0),
        ("msvd", "test", "-_hbPLsZvvo_5_8", "youtube", "-_hbPLsZvvo", 5.0, 8.0),
        ("msvd", "test", "vid1", None, None, None, None),
    ]
