"""A run resumes in the middle of a million samples as fast as it starts. CPU seconds of separate processes."""

import pytest

from tests.benchmarks.seek import ROWS_PER_SHARD, cold, write_indexes


@pytest.mark.slow
def test_the_first_batch_in_the_middle_of_a_million_samples(tmp_path):
    write_indexes(tmp_path, 100)
    few, many = (
        min((cold(tmp_path, number) for _ in range(3)), key=lambda found: found["cpu_seconds"]) for number in (1, 100)
    )
    print(few, many)
    assert many["samples"] == 100 * ROWS_PER_SHARD
    assert many["cpu_seconds"] < 2
    # Only counting rows grows, once per shard: under 10 ms for ten thousand samples.
    assert many["cpu_seconds"] - few["cpu_seconds"] < 99 * 0.010 + 0.5  # and opening the window of 16 shards
