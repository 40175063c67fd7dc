"""Duplicates and test images among made-up rows, by the stages that compare rows in buckets; a process for every part.

    python -m tests.benchmarks.bucketed_duplicates --rows 1e5 --check
    python -m tests.benchmarks.bucketed_duplicates --rows 1e6,1e7 --tests 1e6

Of each stage: parts, CPU seconds of their processes, the largest peak of memory of one. With `--check` the clusters are
compared with those that `find_duplicates` finds in one table. One row in ten has the bytes of another row, one in
twenty is a near copy, the others are unrelated; hashes are uniform, which real ones are not.
"""

import argparse
import json
import os
import pickle
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from pipelines.deciding_nodes import bucket_configs
from pipelines.flow.segments import segments_name, segments_of
from pipelines.flow.stage import Input, InputFile, InputPart, Part, Stage
from pipelines.s4_materialize.buckets.evidence_rows import EVIDENCE
from pipelines.s4_materialize.buckets.exact import EXACT
from pipelines.s4_materialize.buckets.leaks import FIND_LEAKS, TEST_INDEX
from pipelines.s4_materialize.buckets.near import COMPONENTS, NEAR, ComponentsConfig
from pipelines.s4_materialize.buckets.stars import STARS
from pipelines.s4_materialize.decontaminate import DECONTAMINATE, DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DEDUPLICATE, DeduplicateConfig
from pipelines.s4_materialize.thresholds import ScoreThresholds
from tests.support.parts import Reader, Writer, as_part
from x2vlm.data.duplicates.decontamination import DecontaminationConfig
from x2vlm.data.duplicates.duplicates import DuplicateConfig, find_duplicates, image_rows
from x2vlm.data.media.phash import FINGERPRINT_FIELDS, THUMBNAIL_BYTES
from x2vlm.samples import SAMPLE_SCHEMA, write_table

ROWS_PER_PART = 10_000
Measured = dict[str, Any]


def hexadecimal(draws: np.random.Generator, count: int, width: int) -> list[str]:
    text = draws.bytes(count * width).hex()
    return [text[start : start + 2 * width] for start in range(0, len(text), 2 * width)]


def look_alikes(seed: int, count: int) -> dict[str, Any]:
    """Columns of `count` images: sha256 (also of the pixels), hash and thumbnail."""
    draws = np.random.default_rng(seed)
    sha256 = np.array(hexadecimal(draws, count, 32))
    phash = draws.integers(0, 2**64, count, dtype=np.uint64)
    thumbnail = draws.integers(0, 256, (count, THUMBNAIL_BYTES), dtype=np.uint8)
    copies, near = count // 10, count // 20
    sha256[:copies] = sha256[-copies:]
    phash[: copies + near] = phash[count - copies - near :][np.r_[near : copies + near, :near]]
    thumbnail[: copies + near] = thumbnail[count - copies - near :][np.r_[near : copies + near, :near]]
    phash[copies : copies + near] ^= np.uint64(0b101)
    return {"sha256": sha256, "phash": phash, "thumbnail": thumbnail}


def write_part(folder: Path, seed: int, count: int, source: str = "web", variants: bool = False) -> None:
    """What filter and score would have written of `count` rows."""
    draws, made = np.random.default_rng([seed, 1]), look_alikes(seed, count)
    keys = hexadecimal(draws, count, 16)
    media_type = SAMPLE_SCHEMA.field("media").type
    known = {
        **{"kind": pa.repeat(pa.scalar("image"), count), "sha256": pa.array(made["sha256"].tolist())},
        **{name: pa.array(draws.integers(200, 900, count, dtype=np.int32)) for name in ("width", "height")},
    }
    media = pa.StructArray.from_arrays(
        [known.get(one.name, pa.nulls(count, one.type)) for one in media_type], fields=list(media_type)
    )
    columns = {
        **{"key": pa.array(keys), "source_row": pa.array(keys), "media": media},
        **{name: pa.repeat(pa.scalar(value), count) for name, value in (("source", source), ("kind", "image"))},
        "url": pa.array([f"http://x.invalid/{key}" for key in keys]),
    }
    rows = [columns.get(one.name, pa.nulls(count, one.type)) for one in SAMPLE_SCHEMA]
    looks = pa.py_buffer(made["thumbnail"].tobytes())
    prints = {
        **{"key": pa.array(keys), "pixel_sha256": pa.array(made["sha256"].tolist()), "phash": pa.array(made["phash"])},
        "phash_flat": pa.repeat(pa.scalar(False), count),
        "thumbnail": pa.FixedSizeBinaryArray.from_buffers(pa.binary(THUMBNAIL_BYTES), count, [None, looks]),
        "frame_phashes": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), pa.array(made["phash"])),
    }
    scores = {"key": pa.array(keys), "clip_score": pa.repeat(pa.scalar(0.5, pa.float32()), count)}
    scores["missing"] = pa.repeat(pa.scalar(""), count)
    for kind, tables in (
        ("rows", {"rows": pa.Table.from_arrays(rows, schema=SAMPLE_SCHEMA)}),
        ("scores", {"fingerprints": pa.table(prints), "scores": pa.table(scores)}),
    ):
        (folder / kind).mkdir(parents=True)
        for name, table in tables.items():
            write_table(table, folder / kind / f"{name}.parquet")
    if variants:
        nothing = pa.schema([("key", pa.string()), ("variant", pa.string()), *FINGERPRINT_FIELDS]).empty_table()
        write_table(nothing, folder / "scores" / "variants.parquet")


def in_process(work: Any) -> tuple[Any, float, float]:
    """The result of `work()` in a process of its own, its CPU seconds, and its peak of memory in MiB."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.close(read_end)
            with os.fdopen(write_end, "wb") as stream:
                pickle.dump(work(), stream)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        data = stream.read()
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit("a part failed; its error is above")
    return pickle.loads(data), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def with_segments(part: InputPart) -> InputPart:
    def open_segments(file: InputFile) -> Mapping[str, InputFile]:
        return segments_of(file, Path(part.file(segments_name(file.path)).uri).read_bytes())

    return replace(part, open_segments=open_segments)


def run(stage: Stage, config: pydantic.BaseModel, folder: Path, measured: Measured, **slots: Any) -> tuple[Input, ...]:
    """Every part of a stage, one after the other."""
    done, cpu, peak = [], 0.0, 0.0
    for part in stage.plan_parts(config, slots):
        found, seconds, mebibytes = in_process(lambda part=part: run_part(stage, config, part, folder))
        done.append(with_segments(found))
        cpu, peak = cpu + seconds, max(peak, mebibytes)
    measured[stage.name] = {"parts": len(done), "cpu_seconds": round(cpu, 2), "peak_mebibytes": round(peak)}
    return (Input(f"{stage.name}/all", "", tuple(done)),)


def run_part(stage: Stage, config: pydantic.BaseModel, part: Part, folder: Path) -> InputPart:
    out = folder / stage.name / part.name
    out.mkdir(parents=True)
    result = stage.run_part(config, Reader(part), part, Writer(out))
    return replace(as_part(part.name, out, result.summary), open_segments=None)


def source(folder: Path, name: str, count: int, first_seed: int, variants: bool = False) -> dict[str, Input]:
    """The artifacts of a source of `count` rows."""
    made: dict[str, list[InputPart]] = {"rows": [], "scores": []}
    for number, start in enumerate(range(0, count, ROWS_PER_PART)):
        place = folder / name / str(number)
        size = min(ROWS_PER_PART, count - start)
        in_process(lambda place=place, n=number, size=size: write_part(place, first_seed + n, size, name, variants))
        for kind, parts in made.items():
            found, _, _ = in_process(
                lambda k=kind, n=number, place=place: replace(as_part(f"{n:05d}", place / k), open_segments=None)
            )
            parts.append(found)
    return {kind: Input(f"{kind}/{name}", "", tuple(parts)) for kind, parts in made.items()}


def measure(folder: Path, num_rows: int, num_tests: int, per_bucket: int, check: bool) -> Measured:
    train = source(folder, "web", num_rows, 0)
    read = {kind: (one,) for kind, one in train.items()}
    config = DeduplicateConfig(thresholds=ScoreThresholds(min_clip_score=None), rows_per_bucket=per_bucket)
    rule = DecontaminationConfig()
    strict = DecontaminateConfig(rule=rule, readers=("",), test_readers=("",)) if num_tests else None
    stages: Measured = {}
    evidence_config, near_config = bucket_configs(strict, config)
    evidence = run(EVIDENCE, evidence_config, folder, stages, **read, links=())
    links = run(NEAR, near_config, folder, stages, evidence=evidence)
    labels = run(COMPONENTS, ComponentsConfig(), folder, stages, links=links)
    exact = run(EXACT, ComponentsConfig(), folder, stages, evidence=evidence, components=labels)
    decisions: tuple[Input, ...] = ()
    if strict is not None:
        tests = source(folder, "tests", num_tests, 0, variants=True)  # of the same seeds: every test leaks
        held_out = {"test_rows": (tests["rows"],), "test_scores": (tests["scores"],), "tests": (), "links": ()}
        index = run(TEST_INDEX, strict, folder, stages, **held_out)
        leaks = run(FIND_LEAKS, strict, folder, stages, **read, index=index)
        decisions = run(DECONTAMINATE, strict, folder, stages, leaks=leaks, index=index, exact=exact)
    stars = run(STARS, config, folder, stages, rows=exact, decisions=decisions)
    run(DEDUPLICATE, config, folder, stages, **read, decisions=stars)
    shuffled = stages["evidence"]["cpu_seconds"] + stages["exact"]["cpu_seconds"] + stages["stars"]["cpu_seconds"]
    total = sum(one["cpu_seconds"] for one in stages.values())
    result = {
        "rows": num_rows,
        "tests": num_tests,
        "stages": stages,
        "cpu_microseconds_a_row": round(total / num_rows * 1e6, 2),
        "rows_a_cpu_second_of_evidence_exact_and_stars": round(num_rows / shuffled),
        "peak_mebibytes": max(one["peak_mebibytes"] for one in stages.values()),
        "peak_mebibytes_before": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if check and not num_tests:
        result["equal_to_one_table"] = equal_to_one_table(folder)
    return result


def equal_to_one_table(folder: Path) -> bool:
    """Whether the clusters of all buckets are those of `find_duplicates`."""
    places = sorted((folder / "web").iterdir(), key=lambda path: int(path.name))
    tables = [
        image_rows(pq.read_table(one / "rows/rows.parquet"), pq.read_table(one / "scores/fingerprints.parquet"))
        for one in places
    ]
    expected = find_duplicates(pa.concat_tables(tables), DuplicateConfig())
    found = pa.concat_tables(pq.read_table(path) for path in sorted((folder / "stars").glob("*/clusters.parquet")))
    assert expected.num_rows
    return bool(found.sort_by([("keeper", "ascending"), ("key", "ascending")]).equals(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1e5", help="numbers of rows, with commas between them")
    parser.add_argument("--tests", type=float, default=0, help="number of test images; 0: no search for leaks")
    parser.add_argument("--rows-per-bucket", type=float, default=2e6)
    parser.add_argument("--check", action="store_true", help="compare with one table of all rows")
    options = parser.parse_args()
    for size in options.rows.split(","):
        with tempfile.TemporaryDirectory() as folder:
            numbers = int(float(size)), int(options.tests), int(options.rows_per_bucket)
            print(json.dumps(measure(Path(folder), *numbers, options.check), indent=1), flush=True)


if __name__ == "__main__":
    main()
