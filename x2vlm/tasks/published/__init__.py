"""Published numbers of downstream tasks, each with its source."""

from x2vlm.tasks.published.numbers import Benchmark, PublishedNumber, benchmark, benchmark_of, benchmarks, published

__all__ = ["Benchmark", "PublishedNumber", "benchmark", "benchmark_of", "benchmarks", "published"]
