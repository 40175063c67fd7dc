"""The cost of the filter stage's rules, against pandas and Ray Data on the same rows, and at scale.

    python -m tests.benchmarks.filters             rules, stage and alternatives, in CPU seconds of all processes
    involved python -m tests.benchmarks.filters --scale     the stage over 10 million rows, part by part: cost a row and
    memory

Measured on two shared cores, rows of LAION after download (one caption, no boxes), CPU microseconds a row: rules 0.10
(10 million rows a second), with the tables of kept and dropped rows 0.42, whole stage with Parquet 2.9; pandas 1.1 on
an existing frame and 4.5 from Arrow; Ray Data's row map 63. With five boxes a row 8.2. Ten million rows cost 3.5 a
row where a million before and after cost 3.3 and 3.6; peak memory was 452 MiB against 423 and 410.

Everything is CPU time, so that other load on the machine has little effect; every figure is the median of interleaved
rounds. All implementations are checked to give the same verdict for every row before they are measured.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.stage import InputFile, Part, Read
from pipelines.s2_filter import FILTER, FilterConfig
from pipelines.s2_filter.judge import caption_verdicts, judge, row_verdicts
from tests.benchmarks.filter_rows import synthetic_rows
from tests.support.flow_helpers import LocalWriter
from x2vlm.data.columns import SampleColumns
from x2vlm.samples import write_table

CONFIG = FilterConfig()
WORD = re.compile(r"\S*[^\W_]\S*")
ROUNDS = 5


def arrow_verdicts(rows: pa.Table) -> np.ndarray:
    """The rules alone: True for the rows that all of them keep."""
    columns = SampleColumns(rows)
    keep = np.logical_and.reduce([verdict.keep for verdict in row_verdicts(columns, CONFIG)])
    captions = columns.captions
    good = np.logical_and.reduce([v.keep for v in caption_verdicts(captions, columns.words_of_videos, CONFIG)])
    has_caption = np.zeros(len(columns), dtype=bool)
    has_caption[captions.row[good]] = True
    return keep & has_caption


def arrow_judge(rows: pa.Table) -> np.ndarray:
    """The rules, and the tables of kept and dropped rows."""
    kept = judge(rows, CONFIG).kept["key"]
    return np.isin(rows["key"].to_numpy(), kept.to_numpy()) if rows.num_rows < 20_000 else np.zeros(0, bool)


def pandas_verdicts(frame: pd.DataFrame) -> np.ndarray:
    """The same rules in usual pandas, with a map over columns of structs or lists."""
    sides = [
        frame["media"].map(lambda media, side=side: media[side] if media else np.nan) for side in ("width", "height")
    ]
    short, longer = np.minimum(*sides), np.maximum(*sides)
    is_video = frame["kind"] == "video"
    has_size = short > 0
    words = frame.loc[is_video, "captions"].map(
        lambda captions: max((len(WORD.findall(caption["text"])) for caption in captions), default=0)
    )
    enough_words = words.reindex(frame.index, fill_value=CONFIG.min_video_words) >= CONFIG.min_video_words
    has_caption = frame["captions"].map(lambda captions: any(caption["text"].strip() for caption in captions))
    keep = ~frame["key"].duplicated() & enough_words & has_caption
    keep &= is_video | (has_size & (short >= CONFIG.min_short_edge) & (longer <= CONFIG.max_aspect_ratio * short))
    return keep.to_numpy()


def judge_row(row: dict[str, Any]) -> dict[str, Any]:
    """The same rules on one row, as a function for `ray.data.Dataset.map` (without the check for unique keys)."""
    row["keep"] = any(caption["text"].strip() for caption in row["captions"])
    if row["kind"] == "video":
        words = max((len(WORD.findall(caption["text"])) for caption in row["captions"]), default=0)
        row["keep"] &= words >= 2
    else:
        media = row["media"] or {"width": 0, "height": 0}
        shorter, longer = sorted((media["width"], media["height"]))
        row["keep"] &= shorter >= 224 and longer <= 3.0 * shorter
    return row


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process, all threads, while `function` runs."""
    before = time.process_time()
    function()
    return time.process_time() - before


def compare(num_rows: int) -> dict[str, float]:
    """CPU microseconds a row of every implementation of the rules, the median of interleaved rounds."""
    rows = synthetic_rows(num_rows)
    sample = rows.slice(0, 10_000)
    expected = arrow_verdicts(sample)
    assert 0.5 < expected.mean() < 0.95
    assert (arrow_judge(sample) == expected).all()
    assert (pandas_verdicts(sample.to_pandas()) == expected).all()
    frame = rows.to_pandas()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_table(rows, path)
        with_boxes = synthetic_rows(num_rows // 5, boxes_per_row=5)
        ways: dict[str, tuple[Callable[[], object], int]] = {
            "rules": (lambda: arrow_verdicts(rows), num_rows),
            "pandas rules": (lambda: pandas_verdicts(frame), num_rows),
            "pandas rules from Arrow": (lambda: pandas_verdicts(rows.to_pandas()), num_rows),
            "rules and tables": (lambda: judge(rows, CONFIG), num_rows),
            "rules and tables, 5 boxes a row": (lambda: judge(with_boxes, CONFIG), with_boxes.num_rows),
            "whole stage with Parquet": (lambda: run_part(path, Path(folder) / "out"), num_rows),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (run, count) in ways.items():
                found[name].append(cpu_seconds(run) / count * 1e6)
    return {name: statistics.median(values) for name, values in found.items()}


def run_part(path: Path, out: Path) -> None:
    """One part of the stage from a file to files, without the engine."""
    out.mkdir(exist_ok=True)
    part = Part("0", (Read("rows", InputFile("rows.parquet", 0, "", path.as_uri())),))
    FILTER.run_part(CONFIG, _Reader(), part, LocalWriter(out))


class _Reader:
    """Opens files without checking their hash, which is the engine's work and not the stage's."""

    def open(self, file: InputFile) -> Any:
        return self.local_path(file).open("rb")

    def local_path(self, file: InputFile) -> Path:
        return Path(file.uri.removeprefix("file://"))


def ray_data(num_rows: int) -> float:
    """CPU microseconds a row of Ray Data's row map, all of Ray's processes counted; the second of two passes."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False, _node_ip_address="127.0.0.1"
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = synthetic_rows(num_rows)
        rows = rows.drop_columns([name for name in rows.column_names if rows[name].null_count == num_rows])
        dataset = ray.data.from_arrow(rows)
        first = dataset.map(judge_row).materialize()
        keep = np.concatenate([batch["keep"] for batch in first.iter_batches(batch_format="numpy")])
        assert (keep == arrow_verdicts(synthetic_rows(num_rows))).all()
        before = _tree_cpu_seconds()
        dataset.map(judge_row).materialize()
        return (_tree_cpu_seconds() - before) / num_rows * 1e6
    finally:
        ray.shutdown()


def _tree_cpu_seconds() -> float:
    """CPU time so far of this process and all its living descendants (Ray's are), from Linux's /proc."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)], ticks[int(path.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks.get(pid, 0) for pid in ours) / os.sysconf("SC_CLK_TCK")


def at_scale(total_rows: int, rows_per_part: int, folder: Path) -> dict[str, float]:
    """The stage over `total_rows` rows, part by part, as a worker does: CPU per row, and peak memory.

    `microseconds_a_row` is the median over the parts, which other load on the machine affects less than the mean.
    Generating the rows is not counted. Run in a separate process, so that the peak is its own.
    """
    spent, kept = [], 0
    for number in range(total_rows // rows_per_part):
        path = folder / "rows.parquet"
        write_table(synthetic_rows(rows_per_part, first=number * rows_per_part), path)
        spent.append(cpu_seconds(lambda path=path: run_part(path, folder / "out")) / rows_per_part * 1e6)
        kept += pq.read_metadata(folder / "out" / "rows.parquet").num_rows
    return {
        "rows": total_rows,
        "kept": kept,
        "microseconds_a_row": statistics.median(spent),
        "mean_microseconds_a_row": statistics.mean(spent),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_own_process(total_rows: int, rows_per_part: int) -> dict[str, float]:
    """`at_scale` in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.filters", "--one-scale", str(total_rows), str(rows_per_part)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _print_comparison(found: Mapping[str, float], ray_microseconds: float) -> None:
    for name, microseconds in {**found, "Ray Data row map": ray_microseconds}.items():
        print(f"{name:34} {microseconds:9.3f} us a row {1e6 / microseconds:12,.0f} rows a CPU second")
    print(f"pandas / rules                     {found['pandas rules'] / found['rules']:9.1f}")
    print(f"pandas from Arrow / rules          {found['pandas rules from Arrow'] / found['rules']:9.1f}")
    print(f"Ray Data / rules                   {ray_microseconds / found['rules']:9.1f}")
    print(f"Ray Data / rules and tables        {ray_microseconds / found['rules and tables']:9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--rows-per-part", type=int, default=200_000)
    parser.add_argument("--one-scale", type=int, nargs=2, metavar=("ROWS", "ROWS_PER_PART"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    if options.one_scale:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(at_scale(*options.one_scale, Path(folder))))
    elif options.scale:
        for total in (1_000_000, 10_000_000, 1_000_000):
            print(in_own_process(total, options.rows_per_part), flush=True)
        print("half the rows a part:", in_own_process(1_000_000, options.rows_per_part // 2))
    else:
        found = compare(options.rows)
        _print_comparison(found, ray_data(min(options.rows, 50_000)))


if __name__ == "__main__":
    main()
