"""What a run has read, computed from its order: equal to a walk over its steps, row by row."""

import json
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipelines.s5_pretrain.samples import consumed_samples, steps_of, write_record
from tests.support.training.captioned import TOKENIZER, captioned_shards
from x2vlm.data.loading.config import DataConfig, StreamConfig
from x2vlm.data.loading.loader import StepLoader, substitutes_to_json
from x2vlm.data.loading.record import drawn, samples, seen
from x2vlm.data.shards.row_counts import count_rows
from x2vlm.samples import sample_key

SOURCES = {"coco": [(3, 2)] * 10, "web": [(1, 0)] * 24, "vg": [(0, 7)] * 9 + [(0, 3), (2, 6)], "blank": [(1, 1)] * 2}
MIXED = {"sources": ("web",), "aux_sources": ("coco", "vg"), "aux_share": 0.3}
STREAMS = {
    "one row an image": {},
    "captions and phrases": {"rows_per": "caption", "region_captions": {"vg": 4}},
    "aux": MIXED,
    "aux by caption": {**MIXED, "rows_per": "caption", "region_captions": {"vg": 4}},
    "weights": {"weights": {"coco": 2.5, "web": 0.15}},
    "captions and weights": {"rows_per": "caption", "weights": {"coco": 0.5, "web": 2}, "sources": ("coco", "web")},
    "regions": {"kind": "region", "num_images": 8},
}
FIRST, END = 3, 27


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    made = captioned_shards(tmp_path_factory.mktemp("shards"), SOURCES, num_shards=8)
    counts = count_rows([files.index for files in made])
    return [replace(files, counts=count) for files, count in zip(made, counts, strict=True)]


def loader_of(shards, *streams, lanes=1, rank=0, world_size=1, window=2):
    made = [
        StreamConfig(**{"kind": "image", "batch_size": 8, "name": f"s{number}", **stream})
        for number, stream in enumerate(streams)
    ]
    config = DataConfig.model_validate(
        {"seed": 5, "streams": made, "examples": {"max_tokens": 8}, "window_shards": window, "lanes": lanes}
    )
    return StepLoader(shards, config, TOKENIZER, 32, 16, rank, world_size)


def walked(loader, first=FIRST, end=END):
    return [(step, *sample) for step in range(first, end) for sample in loader.consumed_slots(step)]


def listed(loader, first=FIRST, end=END):
    return [
        (step, loader.streams[stream].config.label, position, key.decode())
        for block in samples(loader, first, end, {})
        for step, stream, position, key in zip(
            *(column.tolist() for column in (block.step, block.stream, block.position, block.key)), strict=True
        )
    ]


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_record_without_a_walk_is_that_of_the_walk(shards, stream, lanes, window, monkeypatch):
    monkeypatch.setattr("x2vlm.data.loading.record.ITEMS_AT_ONCE", 70)  # several blocks, of several steps each
    loader = loader_of(shards, stream, {"batch_size": 4}, lanes=lanes, window=window)
    expected = walked(loader)
    found = listed(loader)
    assert [(step, name, key) for step, name, _, key in found] == [(step, name, key) for step, name, _, key in expected]
    repeated = [(mine[2], theirs[2]) for mine, theirs in zip(found, expected, strict=True) if theirs[2] is not None]
    assert all(mine == theirs for mine, theirs in repeated)
    at = {}
    for step, name, _, key in expected:
        at.setdefault(key, Counter())[step, name] += 1
    for shard in range(len(shards)):
        for key in loader.streams[0].shards.rows(shard).keys.tolist():
            draws = seen(loader, shard, key.decode(), FIRST, END)
            steps = Counter((draw.step, draw.stream) for draw in draws)
            certain = Counter((draw.step, draw.stream) for draw in draws if draw.is_certain)
            theirs = at.get(key.decode(), Counter())
            assert not theirs - steps
            assert not certain - theirs
            assert stream.get("kind") == "region" or steps == theirs
    total = sum(len(what) for _, _, _, what in drawn(loader, FIRST, END))
    assert total == (END - FIRST) * sum(item.config.items_per_step for item in loader.streams)


def test_a_key_that_the_shard_does_not_have_was_not_seen(shards):
    loader = loader_of(shards, {})
    assert seen(loader, 0, "0" * 32, 0, 50) == []
    assert seen(loader, 0, "f" * 32, 0, 50) == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_was_replaced_is_in_the_record_whoever_replaced_it(tmp_path, lanes):
    """Captions that cleaning empties, and payloads that cannot be decoded; resumed with another number of processes."""
    broken = [("web", 2), ("web", 9), ("coco", 4)]
    blank = [("web", 3), ("coco", 1)]
    shards = captioned_shards(tmp_path, {"web": [(1, 0)] * 24, "coco": [(2, 0)] * 8}, 4, broken, blank)
    streams = [{"sources": ("web",)}, {"rows_per": "caption"}]
    recorded, expected = {}, []
    for step in range(6):
        world_size = 1 if step < 3 else 4
        parts = [
            loader_of(shards, *streams, lanes=lanes, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        data = [part[step] for part in parts]
        recorded[step] = [item for one in data for item in substitutes_to_json(one.substitutes)]
        expected += [(step, name, key) for name in ("s0", "s1") for one in data for key in one.batches[name].keys]
    loader = loader_of(shards, *streams, lanes=lanes)
    substitutes = {step: items for step, items in recorded.items() if items}
    found = [row for table in consumed_samples(loader, 0, 6, substitutes) for row in table.to_pylist()]
    assert [(row["step"], row["stream"], row["key"]) for row in found] == expected
    assert {item["rule"] for items in substitutes.values() for item in items} == {"decode_failed", "empty_caption"}
    assert not {sample_key(*map(str, one)) for one in (*broken, *blank)} & {key for _, _, key in expected}
    for shard in range(len(shards)):
        for key in (name.decode() for name in loader.streams[0].shards.rows(shard).keys.tolist()):
            told = steps_of(loader, shard, key, 0, 6, substitutes)
            assert {(item["step"], item["stream"]) for item in told if item["how"] != "replaced"} == {
                (step, name) for step, name, used in expected if used == key
            }
    lines = [json.dumps({"step": step, "substitutes": items}) for step, items in recorded.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    written = write_record(loader, 0, 6, tmp_path / "metrics.jsonl", tmp_path, most=1)
    draws = pq.read_table(tmp_path / "draws.parquet").to_pylist()
    assert sum(row["end_draw"] - row["first_draw"] + len(row["single_draws"]) for row in draws) == len(expected)
    assert written == {"draws.parquet": len(draws), "substitutes.parquet": sum(map(len, substitutes.values()))}
