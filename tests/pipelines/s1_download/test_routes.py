"""Media that a user holds, in a folder or a bucket outside of the project, and videos behind pages through yt-dlp."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.experiment import Experiment
from pipelines.flow.stage import PartSummary
from pipelines.graph import build_graph
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import finish_download
from pipelines.s1_download.routes import LocalMedia
from tests.hostile.payloads import clip, jpeg
from tests.support.download.routes import download_by_route, read_card
from tests.support.s3 import s3_client, s3_in_environment, s3_server
from x2vlm.config import parse_config
from x2vlm.data.cards import Card, load_card
from x2vlm.errors import ConfigError
from x2vlm.samples import Sample

HOWTO = {
    "videos": "video_id,category_1,category_2,rank,task_id\n-abcdefghij,A,B,1,2\nKLMNOPQRSTU,A,B,1,2\n",
    "raw_captions": json.dumps(
        {
            "-abcdefghij": {
                "text": ["cut the", "to the bowl", "and stir"],
                "start": [0, 0.8, 1.5],
                "end": [0.9, 1.6, 2.4],
            },
            "KLMNOPQRSTU": {"text": ["you see"], "start": [0], "end": [1]},
        }
    ),
}


@pytest.mark.parametrize(
    ("name", "row", "url", "path"),
    [
        (
            "webvid",
            "1066674784",
            "https://ak.picdn.net/shutterstock/videos/1066674784/preview/stock.mp4",
            "1066674784.mp4",
        ),
        ("howto100m", "-abc_def#12", "https://www.youtube.com/watch?v=-abc_def", "-abc_def.mp4"),
        ("yttemporal", "a/b#0", "https://www.youtube.com/watch?v=a%2Fb", "a%2Fb.mp4"),
        ("coco", "9", "http://images.cocodataset.org/train2017/000000000009.jpg", "000000000009.jpg"),
        ("visual_genome", "1", "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "VG_100K_2/1.jpg"),
        ("objects365", "420917", "http://objects365.invalid/patch8/o_v1_00420917.jpg", "patch8/o_v1_00420917.jpg"),
        ("openimages", "000002b66c9c498e", "https://c7.staticflickr.com/6/5/x_o.jpg", "000002b66c9c498e.jpg"),
    ],
)
def test_shipped_cards_say_how_a_copy_names_its_files(
    name: str, row: str, url: str, path: str, project_root: Path
) -> None:
    card = load_card(project_root / "datasets" / "pretrain" / f"{name}.yaml")
    assert card.local_name is not None
    sample = Sample("k", name, row, "train", card.grains[0], url)
    assert LocalMedia(root="/x", name=card.local_name).path(sample) == path


def test_names_with_unknown_fields_are_refused() -> None:
    for name in ("{key}.jpg", "fixed.jpg", "{id.__class__}.jpg"):
        with pytest.raises(ConfigError, match="use at least one of file, folder, id, row"):
            parse_config(LocalMedia, {"root": "/x", "name": name}, "test")


def test_videos_of_a_copy_outside_the_project_are_read_once_each_and_cut_into_clips(
    tmp_path: Path, project_root: Path
) -> None:
    card = load_card(project_root / "datasets" / "pretrain" / "howto100m.yaml")
    samples = read_card(tmp_path, card, HOWTO)
    assert [sample.source_row for sample in samples] == [
        "-abcdefghij#0",
        "-abcdefghij#1",
        "-abcdefghij#2",
        "KLMNOPQRSTU#0",
    ]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "-abcdefghij.mp4").write_bytes(clip())
    local = {"root": str(tmp_path / "copy"), "name": card.local_name}
    # As the graph would say it: yt-dlp is neither allowed nor needed.
    ledger, kept, _ = download_by_route(tmp_path, samples, local_media=local, yt_dlp_domains=card.yt_dlp_domains)
    assert [row["status"] for row in ledger] == ["kept", "kept", "kept", "http_404"]
    assert {row["final_url"] for row in ledger[:3]} == {"https://www.youtube.com/watch?v=-abcdefghij"}
    assert len({sample.media.sha256 for sample in kept if sample.media}) == 3


def openimages(folder: Path, project_root: Path) -> tuple[Card, list[Sample]]:
    card = load_card(project_root / "datasets" / "pretrain" / "openimages.yaml")
    header = (
        "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5"
    )
    rows = [
        "a1,train,https://c1.staticflickr.com/1/x_o.jpg,,https://creativecommons.org/licenses/by/2.0/,,Ada,t,1,,,0.0",
        'b2,train,https://c2.staticflickr.com/2/y_o.jpg,,,,"Bo ""B"" Lund",t,1,,,0.0',
    ]
    box = "xclick,/m/dog,1,0.1,0.9,0.1,0.9,0,0,0,0,0"
    texts = {
        "images": "\n".join([f"{header},Thumbnail300KURL,Rotation", *rows]),
        "classes": "/m/dog,Dog\n/m/cat,Cat\n",
        "attributes": "/m/big,Big\n",
        "boxes": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
        "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        + "".join(f"{image},{box}\n" for image in ("a1", "b2")),
        "relations": "ImageID,LabelName1,LabelName2,"
        "XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel\n",
    }
    return card, read_card(folder, card, texts)


def coco(folder: Path, project_root: Path) -> list[Sample]:
    card = load_card(project_root / "datasets" / "pretrain" / "coco.yaml")
    url = "http://images.cocodataset.org/train2017/9.jpg"
    images = [{"id": 9, "license": 3, "coco_url": url, "width": 64, "height": 48, "file_name": "9.jpg"}]
    licenses = [{"id": 3, "url": "http://creativecommons.org/licenses/by-nc-nd/2.0/", "name": "BY-NC-ND"}]
    captions = {"images": images, "licenses": licenses, "annotations": [{"id": 1, "image_id": 9, "caption": "a bowl"}]}
    instances = {"images": images, "licenses": licenses, "annotations": [], "categories": []}
    return read_card(folder, card, {"captions": json.dumps(captions), "instances": json.dumps(instances)})


def test_images_of_a_copy_in_a_bucket_keep_url_licence_and_author(tmp_path: Path, project_root: Path) -> None:
    with s3_server() as endpoint, s3_in_environment(endpoint):
        client = s3_client(endpoint)
        client.create_bucket(Bucket="copy")
        client.put_object(Bucket="copy", Key="oi/train/b2.jpg", Body=jpeg())
        client.put_object(Bucket="copy", Key="oi/train/9.jpg", Body=jpeg())
        card, samples = openimages(tmp_path / "openimages", project_root)
        samples += coco(tmp_path / "coco", project_root)
        ledger, kept, result = download_by_route(
            tmp_path, samples, local_media={"root": "s3://copy/oi/train", "name": card.local_name}
        )
    assert [row["status"] for row in ledger] == ["http_404", "kept", "kept"]
    assert kept[0].media is not None
    assert kept[0].media.sha256 == hashlib.sha256(jpeg()).hexdigest()
    assert kept[0].fetch is not None
    assert kept[0].fetch.final_url == kept[0].url == "https://c2.staticflickr.com/2/y_o.jpg"
    # Rights are in the ledger of every row, kept or not, and in the rows; an image without a licence has its card's.
    assert [(row["licence"], row["author"]) for row in ledger] == [
        ("https://creativecommons.org/licenses/by/2.0/", "Ada"),
        (card.licence, 'Bo "B" Lund'),
        ("http://creativecommons.org/licenses/by-nc-nd/2.0/", ""),
    ]
    assert [(sample.licence, sample.author) for sample in kept] == [(r["licence"], r["author"]) for r in ledger[1:]]
    assert result.summary["licences"] == {card.licence: 1, "http://creativecommons.org/licenses/by-nc-nd/2.0/": 1}
    total = finish_download(DownloadConfig(), [PartSummary("a", result.counts, result.summary)] * 2)
    assert total["licences"] == {name: 2 for name in result.summary["licences"]}
    assert total["hash_checks"] == {"unpublished": 6}


def experiment(**source: Any) -> Experiment:
    values = {
        "name": "x",
        "sources": {"a": {"data_root": "/data", **source}},
        "partition": {"num_shards": 1},
        "vocabulary": "vocab.txt",
    }
    return parse_config(Experiment, values, "test")


def test_the_graph_takes_the_copy_of_the_user_instead_of_the_web() -> None:
    def config(**source: Any) -> DownloadConfig:
        found = build_graph(experiment(**source))["download/a"].config
        assert isinstance(found, DownloadConfig)
        return found

    assert config(card="pretrain/howto100m").yt_dlp_domains == ("youtube.com",)
    assert config(card="pretrain/howto100m").local_media is None
    own = config(card="pretrain/objects365", media_root="s3://b/o365")
    assert own.local_media == LocalMedia(root="s3://b/o365", name="{folder}/{file}")
    assert own.url_base is None
    assert not own.crawler_policy().reads_robots
    named = config(card="pretrain/webvid", media_root="/clips", media_name="{id}.webm")
    assert named.local_media == LocalMedia(root="/clips", name="{id}.webm")
    with pytest.raises(ConfigError, match=r"sources\.a: card cc3m has no `local_name`"):
        config(card="pretrain/cc3m", media_root="/pictures")


def test_a_card_that_needs_yt_dlp_must_state_its_terms() -> None:
    values = {"id": "a", "title": "t", "licence": "", "availability": "open", "grains": ["video"], "files": {}}
    with pytest.raises(ConfigError, match="must state the `terms`"):
        parse_config(Card, {**values, "yt_dlp_domains": ["youtube.com"]}, "test")
