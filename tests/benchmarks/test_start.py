"""A start with many shards asks the store for those of its first step, and for no other."""

from tests.benchmarks.start import run


def test_a_start_opens_only_the_shards_of_its_first_step():
    few, many = run(100, True), run(20_000, True)
    assert many["requests"] <= few["requests"] + 10 <= 60
    assert many["seconds"] < 12  # a fifth of the shards, a fifth of the minute


def test_shards_without_counts_are_counted_with_one_request_each():
    found = run(64, False)
    assert 64 <= found["requests"] <= 64 + 40
