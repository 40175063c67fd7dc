"""Packing: both kinds of shard feed training alike, large images are made smaller on demand, sizes are counted."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.flow.stage import Input, InputPart, PartSummary
from pipelines.s4_materialize import PackConfig, PartitionConfig
from pipelines.s4_materialize.sizes import add_up_packs
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.stage import plan_pretrain
from tests.support.parts import as_part, as_source
from tests.support.stages.curated import Curated, Row, build, clip, curate, encoded, row, scene, write_media
from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from x2vlm.data.loading.batch import normalised
from x2vlm.data.loading.examples import ExampleConfig, Recipe, plan_regions, region_pixels
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.loading.transforms import AugmentConfig
from x2vlm.data.media.images import shrunk_size
from x2vlm.data.media.video import decode_frames
from x2vlm.data.shards.media_files import index_name, is_media_file
from x2vlm.data.shards.row_counts import ROW_COUNTS, ShardCounts, count_rows
from x2vlm.data.shards.rows import row_of
from x2vlm.data.shards.shard import ShardReader
from x2vlm.samples import Box, Concept, Grain

EVERYTHING = PartitionConfig(num_shards=3, min_clip_score=None)
ONE_SHARD = PartitionConfig(num_shards=1, min_clip_score=None)
RECIPE = Recipe(ExampleConfig(augment=AugmentConfig(num_ops=0)), TOKENIZER, image_res=64, patch_size=16, seed=3)


def packed(folder: Path, rows: list[Row], partition: PartitionConfig = EVERYTHING, **config: object) -> Curated:
    corpus = build(folder / "in", {"toy": [rows[::2], rows[1::2]]})
    return curate(corpus, folder, partition=partition, pack=PackConfig.model_validate(config))


def shards_of(result: Curated) -> list[ShardFiles]:
    """The files that PRETRAIN would train on, paired as its workers pair them."""
    vocabulary = Input("source:vocabulary", "", (InputPart("v", as_source(Path(__file__)).parts[0].files),))
    inputs = {"shards": (result.packed.artifact,), "vocabulary": (vocabulary,)}
    (part,) = plan_pretrain(PretrainConfig(model=MODEL, data=DATA, world_size=1), inputs)
    files = {read.file.path: Path(read.file.uri) for read in part.reads if read.slot == "shards"}
    return [ShardFiles(files[name], files[index_name(name)]) for name in sorted(files) if is_media_file(name)]


def test_training_sees_the_same_batches_from_both_kinds_of_shard(tmp_path: Path) -> None:
    rows = []
    for files in make_shards(tmp_path / "drawn"):
        reader = ShardReader(files.media, files.index)
        rows += [Row(sample, reader.payload(number)) for number, sample in enumerate(reader.samples())]
    loaders = []
    for name in ("webdataset", "parquet"):
        shards = shards_of(packed(tmp_path / name, rows, format=name))
        assert len(shards) == 3
        loaders.append(StepLoader(shards, DATA, TOKENIZER, 32, 16))
        assert {shard.media.name for shard in shards} == {
            f"shard-{number:05d}{'.tar' if name == 'webdataset' else '.media.parquet'}" for number in range(3)
        }
    for step in range(6):
        tar, parquet = (loader[step] for loader in loaders)
        assert tar.substitutes == parquet.substitutes == []
        assert set(tar.batches) == {"image", "region", "video"}
        for name, batch in tar.batches.items():
            other = parquet.batches[name]
            assert batch.keys == other.keys
            tensors = {key: value for key, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            assert len(tensors) > 4
            assert all(torch.equal(value, getattr(other, key)) for key, value in tensors.items())


def large_rows() -> list[Row]:
    """A large image with a box, one that is small enough, a PNG, a clip with large frames and one with small ones."""
    box = Concept(Grain.OBJECT, "a square", Box(20.0, 30.0, 200.0, 150.0))
    return [
        row("toy", "large", encoded(scene(1, (400, 300)), quality=95), ["large"], [box]),
        row("toy", "small", encoded(scene(2, (128, 96))), ["small"]),
        row("toy", "png", encoded(scene(3, (300, 400)), "PNG"), ["png"]),
        row("toy", "clip", clip(4, 5)),
        row("toy", "tiny_clip", clip(6, 7, size=(120, 90))),
    ]


def test_large_images_and_frames_are_packed_smaller_and_keep_their_records(tmp_path: Path) -> None:
    rows = {one.sample.source_row: one for one in large_rows()}
    result = packed(tmp_path, list(rows.values()), short_edge=96, quality=90)
    stored = {}
    for files in shards_of(result):
        reader = ShardReader(files.media, files.index)
        stored |= {sample.source_row: (sample, reader.payload(n)) for n, sample in enumerate(reader.samples())}
    assert {name: Image.open(BytesIO(stored[name][1])).size for name in ("large", "png")} == {
        "large": (128, 96),
        "png": (96, 128),
    }
    assert Image.open(BytesIO(stored["png"][1])).format == "JPEG"
    for name in ("small", "tiny_clip"):
        assert stored[name] == (rows[name].sample, rows[name].payload)
    frames, times = decode_frames(stored["clip"][1])
    assert [Image.open(BytesIO(frame)).size for frame in frames] == [(128, 96)] * 2
    assert times == [0.0, 1.0]
    media = rows["png"].sample.media
    assert media is not None
    assert stored["png"][0] == replace(rows["png"].sample, media=replace(media, format="jpeg"))
    sizes = {name: (len(rows[name].payload), len(stored[name][1])) for name in ("large", "png", "clip")}
    assert result.packed.summary["smaller"] == {
        "bytes_after": sum(after for _, after in sizes.values()),
        "bytes_before": sum(before for before, _ in sizes.values()),
        "clips": 1,
        "images": 2,
    }


def test_boxes_hold_on_what_was_packed_smaller(tmp_path: Path) -> None:
    rows = large_rows()[:1]
    smaller = packed(tmp_path, rows, ONE_SHARD, short_edge=96)
    (reader,) = [ShardReader(files.media, files.index) for files in shards_of(smaller)]
    sample, original = reader.sample(0), rows[0].sample
    assert sample == original
    for epoch in range(4):
        plan = plan_regions(row_of(sample), epoch, RECIPE)
        whole = normalised(region_pixels(row_of(original), rows[0].payload, plan, RECIPE).pixels)
        smaller_one = normalised(region_pixels(row_of(sample), reader.payload(0), plan, RECIPE).pixels)
        assert (smaller_one - whole).abs().mean() < 0.1


def test_a_smaller_copy_is_cut_to_the_size_its_original_would_be(tmp_path: Path) -> None:
    """Rounding twice is not rounding once: region crops are refused for a copy that is a pixel off."""

    def twice(width: int, height: int) -> tuple[int, int]:
        return shrunk_size(*shrunk_size(width, height, 150), 64)

    width, height = next((w, 200) for w in range(201, 400) if twice(w, 200) != shrunk_size(w, 200, 64))
    one = row(
        "toy",
        "copy",
        encoded(scene(1, shrunk_size(width, height, 150))),
        [],
        [Concept(Grain.OBJECT, "a", Box(1, 1, 99, 99))],
    )
    assert one.sample.media is not None
    one = replace(one, sample=replace(one.sample, media=replace(one.sample.media, width=width, height=height)))
    (files,) = shards_of(packed(tmp_path, [one], ONE_SHARD, short_edge=64))
    reader = ShardReader(files.media, files.index)
    assert Image.open(BytesIO(reader.payload(0))).size == shrunk_size(width, height, 64) != twice(width, height)
    packed_row = row_of(reader.sample(0))
    region_pixels(packed_row, reader.payload(0), plan_regions(packed_row, 0, RECIPE), RECIPE)


@pytest.mark.parametrize("name", ["large", "clip"])
def test_what_breaks_while_it_is_made_smaller_is_a_counted_drop(tmp_path: Path, name: str) -> None:
    rows = large_rows()
    corpus = build(tmp_path / "in", {"toy": [rows]})
    broken = [replace(one, payload=one.payload[:-400]) if one.sample.source_row == name else one for one in rows]
    write_media(tmp_path / "broken" / "media", broken)
    media = (Input("download/toy", "", (as_part("00000", tmp_path / "broken" / "media"),)),)
    result = curate(
        {**corpus, "media": media}, tmp_path, partition=EVERYTHING, pack=PackConfig(short_edge=96, quality=90)
    )
    rule = {"large": "decode_failed", "clip": "bad_frames_blob"}[name]
    assert result.packed.counts().dropped == {rule: 1}
    assert set(result.kept) == {f"toy:{one.sample.source_row}" for one in rows} - {f"toy:{name}"}
    tables = [pq.read_table(path) for path in result.packed.folder.glob("*/drops.parquet")]
    (drop,) = [one for table in tables for one in table.to_pylist()]
    assert (drop["source_row"], drop["stage"], drop["rule"]) == (name, "pack", rule)
    assert drop["reason"].startswith("made smaller: ")


@pytest.mark.parametrize("image_format", ["webdataset", "parquet"])
def test_equal_rows_give_equal_bytes_and_small_images_their_own(tmp_path: Path, image_format: str) -> None:
    first = packed(tmp_path / "a", large_rows(), short_edge=96, format=image_format).packed.bytes_of()
    again = packed(tmp_path / "b", large_rows()[::-1], short_edge=96, format=image_format).packed.bytes_of()
    assert first == again
    plain = packed(tmp_path / "c", large_rows(), format=image_format).packed.bytes_of()
    assert packed(tmp_path / "d", large_rows(), format=image_format, short_edge=400).packed.bytes_of() == plain != first


def test_words_captions_and_boxes_are_counted(tmp_path: Path) -> None:
    tree = Concept(Grain.OBJECT, "tree", Box(1, 1, 50, 50), ("tall", "green"))
    rows = [
        row("toy", "1", encoded(scene(1)), ["one", "two words - here"], [tree, tree]),
        row("toy", "2", encoded(scene(2)), []),
        row("toy", "3", encoded(scene(3)), ["word " * 70], [tree] * 80),
        row("toy", "4", clip(4), ["two words"]),
    ]
    result = packed(tmp_path, rows)
    assert result.packed.summary["sizes"] == {
        "words_per_caption": {"1": 1, "2": 1, "3": 1, "64": 1},  # a dash is no word; 64 stands for 64 and more
        "words_per_concept": {"3": 82},  # "tall green tree"
        "captions_per_row": {"0": 1, "1": 2, "2": 1},
        "boxes_per_image": {"0": 1, "2": 1, "64": 1},
    }
    assert "smaller" not in result.packed.summary


def test_the_counts_that_a_start_needs_are_recorded_with_each_shard(tmp_path: Path) -> None:
    """They are those of the index that was written, of every shard its own."""
    tree = Concept(Grain.OBJECT, "tree", Box(1, 1, 50, 50))
    rows = [row("toy", str(n), encoded(scene(n)), ["a"] * (n % 3), [tree] * (n % 2)) for n in range(9)]
    rows.append(row("other", "10", clip(4), ["two words"]))
    result = packed(tmp_path, rows)
    found = {name: ShardCounts.from_json(one.summary[ROW_COUNTS]) for name, one in result.packed.results.items()}
    assert len(found) > 1
    for name, counts in found.items():
        (index,) = (result.packed.folder / name).glob("shard-*.parquet")
        assert (counts,) == count_rows([index])
    totals = [sum(counts.of(kind, ()) for counts in found.values()) for kind in ("image", "region", "video")]
    assert totals == [6, 4, 1]


def test_shards_of_an_earlier_release_leave_sizes_out(tmp_path: Path) -> None:
    result = packed(tmp_path, [row("toy", str(n), encoded(scene(n)), ["a"]) for n in range(6)])
    parts = [PartSummary(name, one.counts, dict(one.summary)) for name, one in result.packed.results.items()]
    assert len(parts) > 1
    assert add_up_packs(None, parts)["sizes"]["words_per_caption"] == {"1": 6}
    old = replace(parts[0], summary={"grains": parts[0].summary["grains"]})
    found = add_up_packs(None, [old, *parts[1:]])
    assert set(found) == {"grains"}
    assert found["grains"]["captions"] == 6
