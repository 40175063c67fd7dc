"""Which ranges of media packs are requested: few, of bounded size, and every payload in one of them."""

import random
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.shards.payload_ranges import ByteRange, FetchedPayloads, Place, ranges_of


def places_of(pack: int, sizes: list[int], order: list[int] | None = None) -> list[Place]:
    """Payloads of these sizes, by number, as they lie in a pack one after the other in `order`."""
    found, offset = {}, 512
    for number in range(len(sizes)) if order is None else order:
        found[number] = Place(pack, offset, sizes[number], f"{pack}-{number}")
        offset += -(-sizes[number] // 512) * 512 + 512
    return [found[number] for number in range(len(sizes))]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    seed=st.integers(0, 999),
    gap=st.integers(0, 4000),
    largest=st.integers(1, 9000),
)
def test_every_payload_is_in_one_range_and_ranges_keep_their_bounds(
    tmp_path_factory, sizes: list[int], seed: int, gap: int, largest: int
) -> None:
    every = [place for pack in range(3) for place in places_of(pack, sizes)]
    wanted = random.Random(seed).choices(every, k=len(every))  # some of them twice
    ranges = ranges_of(wanted, gap, largest)
    assert ranges == sorted(ranges)
    for before, after in pairwise(ranges):
        assert before.pack < after.pack or before.end <= after.start
    for one in ranges:
        inside = [
            p for p in set(wanted) if p.pack == one.pack and one.start <= p.offset and p.offset + p.bytes <= one.end
        ]
        assert one.end - one.start <= largest or len(inside) == 1
        assert sum(place.bytes for place in inside) >= one.end - one.start - (gap * (len(inside) - 1))
    packs = [random.Random(pack).randbytes(512 + 4096 * len(sizes)) for pack in range(3)]

    def read_range(one: ByteRange) -> bytes:
        return packs[one.pack][one.start : one.end]

    fetched = FetchedPayloads(wanted, read_range, tmp_path_factory.mktemp("fetched"), gap, largest)
    for place in wanted:
        assert fetched.read(place) == packs[place.pack][place.offset : place.offset + place.bytes]


def test_without_payloads_nothing_is_asked_for(tmp_path: Path) -> None:
    asked: list[ByteRange] = []
    FetchedPayloads([], lambda one: asked.append(one) or b"", tmp_path)  # type: ignore[func-returns-value]
    assert asked == []


def test_a_shard_of_a_billion_rows_takes_about_a_hundred_ranges() -> None:
    """13,000 rows of 30 KB, half of them dropped before, in the packs of two ranges of keys: neighbours are joined
    across what was dropped."""
    draw = random.Random(7)
    sizes = [max(2000, int(draw.lognormvariate(10.0, 0.7))) for _ in range(10_000)]
    packs = [places_of(0, sizes)[3500:], places_of(1, sizes)[:6500]]
    kept = [place for places in packs for place in places if draw.random() < 0.5]
    assert len(kept) > 6000
    assert len(ranges_of(kept)) <= 128


def test_few_rows_of_a_pack_are_one_range_in_the_order_of_keys_and_many_in_that_of_hashes() -> None:
    """A hundredth of a pack, as where the rows of a source were not sorted."""
    draw = random.Random(7)
    sizes = [draw.randint(10_000, 50_000) for _ in range(10_000)]
    by_hash = draw.sample(range(10_000), 10_000)
    assert len(ranges_of(places_of(0, sizes)[5000:5100])) == 1
    assert len(ranges_of(places_of(0, sizes, by_hash)[5000:5100])) > 70
