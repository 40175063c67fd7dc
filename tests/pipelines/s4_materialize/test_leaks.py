"""Which rows show a test image, by pixels, by id or by time, and what the policy makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageOps

from pipelines.s4_materialize.decontaminate import DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DeduplicateConfig
from tests.support.parts import as_source
from tests.support.stages.curated import BROKEN, Parts, build, clip, curate, decisions_of, encoded, row, scene
from x2vlm.data.duplicates.decontamination import DecontaminationConfig
from x2vlm.data.duplicates.id_files import IdFile, LinkFile
from x2vlm.errors import SourceUnavailable


def held_out() -> dict[str, Parts]:
    return {"tests": [[row("tests", "1", encoded(scene(50))), row("tests", "2", clip(60, 61))], []]}


def leaky_sources() -> dict[str, Parts]:
    """Copies of the two test images in every disguise, a copy of a copy, and rows that show nothing of them."""
    test, copy = scene(50), scene(50, (160, 120))
    return {
        "coco": [[row("coco", "50", encoded(test)), row("coco", "51", encoded(scene(51)))], []],
        "cc3m": [
            [
                row("cc3m", "reencoded", encoded(copy, quality=70)),
                row("cc3m", "mirrored", encoded(ImageOps.mirror(test), quality=90)),
            ],
            [
                row("cc3m", "cropped", encoded(test.crop((0, 0, 183, 137)))),
                row("cc3m", "clip", clip(61, 62)),
                row("cc3m", "other", encoded(scene(53))),
            ],
        ],
        "laion": [[row("laion", "of_mirrored", encoded(ImageOps.mirror(test), quality=40)), row("laion", "x", BROKEN)]],
    }


def leaking(folder: Path, policy: str) -> tuple[set[str], set[str], dict[str, Any]]:
    """Rows that are kept, rows that go as leaks, and the summary of the stage."""
    config = DecontaminateConfig.model_validate(
        {"rule": {"policy": policy}, "readers": ("coco", "", ""), "test_readers": ("",)}
    )
    tests = build(folder / "tests", held_out(), with_variants=True)
    result = curate(build(folder / "in", leaky_sources()), folder, None, config, tests)
    leaked = {name for name, drop in result.drops.items() if drop["rule"] == "leaked"}
    assert result.decontaminated is not None
    return set(result.kept), leaked, dict(result.decontaminated.summary["contamination"])


def test_strict_takes_out_every_copy_in_whatever_disguise(tmp_path: Path) -> None:
    kept, leaked, summary = leaking(tmp_path, "strict")
    assert kept == {"coco:51", "cc3m:other"}
    assert leaked == {
        *("coco:50", "cc3m:reencoded", "cc3m:mirrored", "cc3m:cropped", "cc3m:clip", "laion:of_mirrored"),
    }
    assert summary["sets"] == {
        "tests": {
            "held_out": {
                "pictures": 2,
                "leaked": 2,
                "leaked_by_method": {
                    **{"phash": 2, "phash_cropped": 1, "phash_mirrored": 1, "pixels": 1, "sha256": 1},
                },
                "still_in_training": 0,
            }
        }
    }
    assert (summary["rows_leaking"], summary["rows_dropped"]) == (6, 6)


def test_report_keeps_what_leaks_and_says_so(tmp_path: Path) -> None:
    kept, leaked, summary = leaking(tmp_path, "report")
    assert leaked == set()
    assert len(kept) == 8  # all but the broken one
    assert summary["sets"]["tests"]["held_out"]["still_in_training"] == 2
    assert (summary["rows_leaking"], summary["rows_dropped"]) == (6, 0)


def test_the_reason_of_a_leak_is_the_surest_find_and_says_how_many_others_there_are(tmp_path: Path) -> None:
    leaking(tmp_path, "strict")
    decisions = decisions_of(tmp_path / "decontaminate")
    own = decisions[leaky_sources()["coco"][0][0].sample.key]
    assert own["reason"].startswith("shows tests held_out 1, by pixels, and ")
    assert own["reason"].endswith(" more")
    assert (own["rule"], own["value"], own["threshold"]) == ("leaked", 1.0, None)


def test_a_duplicate_search_compares_nothing_with_a_leak(tmp_path: Path) -> None:
    config = DecontaminateConfig(
        rule=DecontaminationConfig(policy="paper"), readers=("coco", "", ""), tests=(KARPATHY,), test_readers=()
    )
    files = {"tests": (as_source(karpathy_file(tmp_path, 50)),)}
    result = curate(build(tmp_path / "in", leaky_sources()), tmp_path, DeduplicateConfig(), config, files=files)
    # coco:50 goes by its id and keeps nothing: of the other copies one stays.
    assert result.drops["coco:50"]["rule"] == "leaked"
    assert result.drops["coco:50"]["reason"] == "shows karpathy test 50, by id"
    copies = {"cc3m:reencoded", "cc3m:cropped"}
    assert len(copies & set(result.kept)) >= 1
    assert {drop["rule"] for name, drop in result.drops.items() if name in copies} <= {"duplicate"}


KARPATHY = IdFile(name="karpathy", format="karpathy", path="dataset_coco.json")


def karpathy_file(folder: Path, *test_ids: int) -> Path:
    images = [{"cocoid": number, "filename": f"{number}.jpg", "split": "test"} for number in test_ids]
    images.append({"cocoid": 51, "filename": "51.jpg", "split": "restval"})
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_paper_takes_out_by_source_and_id_alone(tmp_path: Path) -> None:
    def sources() -> dict[str, Parts]:
        return {
            "coco": [[row("coco", name, encoded(scene(int(name)))) for name in ("50", "51", "52")]],
            "visual_genome": [[row("visual_genome", name, encoded(scene(int(name)))) for name in ("70", "71")]],
            "flickr": [
                [
                    row(
                        "flickr",
                        "50",
                        encoded(scene(50), quality=60),
                        url="http://x.invalid/COCO_val2014_000000000050.jpg",
                    )
                ]
            ],
        }

    links = tmp_path / "image_data.json"
    links.write_text(
        json.dumps([{"image_id": 70, "coco_id": 52, "flickr_id": None}, {"image_id": 71, "coco_id": None}])
    )
    files = {
        "tests": (
            as_source(karpathy_file(tmp_path, 50)),
            as_source(
                write_json(
                    tmp_path / "refs.json",
                    [
                        {"image_id": 52, "split": "testA"},
                        {"image_id": 51, "split": "train"},
                    ],
                )
            ),
        ),
        "links": (as_source(links),),
    }
    readers = ("coco", "visual_genome", "")
    config = {
        "tests": (KARPATHY, IdFile(name="refcoco", format="refcoco", path="refs.json")),
        "links": (LinkFile(format="visual_genome", path="image_data.json"),),
        "readers": readers,
    }
    corpus = build(tmp_path / "in", sources())
    paper = DecontaminateConfig.model_validate({**config, "rule": {"policy": "paper"}})
    result = curate(corpus, tmp_path / "paper", None, paper, files=files)
    # visual_genome:70 is COCO's 52, by the link table. flickr:50 is COCO's 50 by its address, of a source not listed.
    assert set(result.drops) == {"coco:50", "coco:52", "visual_genome:70"}
    assert result.drops["visual_genome:70"]["reason"] == "shows refcoco testA 52, by id"
    strict = curate(corpus, tmp_path / "strict", None, DecontaminateConfig.model_validate(config), files=files)
    assert set(strict.drops) == {"coco:50", "coco:52", "visual_genome:70", "flickr:50"}
    assert strict.decontaminated is not None
    assert set(strict.decontaminated.summary["contamination"]["sets"]) == {"karpathy", "refcoco"}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_clips_of_a_test_video_go_where_the_times_overlap(tmp_path: Path) -> None:
    url = "https://www.youtube.com/watch?v=abcdefghijk"
    videos = [{"video_id": "video1", "url": url, "start time": 10.0, "end time": 20.0, "split": "test"}]
    clips = [
        row("web", "before", clip(1, 2), url=url, span=(0.0, 10.0)),
        row("web", "during", clip(3, 4), url="https://youtu.be/abcdefghijk", span=(15.0, 25.0)),
        row("web", "other", clip(5, 6), url="https://youtu.be/ABCDEFGHIJK", span=(15.0, 25.0)),
    ]
    config = DecontaminateConfig(tests=(IdFile(name="msrvtt", format="msrvtt", path="m.json"),), readers=("",))
    files = {"tests": (as_source(write_json(tmp_path / "m.json", {"videos": videos})),)}
    result = curate(build(tmp_path / "in", {"web": [clips]}), tmp_path, None, config, files=files)
    assert set(result.drops) == {"web:during"}
    assert result.drops["web:during"]["value"] == pytest.approx(0.5)  # five of the test clip's ten seconds


def test_a_file_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    corpus = build(tmp_path / "in", {"coco": [[row("coco", "1", encoded(scene(1)))]]})
    config = DecontaminateConfig(tests=(KARPATHY,), readers=("coco",))
    files = {"tests": (as_source(write_json(tmp_path / "dataset_coco.json", {"annotations": []})),)}
    with pytest.raises(
        SourceUnavailable, match=r"dataset_coco\.json: not a file of format karpathy \(KeyError: 'images'\)"
    ):
        curate(corpus, tmp_path, None, config, files=files)
