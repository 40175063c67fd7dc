"""Duplicates found in buckets are those found in one table, byte for byte."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.corpora.random_rows import random_rows
from x2vlm.data.duplicates.compact_rows import compact, expand, shared_values
from x2vlm.data.duplicates.components import (
    NO_LINKS,
    Links,
    Looks,
    busy_rows,
    component_labels,
    near_links,
    shared_links,
)
from x2vlm.data.duplicates.duplicates import CLUSTER_SCHEMA, ROW_SCHEMA, DuplicateConfig, find_duplicates
from x2vlm.data.duplicates.hamming import LONG_RUN, near_pairs, range_of, searches
from x2vlm.data.duplicates.sketches import sketch_distance, sketch_limit, sketches
from x2vlm.data.media.phash import THUMBNAIL_BYTES, thumbnail_correlation
from x2vlm.errors import CorruptArtifact


def found_in_buckets(rows: pa.Table, config: DuplicateConfig, num_buckets: int, num_ranges: int) -> pa.Table:
    """Clusters found as workers find them, each of which has one bucket or one share of the hashes."""
    half = rows.num_rows // 2
    parts = [compact(piece) for piece in (rows.slice(0, half), rows.slice(half))]
    links = [NO_LINKS]
    for kind in (0, 1):
        looks = [found[kind] for _, found in parts if kind in found]
        if looks and config.radius is not None:
            links += hash_links(Looks(*map(np.concatenate, zip(*looks, strict=True))), config, num_ranges)
    for name in ("key", "sha256"):
        values, nodes = (
            np.concatenate(column)
            for column in zip(*((shared_values(one, name), one["node"].to_numpy()) for one, _ in parts), strict=True)
        )
        links.append(shared_links(values, nodes))
    labelled, label = component_labels(Links(*map(np.concatenate, zip(*links, strict=True))))
    homes: list[list[pa.Table]] = [[] for _ in range(num_buckets)]
    for bucket in range(num_buckets):
        own = pa.concat_tables(one.filter(in_bucket(one["node"].to_numpy(), bucket, num_buckets)) for one, _ in parts)
        busy, component = busy_rows(own["node"].to_numpy(), labelled, label)
        for home in range(num_buckets):
            homes[home].append(own.take(pa.array(busy)).filter(in_bucket(component, home, num_buckets)))
    tables = [find_duplicates(expand(pa.concat_tables(one)), config) for one in homes]
    return pa.concat_tables([CLUSTER_SCHEMA.empty_table(), *tables]).sort_by(
        [("keeper", "ascending"), ("key", "ascending")]
    )


def in_bucket(nodes: Any, bucket: int, num_buckets: int) -> pa.Array:
    return pa.array(nodes % np.uint64(num_buckets) == bucket, pa.bool_())


def hash_links(looks: Looks, config: DuplicateConfig, num_ranges: int) -> Iterator[Links]:
    assert config.radius is not None
    for number, (block, tables) in enumerate(searches(config.radius, len(looks.phash)).items()):
        place = range_of(looks.phash, block, num_ranges)
        for one in range(num_ranges):
            own = Looks(*(column[place == one] for column in looks))
            yield near_links(own, tables, config.radius, config.min_correlation, equal=number == 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from((0, 1, 3, 40)),
    radius=st.sampled_from((None, 0, 3, 6)),
    min_correlation=st.sampled_from((-1.0, 0.5, 0.93)),
    buckets=st.sampled_from((1, 2, 7)),
)
def test_buckets_find_what_one_table_finds(
    seed: int, size: int, radius: int | None, min_correlation: float, buckets: int
) -> None:
    rows = random_rows(seed, size)
    config = DuplicateConfig(radius=radius, min_correlation=min_correlation)
    assert found_in_buckets(rows, config, buckets, num_ranges=buckets).equals(find_duplicates(rows, config))


def test_rows_of_one_media_that_was_decoded_in_two_ways_come_together_and_are_refused() -> None:
    rows = random_rows(3, 30).filter(pc.is_valid(random_rows(3, 30)["pixel_sha256"]))
    torn = rows.slice(0, 1).set_column(7, "pixel_sha256", pa.array(["ab" * 32]))
    torn = torn.set_column(8, "phash", pa.array([5], pa.uint64())).set_column(0, "key", pa.array(["cd" * 16]))
    with pytest.raises(CorruptArtifact, match="has 2 different fingerprints"):
        found_in_buckets(pa.concat_tables([rows, torn.cast(ROW_SCHEMA)]), DuplicateConfig(), 4, 2)


def test_compact_rows_lose_nothing_and_want_digits() -> None:
    rows = random_rows(5, 40)
    whole = rows.filter(pc.is_valid(rows["sha256"]))
    assert expand(compact(rows)[0]).equals(whole)
    assert expand(compact(rows.slice(7, 9))[0]).equals(rows.slice(7, 9).filter(pc.is_valid(rows.slice(7, 9)["sha256"])))
    wrong = rows.set_column(0, "key", pa.array(["G" * 32] * rows.num_rows))
    with pytest.raises(CorruptArtifact, match=r"key 'GGG.*' is not 32 hexadecimal digits"):
        compact(wrong)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000), noise=st.sampled_from((1, 10, 40)), tau=st.sampled_from((-0.5, 0.3, 0.8, 0.93, 0.99))
)
def test_thumbnails_that_correlate_have_near_sketches(seed: int, noise: int, tau: float) -> None:
    draws = np.random.default_rng(seed)
    smooth = np.repeat(draws.integers(0, 256, (300, THUMBNAIL_BYTES // 12)), 12, axis=1)
    thumbnails = np.concatenate([smooth, np.full((1, THUMBNAIL_BYTES), 7), [[8] + [7] * (THUMBNAIL_BYTES - 1)]])
    thumbnails = thumbnails.astype(np.uint8)
    others = np.clip(thumbnails + draws.normal(0, noise, thumbnails.shape), 0, 255).astype(np.uint8)
    near = sketch_distance(sketches(thumbnails), sketches(others)) <= sketch_limit(tau)
    assert near[thumbnail_correlation(thumbnails, others) >= tau].all()
    # A function of the bytes alone, whatever the others beside them.
    assert (sketches(thumbnails[5:9]) == sketches(thumbnails)[5:9]).all()


def test_sketches_tell_unrelated_thumbnails_apart() -> None:
    draws = np.random.default_rng(1)
    blotches = draws.integers(0, 256, (2, 2000, 2, 2, 3)).repeat(4, axis=2).repeat(4, axis=3).astype(np.uint8)
    left, right = blotches.reshape(2, 2000, THUMBNAIL_BYTES)
    unlike = thumbnail_correlation(left, right) < 0.8
    assert (sketch_distance(sketches(left), sketches(right))[unlike] > sketch_limit(0.93)).mean() > 0.9


def test_hashes_that_clump_are_cut_further_and_nothing_is_missed() -> None:
    """Hashes that agree on more than half of their bits: one run in many tables."""
    draws = np.random.default_rng(2)
    values = np.unique(draws.integers(0, 2**30, LONG_RUN + 500, dtype=np.uint64) << np.uint64(20))
    near = values[:200] ^ (np.uint64(0b10011) << np.uint64(30))
    hashes = np.unique(np.concatenate([values, near]))
    pairs = near_pairs(hashes, 3)
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    left, right = np.nonzero(np.triu(bits <= 3, 1))
    assert sequence(pairs.left) == sequence(left)
    assert sequence(pairs.right) == sequence(right)
    assert len(left) >= 200


def sequence(values: Any) -> Sequence[int]:
    return [int(one) for one in values]
