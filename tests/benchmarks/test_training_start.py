"""A start reads its job and one listing, whatever the number of shards; its first step opens the shards it needs."""

from tests.benchmarks.training_start import run


def test_a_start_reads_one_listing_a_machine_and_opens_no_shard():
    few, many = run(100, True), run(20_000, True)
    assert many["first process"]["gets"] == 2  # the job and the listing
    assert many["second process"]["gets"] == 1  # the job, where nobody hands it on
    assert many["first step"]["requests"] <= few["first step"]["requests"] + 10 <= 60
    assert many["first process"]["seconds"] < 6  # a fifth of the shards, a fifth of half a minute


def test_shards_without_counts_are_counted_with_one_request_each():
    assert run(64, False)["first process"]["gets"] == 2 + 64
