"""Leaks of test images: found by the method that should, and what each policy does about them."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from x2vlm.data.duplicates.decontamination import (
    DecontaminationConfig,
    Evaluation,
    Training,
    decide,
    find_leaks,
    search,
    summarize,
)
from x2vlm.data.duplicates.duplicates import CLUSTER_SCHEMA
from x2vlm.data.duplicates.evaluation_ids import EVALUATION_ID_SCHEMA
from x2vlm.data.duplicates.identities import ID_SCHEMA, LINK_SCHEMA, Identities, identify
from x2vlm.data.duplicates.leaks import EVALUATION_SCHEMA, LEAK_SCHEMA, TRAIN_SCHEMA
from x2vlm.data.media.phash import THUMBNAIL_BYTES

Row = dict[str, Any]
NO_LINKS = identify([])


def look(number: int) -> Row:
    """What image number `number` looks like; images have nothing in common."""
    draws = np.random.default_rng(number)
    value = int(draws.integers(0, 2**64, dtype=np.uint64))
    thumbnail = draws.integers(0, 256, THUMBNAIL_BYTES, dtype=np.uint8).tobytes()
    return {"phash": value, "phash_flat": False, "thumbnail": thumbnail, "frame_phashes": [value]}


def train(key: str, number: int, source: str = "cc3m", **changes: Any) -> Row:
    own = {"key": key, "source": source, "kind": "image", "sha256": f"b-{key}", "pixel_sha256": f"p-{key}"}
    return own | look(number) | changes


def shown(eval_id: str, number: int, **changes: Any) -> Row:
    own = {"eval_set": "vqa2", "split": "test", "eval_id": eval_id, "kind": "image", "variant": ""}
    return own | {"sha256": f"b-{eval_id}", "pixel_sha256": f"p-{eval_id}"} | look(number) | changes


def id_row(key: str, kind: str, value: str, source: str = "cc3m", start: Any = None, end: Any = None) -> Row:
    return {
        "key": key,
        "source": source,
        "id_kind": kind,
        "id_value": value,
        "start_seconds": start,
        "end_seconds": end,
    }


def named(eval_id: str, kind: str, value: str, start: Any = None, end: Any = None, **changes: Any) -> Row:
    own = {"eval_set": "vqa2", "split": "test", "eval_id": eval_id, "id_kind": kind, "id_value": value}
    return own | {"start_seconds": start, "end_seconds": end} | changes


def _embedded(schema: pa.Schema, rows: list[Row]) -> pa.Schema:
    has_embedding = any("embedding" in row for row in rows)
    return schema.append(pa.field("embedding", pa.list_(pa.float16()))) if has_embedding else schema


def evaluation(images: list[Row] = [], ids: list[Row] = []) -> Evaluation:  # noqa: B006
    table = pa.Table.from_pylist(images, schema=_embedded(EVALUATION_SCHEMA, images))
    return Evaluation(table, pa.Table.from_pylist(ids, schema=EVALUATION_ID_SCHEMA))


def training(rows: list[Row], ids: list[Row] = [], clusters: list[Row] = []) -> Training:  # noqa: B006
    table = pa.Table.from_pylist(rows, schema=_embedded(TRAIN_SCHEMA, rows))
    known = pa.Table.from_pylist(ids, schema=ID_SCHEMA)
    return Training(table, known, pa.Table.from_pylist(clusters, schema=CLUSTER_SCHEMA))


def leaks(ours: Training, theirs: Evaluation, identities: Identities = NO_LINKS, **config: Any) -> list[Row]:
    table = find_leaks(ours, theirs, identities, DecontaminationConfig(**config))
    assert table.schema == LEAK_SCHEMA
    found: list[Row] = table.to_pylist()
    return found


def brief(found: list[Row]) -> set[tuple[str, str, str]]:
    return {(one["eval_id"], one["key"], one["method"]) for one in found}


def test_nothing_leaks_from_nothing() -> None:
    assert leaks(training([]), evaluation()) == []
    assert leaks(training([train("a", 1)]), evaluation()) == []
    assert leaks(training([train("a", 1)]), evaluation([shown("t", 2)])) == []
    assert leaks(training([]), evaluation([shown("t", 2)])) == []


def test_each_method_finds_its_own() -> None:
    value = look(1)["phash"]
    unlike = look(9)["thumbnail"]
    rows = [
        train("bytes", 2, sha256="b-t"),
        train("pixels", 3, pixel_sha256="p-t"),
        train("near", 1, phash=value ^ 0b111111),
        train("far", 1, phash=value ^ 0b1111111),
        train("unlike", 1, thumbnail=unlike),
        train("flat", 1, phash_flat=True),
        train("clip", 1, kind="video"),
    ]
    found = leaks(training(rows), evaluation([shown("t", 1)]))
    assert brief(found) == {("t", "bytes", "sha256"), ("t", "pixels", "pixels"), ("t", "near", "phash")}
    scores = {one["method"]: one["score"] for one in found}
    assert scores == {"sha256": 1.0, "pixels": 1.0, "phash": 1 - 6 / 64}
    assert {one["action"] for one in found} == {"drop"}
    assert leaks(training(rows[2:3]), evaluation([shown("t", 1)]), radius=None) == []


def test_variants_of_test_images_are_named() -> None:
    images = [
        shown("t", 1),
        shown("t", 2, variant="mirrored", sha256="same", pixel_sha256="same"),
        shown("t", 3, variant="cropped"),
    ]
    rows = [train("m", 2), train("c", 3), train("s", 4, sha256="same", pixel_sha256="same")]
    # A variant stands for pixels that nobody has hashed as a file: its sha256 is the test image's, if anything.
    assert brief(leaks(training(rows), evaluation(images))) == {
        ("t", "m", "phash_mirrored"),
        ("t", "c", "phash_cropped"),
    }


def test_every_pair_of_equal_hashes_is_reported_once() -> None:
    images = [shown(f"t{number}", 1) for number in range(3)]
    rows = [train(f"k{number}", 1) for number in range(4)]
    found = leaks(training(rows), evaluation([*images, shown("x", 7)]))
    assert len(found) == 12
    assert len(brief(found)) == 12


def test_ids_join_through_links_whatever_the_source() -> None:
    """A COCO test image is found in Visual Genome by coco_id and in a web source by its Flickr address."""
    link = [("visual_genome", "7", "coco", "42"), ("visual_genome", "7", "flickr", "99")]
    links = pa.Table.from_pylist([dict(zip(LINK_SCHEMA.names, one, strict=True)) for one in link], schema=LINK_SCHEMA)
    ids = [
        id_row("c", "coco", "42", "coco"),
        id_row("v", "visual_genome", "7", "visual_genome"),
        id_row("f", "flickr", "99", "sbu"),
        id_row("f", "url", "static.flickr.com/1/99_a.jpg", "sbu"),
        id_row("other", "coco", "43", "coco"),
        id_row("another", "flickr", "42", "sbu"),  # the same number of another kind
    ]
    rows = [
        train(key, number, source)
        for number, (key, source) in enumerate((("c", "coco"), ("v", "visual_genome"), ("f", "sbu")))
    ]
    found = leaks(training(rows, ids), evaluation(ids=[named("42", "coco", "42")]), identify([links]))
    assert brief(found) == {("42", "c", "id"), ("42", "v", "id"), ("42", "f", "id")}
    assert {one["source"] for one in found} == {"coco", "visual_genome", "sbu"}
    unlinked = leaks(training(rows, ids), evaluation(ids=[named("42", "coco", "42")]))
    assert brief(unlinked) == {("42", "c", "id")}


@pytest.mark.parametrize(
    ("ours", "theirs", "fraction"),
    [
        ((0.0, 10.0), (5.0, 15.0), 0.5),
        ((5.0, 15.0), (5.0, 15.0), 1.0),
        ((15.0, 20.0), (5.0, 15.0), None),  # touching is not overlapping
        ((None, None), (5.0, 15.0), 1.0),  # the whole video
        ((None, 7.5), (5.0, 15.0), 0.25),
        ((100.0, 200.0), (None, None), 1.0),  # the whole video is the test
        ((20.0, None), (5.0, 15.0), None),
    ],
)
def test_videos_leak_where_their_times_overlap(ours: Any, theirs: Any, fraction: float | None) -> None:
    rows = [train("k", 1, "howto100m", kind="video")]
    known = training(rows, [id_row("k", "youtube", "9lZi22qLlEo", "howto100m", *ours)])
    found = leaks(known, evaluation(ids=[named("video0", "youtube", "9lZi22qLlEo", *theirs)]))
    assert [(one["method"], one["score"]) for one in found] == ([] if fraction is None else [("id", fraction)])


def test_clips_leak_by_half_of_the_test_clips_frames() -> None:
    frames = [int(one) for one in np.random.default_rng(3).integers(0, 2**64, 8, dtype=np.uint64)]
    test = shown("t", 1, kind="video", frame_phashes=[frames[0], None, frames[1], frames[2], frames[3], None])
    rows = [
        train("two", 2, kind="video", frame_phashes=[frames[7], frames[3] ^ 5, frames[1], frames[1] ^ 1]),
        train("one", 3, kind="video", frame_phashes=[frames[1], frames[6], None]),
        train("dark", 4, kind="video", frame_phashes=[None, None]),
        train("still", 5, kind="image", frame_phashes=[frames[0]]),
    ]
    found = leaks(training(rows), evaluation([test]))
    assert [(one["key"], one["method"], one["score"]) for one in found] == [("two", "phash", 0.5)]


def test_embeddings() -> None:
    rows = [
        train("near", 2, embedding=[1.0, 0.1]),
        train("far", 3, embedding=[0.1, 1.0]),
        train("none", 4, embedding=None),
        train("clip", 5, kind="video", embedding=[1.0, 0.0]),
    ]
    test = evaluation([shown("t", 1, embedding=[1.0, 0.0]), shown("u", 6, embedding=None)])
    found = leaks(training(rows), test, min_cosine=0.9)
    assert brief(found) == {("t", "near", "embedding")}
    assert found[0]["score"] == pytest.approx(1 / np.sqrt(1.01), abs=1e-3)
    assert leaks(training(rows), test) == []


def test_training_splits_are_no_leaks() -> None:
    test = evaluation([shown("t", 1, split="restval")], [named("t", "coco", "1", split="train")])
    known = training([train("a", 1)], [id_row("a", "coco", "1")])
    assert leaks(known, test) == []
    assert brief(leaks(known, test, ignored_splits=())) == {("t", "a", "phash"), ("t", "a", "id")}


@pytest.fixture
def spreading() -> tuple[Training, Evaluation]:
    """Only `a` shows the test image by its id. What else shows it is known by steps from row to row."""
    rows = [
        train("a", 1, "coco"),
        train("b", 2, "refcoco", sha256="b-a", pixel_sha256="p-a"),
        train("c", 3, "laion", pixel_sha256="p-a"),
        train("d", 4, "sbu"),  # a smaller copy of c
        train("e", 5, "gqa"),  # the image of d by id
        train("f", 6, "cc3m"),
        train("v", 7, "howto100m", kind="video"),
        train("w", 8, "howto100m", kind="video", sha256="b-e"),
    ]
    clusters = [
        {"key": "c", "source": "laion", "keeper": "c", "method": "keeper", "distance": 0.0, "action": "keep"},
        {"key": "d", "source": "sbu", "keeper": "c", "method": "phash", "distance": 2.0, "action": "drop"},
    ]
    ids = [
        id_row("a", "coco", "1", "coco"),
        id_row("d", "flickr", "9"),
        id_row("e", "flickr", "9"),
        id_row("f", "coco", "2"),
    ]
    ids += [id_row("e", "youtube", "x"), id_row("v", "youtube", "x", start=1.0, end=2.0)]
    return training(rows, ids, clusters), evaluation(ids=[named("t", "coco", "1")])


def test_strict_takes_the_image_out_of_all_sources(spreading: tuple[Training, Evaluation]) -> None:
    found = {one["key"]: (one["method"], one["via"], one["source"]) for one in leaks(*spreading)}
    assert found == {
        "a": ("id", "", "coco"),
        "b": ("same_media", "a", "refcoco"),
        "c": ("same_media", "a", "laion"),
        "d": ("same_cluster", "c", "sbu"),
        "e": ("same_id", "d", "gqa"),
        "w": ("same_media", "e", "howto100m"),
    }
    assert {(one["eval_id"], one["action"]) for one in leaks(*spreading)} == {("t", "drop")}


def test_parts_searched_apart_and_decided_together_give_the_same(spreading: tuple[Training, Evaluation]) -> None:
    whole, theirs = spreading
    config = DecontaminationConfig()
    found = [search(Training(whole.rows.slice(at, 1), _of(whole, at)), theirs, NO_LINKS, config) for at in range(8)]
    narrow = whole.rows.select(["key", "source", "kind", "sha256", "pixel_sha256"])
    together = decide(pa.concat_tables(found), Training(narrow, whole.ids, whole.clusters), NO_LINKS, config)
    assert together.num_rows == 6
    assert together == find_leaks(whole, theirs, NO_LINKS, config)


def _of(whole: Training, at: int) -> pa.Table:
    return whole.ids.filter(pc.equal(whole.ids["key"], whole.rows["key"][at]))


def test_report_and_paper_spread_nothing(spreading: tuple[Training, Evaluation]) -> None:
    assert [(one["key"], one["action"]) for one in leaks(*spreading, policy="report")] == [("a", "report")]
    assert [(one["key"], one["action"]) for one in leaks(*spreading, policy="paper")] == [("a", "drop")]


def test_paper_drops_from_coco_and_visual_genome_by_id_only() -> None:
    ids = [
        id_row(key, "coco", "1", source) for key, source in (("a", "coco"), ("b", "visual_genome"), ("c", "refcoco"))
    ]
    rows = [train("a", 1, "coco"), train("b", 2, "visual_genome"), train("c", 3, "refcoco"), train("d", 4, "coco")]
    test = evaluation([shown("t", 4)], [named("t", "coco", "1")])
    found = leaks(training(rows, ids), test, policy="paper")
    actions = {(one["key"], one["method"]): one["action"] for one in found}
    assert actions == {
        ("a", "id"): "drop",
        ("b", "id"): "drop",
        ("c", "id"): "report",
        ("d", "phash"): "report",
    }


def test_the_order_of_rows_says_nothing() -> None:
    rows = [train(f"k{number}", number % 4, f"s{number % 3}") for number in range(12)]
    ids = [id_row(f"k{number}", "coco", str(number % 5)) for number in range(12)]
    tests = [shown(f"t{number}", number) for number in range(6)]
    names = [named(f"t{number}", "coco", str(number)) for number in range(6)]
    one = leaks(training(rows, ids), evaluation(tests, names))
    assert one == leaks(training(rows[::-1], ids[::-1]), evaluation(tests[::-1], names[::-1]))
    assert len(one) > 12


def test_the_summary_counts_images_and_is_json() -> None:
    tests = [shown("t1", 1), shown("t1", 5, variant="mirrored"), shown("t2", 2)]
    names = [named("t1", "coco", "1"), named("t3", "coco", "3"), named("t4", "coco", "4", split="train")]
    theirs = evaluation(tests, names)
    known = training(
        [train("a", 1, "coco"), train("b", 9, "laion"), train("c", 1, "laion")], [id_row("a", "coco", "1", "coco")]
    )
    config = DecontaminationConfig(policy="paper")
    summary = summarize(find_leaks(known, theirs, NO_LINKS, config), theirs, config)
    assert summary == {
        "policy": "paper",
        "rows_dropped": 1,
        "rows_leaking": 2,
        "sets": {
            "vqa2": {
                "test": {
                    "pictures": 3,
                    "leaked": 1,
                    "leaked_by_method": {"id": 1, "phash": 1},
                    "still_in_training": 1,
                }
            }
        },
    }
    assert json.loads(json.dumps(summary)) == summary
    only_coco = training([train("a", 1, "coco")], [id_row("a", "coco", "1", "coco")])
    gone = find_leaks(only_coco, theirs, NO_LINKS, config)
    assert {one["action"] for one in gone.to_pylist()} == {"drop"}  # the row that goes by id has gone for its hash too
    assert summarize(gone, theirs, config)["sets"]["vqa2"]["test"]["still_in_training"] == 0
    strict = DecontaminationConfig()
    clean = summarize(find_leaks(known, theirs, NO_LINKS, strict), theirs, strict)
    assert clean["sets"]["vqa2"]["test"]["still_in_training"] == 0
    assert clean["rows_dropped"] == 2
