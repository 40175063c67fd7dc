"""The record of what a training has read, as tables; and the answer to which steps have read a sample.

Up to MAX_LISTED samples it is a list, `samples.parquet`: step, stream and key of each. A run of 10^9 would write 100 GB
of those. Its record is what the list follows from: `draws.parquet`, intervals of draws by shard
(`x2vlm.data.loading.record`), and `substitutes.parquet`, the rows that were replaced. With the configuration and the
shards, which the manifest names, `steps_of` answers for any key from that.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.stage import Part
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.shards import listing_of
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.record import HasStreams, StepOrder, drawn, samples, seen
from x2vlm.data.loading.shard_cache import ShardCache, listed_shards
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.text.tokenizer import read_tokenizer, read_vocabulary
from x2vlm.stores.segments import read_lines
from x2vlm.train.validation.held_out import split_shards

SAMPLES_SCHEMA = pa.schema([("step", pa.int64()), ("stream", pa.string()), ("key", pa.string())])
DRAWS_SCHEMA = pa.schema(
    [
        ("stream", pa.string()),
        ("is_aux", pa.bool_()),
        ("sources", pa.list_(pa.string())),  # whose rows are counted together; empty: all
        ("shard", pa.int32()),  # number among the shards that were trained on, in the order of their names
        ("rows", pa.int64()),  # of these sources
        ("first_draw", pa.int64()),  # draw n takes row n % rows for the (n // rows)th time
        ("end_draw", pa.int64()),
        ("single_draws", pa.list_(pa.int64())),  # beside the interval: windows that the last step or the first one cut
    ]
)
SUBSTITUTES_SCHEMA = pa.schema(
    [
        *(("step", pa.int64()), ("stream", pa.string()), ("slot", pa.int64())),
        *(("replaced", pa.string()), ("rule", pa.string()), ("used", pa.string())),
    ]
)
MAX_LISTED = 10**8
SAMPLES, DRAWS, SUBSTITUTES = "samples.parquet", "draws.parquet", "substitutes.parquet"


def record_loader(config: PretrainConfig, part: Part, vocabulary: Path, cache: ShardCache | None = None) -> StepLoader:
    """A loader that is asked for the order alone: indexes are opened, or fetched to `cache`, when they are needed."""
    vision = config.model.vision
    return StepLoader(
        _trained(config, part, cache),
        config.data,
        read_tokenizer(read_vocabulary(vocabulary)),
        vision.image_res,
        vision.patch_size,
    )


def order_of_run(config: PretrainConfig, part: Part, cache: ShardCache | None = None) -> StepOrder:
    """The order alone, for `steps_of`: no vocabulary is needed."""
    return StepOrder.of(_trained(config, part, cache), config.data)


def _trained(config: PretrainConfig, part: Part, cache: ShardCache | None) -> Sequence[ShardFiles]:
    return split_shards(listed_shards(listing_of(part), cache), config.data.validation_share)[0]


def write_record(
    loader: StepLoader, first: int, end: int, metrics: Path, folder: Path, most: int = MAX_LISTED
) -> dict[str, int]:
    """Write what steps first..end-1 have read to files in `folder`; the rows of each."""
    substitutes = substitutes_of(metrics)
    if (end - first) * sum(stream.config.items_per_step for stream in loader.streams) <= most:
        return {SAMPLES: _write(folder / SAMPLES, SAMPLES_SCHEMA, consumed_samples(loader, first, end, substitutes))}
    return {
        DRAWS: _write(folder / DRAWS, DRAWS_SCHEMA, draws_tables(loader, first, end)),
        SUBSTITUTES: _write(folder / SUBSTITUTES, SUBSTITUTES_SCHEMA, _substitute_tables(substitutes)),
    }


def substitutes_of(metrics: Path | str) -> dict[int, list[dict[str, Any]]]:
    """The replaced samples of each step that has any. Lines of other steps are not parsed: a run may have millions."""
    marked = (json.loads(line) for line in read_lines(str(metrics)) if b'"substitutes"' in line)
    return {line["step"]: line["substitutes"] for line in marked if line.get("substitutes")}


def consumed_samples(
    loader: StepLoader, first: int, end: int, substitutes: Mapping[int, Sequence[Mapping[str, Any]]]
) -> Iterator[pa.Table]:
    """Tables with SAMPLES_SCHEMA of every sample that steps first..end-1 consumed, after the recorded substitutions."""
    labels = pa.array([stream.config.label for stream in loader.streams])
    for block in samples(loader, first, end, substitutes):
        columns = [pa.array(block.step), labels.take(pa.array(block.stream)), pa.array(block.key).cast(pa.string())]
        yield pa.Table.from_arrays(columns, schema=SAMPLES_SCHEMA)


def draws_tables(loader: StepLoader, first: int, end: int) -> Iterator[pa.Table]:
    """Tables with DRAWS_SCHEMA of what steps first..end-1 have drawn, before rows were replaced: a line for each group
    of sources in a shard from which they have drawn anything."""
    for stream, is_aux, rows, found in drawn(loader, first, end):
        for group, members in enumerate(rows.groups):
            first_S, end_S = found.first_GS[group], found.end_GS[group]
            _, owners, draws = found.single[:, found.single[0] == group]
            by_owner = np.lexsort((draws, owners))
            shards = np.union1d(np.flatnonzero(end_S > first_S), owners)
            ends = np.searchsorted(owners[by_owner], shards, side="right")
            single = pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), pa.array(draws[by_owner]))
            size = len(shards)
            columns = [
                [stream.config.label] * size,
                [is_aux] * size,
                [list(members.sources)] * size,
                shards,
                np.array(members.counts())[shards],
                first_S[shards],
                end_S[shards],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, DRAWS_SCHEMA, strict=False)]
            yield pa.Table.from_arrays([*arrays, single], schema=DRAWS_SCHEMA)


def steps_of(
    loader: HasStreams,
    shard: int,
    key: str,
    first: int,
    end: int,
    substitutes: Mapping[int, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """The steps that have read a sample, which lies in that shard of the run, with what each did with it.

    `how`: "drawn"; "replaced" by another sample, for a rule; "substitute" of another one. Region streams draw
    images and may use no box of one: "drawn" then says at most that.
    """
    replaced = {
        (step, item["stream"], item.get("slot")): item["rule"]
        for step, items in substitutes.items()
        for item in items
        if item["key"] == key
    }
    found = []
    for draw in seen(loader, shard, key, first, end):
        places = ((draw.step, draw.stream, slot) for slot in (None, draw.position))
        rule = next((replaced[place] for place in places if place in replaced), None)
        what = {"how": "drawn"} if rule is None else {"how": "replaced", "rule": rule}
        found.append({"step": draw.step, "stream": draw.stream, **what})
    for step, items in substitutes.items():
        failed = {(item["stream"], item.get("slot"), item["key"]) for item in items}
        found += [
            {"step": step, "stream": stream, "how": "substitute"}
            for stream, slot in {(item["stream"], item.get("slot")) for item in items if item["used"] == key}
            if (stream, slot, key) not in failed
        ]
    return sorted(found, key=lambda item: (item["step"], item["stream"]))


def _substitute_tables(substitutes: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[pa.Table]:
    rows = [
        {**item, "step": step, "slot": item.get("slot"), "replaced": item["key"]}
        for step, items in substitutes.items()
        for item in items
    ]
    yield pa.Table.from_pylist(rows, schema=SUBSTITUTES_SCHEMA)


def _write(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows
