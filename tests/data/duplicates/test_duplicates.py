"""Clusters of duplicates: who is found, who stays, whatever the order of the rows."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from x2vlm.data.duplicates.duplicates import (
    CLUSTER_SCHEMA,
    ROW_SCHEMA,
    DuplicateConfig,
    count_duplicates,
    find_duplicates,
    image_rows,
)
from x2vlm.data.duplicates.leaks import TRAIN_SCHEMA
from x2vlm.data.media.phash import FINGERPRINT_FIELDS, THUMBNAIL_BYTES, fingerprint, thumbnail_correlation
from x2vlm.errors import CorruptArtifact
from x2vlm.samples import Caption, Media, Sample, sample_table

Row = dict[str, Any]


def row(key: str, look: int = 0, **changes: Any) -> Row:
    """A row that shows look number `look`; looks have nothing in common."""
    draws = np.random.default_rng(look)
    values: Row = {
        "key": key,
        "source": "cc3m",
        "kind": "image",
        "sha256": f"bytes of {key}",
        "width": 640,
        "height": 480,
        "num_captions": 1,
        "pixel_sha256": f"pixels of {key}",
        "phash": int(draws.integers(0, 2**64, dtype=np.uint64)),
        "phash_flat": False,
        "thumbnail": draws.integers(0, 256, THUMBNAIL_BYTES, dtype=np.uint8).tobytes(),
    }
    values |= changes
    return {"frame_phashes": [values["phash"]]} | values


def clusters(rows: list[Row], **config: Any) -> dict[str, tuple[str, str, float, str]]:
    """Key -> (keeper, method, distance, action)."""
    table = find_duplicates(pa.Table.from_pylist(rows, schema=_schema(rows)), DuplicateConfig(**config))
    assert table.schema == CLUSTER_SCHEMA
    return {one["key"]: (one["keeper"], one["method"], one["distance"], one["action"]) for one in table.to_pylist()}


def _schema(rows: list[Row]) -> pa.Schema:
    has_embedding = any("embedding" in one for one in rows)
    return ROW_SCHEMA.append(pa.field("embedding", pa.list_(pa.float16()))) if has_embedding else ROW_SCHEMA


def test_nothing_is_a_duplicate_of_nothing() -> None:
    assert clusters([]) == {}
    assert clusters([row("a", 1), row("b", 2)]) == {}


def test_equal_bytes_equal_pixels_and_near_hashes_are_named_as_such() -> None:
    base = row("a", 1, width=1000)
    same_bytes = base | {"key": "b", "width": 900}
    same_pixels = base | {"key": "c", "sha256": "other bytes", "width": 800}
    near = row("d", 1, phash=base["phash"] ^ 0b111111)
    far = row("e", 1, phash=base["phash"] ^ (0b1111111 << 20))
    assert clusters([far, near, same_pixels, same_bytes, base]) == {
        "a": ("a", "keeper", 0.0, "keep"),
        "b": ("a", "sha256", 0.0, "drop"),
        "c": ("a", "pixels", 0.0, "drop"),
        "d": ("a", "phash", 6.0, "drop"),
    }


def test_no_chain_takes_a_row_that_its_keeper_does_not_match() -> None:
    """a - b - c - d, four bits apart each: a takes b; c is eight bits from a, so it stays and takes d."""
    start = row("a", 1)["phash"]
    chain = [row(key, 1, phash=start ^ mask) for key, mask in (("a", 0), ("b", 0xF), ("c", 0xFF), ("d", 0xFFF))]
    assert clusters(chain) == {
        "a": ("a", "keeper", 0.0, "keep"),
        "b": ("a", "phash", 4.0, "drop"),
        "c": ("c", "keeper", 0.0, "keep"),
        "d": ("c", "phash", 4.0, "drop"),
    }


def test_equal_hashes_of_unlike_images_do_not_match() -> None:
    other = row("b", 2, phash=row("a", 1)["phash"])
    assert clusters([row("a", 1), other]) == {}
    assert clusters([row("a", 1), other], min_correlation=-1)["b"] == ("a", "phash", 0.0, "drop")


def test_flat_images_match_by_bytes_and_pixels_only() -> None:
    flat = row("a", 1, phash_flat=True)
    near = flat | {"key": "b", "sha256": "s", "pixel_sha256": "p"}
    same = flat | {"key": "c"}
    assert set(clusters([flat, near, same])) == {"a", "c"}


def test_images_and_clips_never_match() -> None:
    image = row("a", 1)
    assert clusters([image, image | {"key": "b", "kind": "video"}]) == {}


def test_clips_match_frame_by_frame() -> None:
    hashes = [int(one) for one in np.random.default_rng(5).integers(0, 2**64, 3, dtype=np.uint64)]
    one = row("a", 1, kind="video", phash=hashes[1], frame_phashes=hashes)
    near = row("b", 1, kind="video", phash=hashes[1] ^ 1, frame_phashes=[hashes[0] ^ 7, hashes[1] ^ 1, hashes[2]])
    other_end = row("c", 1, kind="video", phash=hashes[1], frame_phashes=[*hashes[:2], hashes[2] ^ (2**40 - 1)])
    shorter = row("d", 1, kind="video", phash=hashes[1], frame_phashes=hashes[:2])
    fades = row("e", 1, kind="video", phash=hashes[1], frame_phashes=[*hashes[:2], None])
    assert set(clusters([one, near, other_end, shorter, fades])) == {"a", "b"}
    dark = [
        one | {"key": key, "pixel_sha256": key, "sha256": key, "frame_phashes": [None, hashes[1], None]} for key in "fg"
    ]
    assert set(clusters(dark)) == {"f", "g"}


def test_rows_without_media_or_pixels() -> None:
    nothing = row("a", 1, sha256=None, pixel_sha256=None, phash=None, phash_flat=None, thumbnail=None)
    broken = nothing | {"key": "b", "sha256": "s"}
    assert clusters([nothing, nothing | {"key": "c"}, broken]) == {}
    assert clusters([broken, broken | {"key": "d"}])["d"] == ("b", "sha256", 0.0, "drop")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"source": "sbu", "width": 10}, {"source": "laion"}),  # named in the priority list
        ({"source": "laion", "width": 10}, {"source": "zzz"}),  # unnamed sources by name
        ({"width": 641}, {"num_captions": 5}),  # the larger image
        ({"num_captions": 2}, {"num_captions": 1}),
        ({"key": "a"}, {"key": "b"}),
    ],
)
def test_the_keeper_is_the_better_row(better: Row, worse: Row) -> None:
    one = row("k1", 1, pixel_sha256="p") | better
    two = row("k2", 1, pixel_sha256="p") | worse
    for rows in ([one, two], [two, one]):
        found = clusters(rows, priority=("sbu",))
        assert found[two["key"]] == (one["key"], "pixels", 0.0, "drop")


def test_sources_that_describe_the_same_images_on_purpose_share_them() -> None:
    base = row("a", 1, source="coco")
    rows = [
        base,
        base | {"key": "b", "source": "refcoco"},
        base | {"key": "c", "source": "refcoco"},
        base | {"key": "d", "source": "laion_en"},
        base | {"key": "e", "source": "coco", "width": 10},
    ]
    actions = {key: found[3] for key, found in clusters(rows).items()}
    assert actions == {"a": "keep", "b": "share", "c": "drop", "d": "drop", "e": "drop"}
    assert {found[3] for found in clusters(rows, share=()).values()} == {"keep", "drop"}


def test_embeddings_find_what_hashes_cannot() -> None:
    def turned(degrees: float) -> list[np.float16]:
        return [np.float16(np.cos(np.radians(degrees))), np.float16(np.sin(np.radians(degrees)))]

    rows = [
        row(key, number, embedding=turned(angle))
        for number, (key, angle) in enumerate((("a", 0), ("b", 10), ("c", 80)))
    ]
    rows.append(row("d", 9, embedding=None))
    found = clusters(rows, min_cosine=0.95)
    assert set(found) == {"a", "b"}
    assert found["b"][:2] == ("a", "embedding")
    assert found["b"][2] == pytest.approx(1 - np.cos(np.radians(10)), abs=1e-3)
    assert clusters(rows, min_cosine=0.99) == {}


def test_refuses_tables_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="same key"):
        clusters([row("a", 1), row("a", 2)])
    with pytest.raises(CorruptArtifact, match="2 different fingerprints"):
        clusters([row("a", 1, sha256="s"), row("b", 2, sha256="s")])


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Rows of few looks and hashes at all distances, with ties in everything that orders them."""
    made = []
    for number in range(draw(st.integers(2, 14))):
        look = draw(st.integers(0, 2))
        base = row(f"k{number}", look)
        flips = sum(1 << bit for bit in draw(st.sets(st.integers(0, 20), max_size=9)))
        drawn = {
            "source": draw(st.sampled_from(("coco", "refcoco", "cc3m", "sbu"))),
            "width": draw(st.sampled_from((320, 640))),
            "num_captions": draw(st.integers(0, 1)),
            "phash": base["phash"] ^ flips,
            "phash_flat": draw(st.integers(0, 9)) == 0,
        }
        base |= drawn | {"frame_phashes": [base["phash"] ^ flips]}
        if made and draw(st.integers(0, 3)) == 0:
            twin = draw(st.sampled_from(made))
            copied = ("sha256", "pixel_sha256", "phash", "phash_flat", "thumbnail", "frame_phashes")
            base |= {name: twin[name] for name in copied}
        made.append(base)
    return made


def naive_keepers(rows: list[Row], priority: tuple[str, ...]) -> dict[str, str]:
    """Key -> key of the row that stays for it, by comparing every row with every keeper."""

    def preference(one: Row) -> tuple[Any, ...]:
        place = priority.index(one["source"]) if one["source"] in priority else len(priority)
        return (place, one["source"], -one["width"] * one["height"], -one["num_captions"], one["key"])

    keepers: dict[str, str] = {}
    best = sorted(rows, key=preference)
    for one in best:
        # The image's best row decides for all rows of that image.
        first = next(other for other in best if other["pixel_sha256"] == one["pixel_sha256"])
        if first["key"] in keepers:
            keepers[one["key"]] = keepers[first["key"]]
            continue
        taken = [key for key, own in keepers.items() if key == own and _match(first, _of(rows, key))]
        keepers[one["key"]] = taken[0] if taken else first["key"]
    return keepers


def _of(rows: list[Row], key: str) -> Row:
    return next(one for one in rows if one["key"] == key)


def _match(left: Row, right: Row) -> bool:
    thumbnails = (np.frombuffer(one["thumbnail"], np.uint8)[None] for one in (left, right))
    near = (left["phash"] ^ right["phash"]).bit_count() <= 6 and thumbnail_correlation(*thumbnails)[0] >= 0.93
    return bool(near and not left["phash_flat"] and not right["phash_flat"])


@settings(max_examples=100, deadline=None)
@given(rows=tables(), shuffle=st.randoms(use_true_random=False))
def test_agrees_with_comparing_everything_whatever_the_order(rows: list[Row], shuffle: Any) -> None:
    found = clusters(rows)
    expected = naive_keepers(rows, DuplicateConfig().priority)
    sizes = {keeper: list(expected.values()).count(keeper) for keeper in expected.values()}
    assert {key: one[0] for key, one in found.items()} == {k: v for k, v in expected.items() if sizes[v] > 1}
    for key, (keeper, method, distance, _) in found.items():
        if method == "phash":
            assert distance == (_of(rows, key)["phash"] ^ _of(rows, keeper)["phash"]).bit_count() <= 6
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    assert clusters(shuffled) == found


def test_a_thousand_copies_of_one_image_are_one_cluster() -> None:
    """A popular image must not cost the square of its copies in memory: its copies share few hashes."""
    base = row("k0000", 1)
    rows = [base | {"key": f"k{n:04}", "sha256": f"s{n}", "pixel_sha256": f"p{n}"} for n in range(1000)]
    found = clusters(rows)
    assert len(found) == 1000
    assert {one[0] for one in found.values()} == {"k0000"}


def test_counts() -> None:
    base = row("a", 1)
    rows = [base, base | {"key": "b"}, row("c", 1, phash=base["phash"] ^ 1, source="sbu")]
    table = find_duplicates(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), DuplicateConfig())
    assert count_duplicates(table) == {
        "clusters": 1,
        "actions": {"drop": 2, "keep": 1},
        "dropped_by_method": {"phash": 1, "sha256": 1},
        "dropped_by_source": {"cc3m": 1, "sbu": 1},
    }


def test_samples_and_fingerprints_are_rows() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    media = Media("image", "bytes", 99, 640, 480, "jpeg")
    common = {"source": "cc3m", "split": "train", "kind": "image", "url": "u"}
    samples = [
        Sample(key="a", source_row="1", media=media, captions=(Caption("x"), Caption("y")), **common),  # type: ignore[arg-type]
        Sample(key="b", source_row="2", media=media, **common),  # type: ignore[arg-type]
        Sample(key="c", source_row="3", **common),  # type: ignore[arg-type]
    ]
    own = dataclasses.asdict(fingerprint([image]))
    prints = [{"key": "a", **own}, {"key": "b", **own}, {"key": "c"}]
    schema = pa.schema(
        [pa.field("key", pa.string()), *FINGERPRINT_FIELDS, pa.field("embedding", pa.list_(pa.float16()))]
    )
    table = image_rows(sample_table(samples), pa.Table.from_pylist(prints, schema=schema))
    assert table.schema.names == [*ROW_SCHEMA.names, "embedding"]
    assert table["num_captions"].to_pylist() == [2, 0, 0]
    assert table["width"].to_pylist() == [640, 640, None]
    found = find_duplicates(table, DuplicateConfig()).to_pylist()
    assert [(one["key"], one["method"]) for one in found] == [("a", "keeper"), ("b", "sha256")]
    assert set(TRAIN_SCHEMA.names) <= set(table.column_names)
    with pytest.raises(CorruptArtifact, match="rerun score"):
        image_rows(sample_table(samples[::-1]), pa.Table.from_pylist(prints, schema=schema))
