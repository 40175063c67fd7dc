"""Benchmarks. Each file is a command, `python -m tests.benchmarks.NAME`, that prints its measurements."""
