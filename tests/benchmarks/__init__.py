"""What measures speed. Each file is one command, `python -m tests.benchmarks.NAME`, and prints what it measured."""
