"""Runs the parts and prints the table; see the package for the commands."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu import __doc__ as manual
from tests.benchmarks.gpu.bench import NO_GPU, Bench
from tests.benchmarks.gpu.ceilings import run_part_1
from tests.benchmarks.gpu.steps import run_part_2
from tests.benchmarks.gpu.whole import run_part_3

PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "1": (run_part_1, 420),  # seconds after which no new measurement starts: the last one may take two minutes
    "2": (run_part_2, 450),
    "3": (run_part_3, 450),
}
ENVIRONMENT = 4  # exit code: a requirement of the machine is missing
COLUMNS = {
    "ms": "ms",
    "speedup": "x R0",
    "tflops": "TFLOP/s",
    "texts_per_second": "texts/s",
    "mfu_executed_percent": "MFU exec %",
    "mfu_reference_percent": "MFU ref %",
    "peak_gb": "GB",
    "waits_per_step": "waits",
    "wait_percent": "data %",
}
OTHER_FACTS = ("noise", "largest_loss_difference", "gradient_cosine", "terabytes_per_second", "first_step_seconds")


def table(path: Path) -> list[str]:
    """The rows of a part's JSON file, with two header lines; "-" for values that were not measured."""
    found = json.loads(path.read_text())
    facts = found["facts"]
    note = f"; {found['note']}" if "note" in found else ""
    lines = [
        f"part {found['part']}: {facts['device']}, torch {facts['torch']}{note}",
        f"{'':60}" + "".join(f"{title:>11}" for title in COLUMNS.values()),
    ]
    for row in found["rows"]:
        remark = row.get("refused") or row.get("left_out") or ("" if note else _facts(row))
        cells = "".join(f"{_cell(row, key):>11}" for key in COLUMNS)
        lines.append(f"{row['name'][:59]:60}" + (f" {remark[:87]}" if remark else cells))
    return lines


def _facts(row: dict[str, Any]) -> str:
    """The values of a row without a column."""
    return ", ".join(f"{key.replace('_', ' ')} {row[key]}" for key in OTHER_FACTS if row.get(key) is not None)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return "-" if value is None else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON files and profiles")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="at tiny sizes: shows that the script runs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"{NO_GPU}. `--tiny --device cpu` runs the same code on toy sizes.", file=sys.stderr)
        return ENVIRONMENT
    if options.device == "cpu" and not options.tiny:
        print("--device cpu goes with --tiny: real sizes take hours on a CPU and are meaningless", file=sys.stderr)
        return ENVIRONMENT
    if options.device == "cpu":
        torch.set_num_threads(1)
        torch.compiler.set_stance("force_eager")  # compiling toy blocks for a CPU takes minutes for no benefit
    for part, (run, seconds) in PARTS.items():
        if options.part in (part, "all"):
            bench = Bench(part, options.out, options.device, options.tiny, seconds)
            run(bench)
            print("\n".join(table(bench.path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
