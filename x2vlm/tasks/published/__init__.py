"""Published numbers of downstream tasks, each with its source."""

from x2vlm.tasks.published.numbers import Benchmark, PublishedNumber, benchmark, benchmarks, published

__all__ = ["Benchmark", "PublishedNumber", "benchmark", "benchmarks", "published"]
