"""The loader: batches are a function of the step alone, whatever the number of processes or readers."""

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from x2vlm.data.loading.loader import StepLoader, Substitute, iterate_steps
from x2vlm.data.loading.streams import Stream, StreamConfig
from x2vlm.data.shards.shard import ShardReader
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import write_table

NUM_STEPS = 8
AUX = StreamConfig(kind="image", batch_size=4, name="mixed", sources=("drawn",), aux_sources=("clean",), aux_share=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"))


def _loader(shards, config=DATA, rank=0, world_size=1):
    return StepLoader(shards, config, TOKENIZER, 32, 16, rank, world_size)


def _same(first, second):
    """Whether two batches are equal, tensor for tensor."""
    return first.keys == second.keys and all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name, value in vars(first).items()
        if isinstance(value, torch.Tensor)
    )


def _rows(batch):
    """Everything that belongs to a text row, one tuple of lists per row, pixels included."""
    pixels = batch.float_pixels() if batch.image_of_R is None else batch.float_pixels()[batch.image_of_R]
    # Padding depends on the longest text of a batch, so texts are compared without it.
    texts = [
        tuple(ids[mask.bool()].tolist() for ids in (text, masked))
        for text, masked, mask in zip(batch.text_ids_BL, batch.masked_ids_BL, batch.text_mask_BL, strict=True)
    ]
    boxes = [None] * batch.num_rows if batch.box_cxcywh_R4 is None else batch.box_cxcywh_R4.tolist()
    return list(zip(batch.keys, texts, batch.masked_labels_BK.tolist(), boxes, pixels.flatten(1).tolist(), strict=True))


@pytest.mark.parametrize(
    ("world_size", "num_workers"),
    [(2, 1), *(pytest.param(world, workers, marks=pytest.mark.slow) for world in (1, 2, 4) for workers in (1, 3))],
)
def test_processes_and_readers_together_change_nothing(tmp_path, world_size, num_workers):
    """With broken images, in main, aux and region batches: keys, pixels and substitutes of every global step."""
    shards = make_shards(tmp_path, broken=(2, 3, 6, 11))
    config = DATA.model_copy(update={"streams": (*DATA.streams, AUX)})
    whole = _loader(shards, config)
    parts = [
        iterate_steps(_loader(shards, config, rank, world_size), 0, NUM_STEPS, num_workers)
        for rank in range(world_size)
    ]
    replaced = Counter()
    for actual in zip(*parts, strict=True):
        expected = whole[actual[0].step]
        for name, batch in expected.batches.items():
            assert [row for data in actual for row in _rows(data.batches[name])] == _rows(batch)
        assert {item for data in actual for item in data.substitutes} == set(expected.substitutes)
        replaced.update(item.stream for item in expected.substitutes)
    assert set(replaced) == {"image", "region", "mixed"}


def test_a_broken_clip_is_replaced_by_another(tmp_path):
    shards = make_shards(tmp_path, num_images=4, num_videos=8)
    for files in shards:
        rows = ShardReader(files.media, files.index)
        for number, sample in enumerate(rows.samples()):
            if sample.source_row == "5":
                _spoil(files, rows, number)
    config = DATA.model_copy(update={"streams": DATA.streams[2:]})
    whole, parts = _loader(shards, config), [_loader(shards, config, rank, 2) for rank in range(2)]
    replaced = []
    for step in range(4):
        expected, actual = whole[step], [part[step] for part in parts]
        assert [row for data in actual for row in _rows(data.batches["video"])] == _rows(expected.batches["video"])
        assert {item for data in actual for item in data.substitutes} == set(expected.substitutes)
        replaced += expected.substitutes
    assert {item.rule for item in replaced} == {"bad_frames_blob"}


def _spoil(files, rows, number):
    """Make a payload undecodable and the index agree with it, as if it had been stored like that."""
    table, data = rows.table, bytearray(files.media.read_bytes())
    offset, size = (table[name][number].as_py() for name in ("payload_offset", "payload_bytes"))
    data[offset] ^= 1
    files.media.write_bytes(bytes(data))
    sums = table["payload_sha256"].to_pylist()
    sums[number] = hashlib.sha256(data[offset : offset + size]).hexdigest()
    place = table.schema.get_field_index("payload_sha256")
    write_table(table.set_column(place, table.schema.field(place), pa.array(sums)), files.index)


def test_every_window_of_ten_thousand_samples_holds_each_streams_quota():
    """Aux batches of one sample: of any 10,000 in a row their share is exact to within one."""
    fractions = {"main": 0.15, "rare": 0.01, "half": 0.5}
    for name, fraction in fractions.items():
        stream = StreamConfig(
            kind="image", batch_size=1, name=name, sources=("web",), aux_sources=("clean",), aux_share=fraction
        )
        is_aux = Stream.is_aux_step
        plan = object.__new__(Stream)
        plan.config = stream
        counts = np.cumsum([0, *(is_aux(plan, step) for step in range(30_000))])
        windows = counts[10_000:] - counts[:-10_000]
        assert np.abs(windows - 10_000 * fraction).max() <= 1


def test_a_group_of_region_images_chooses_its_own_rows(tmp_path):
    shards = make_shards(tmp_path, num_images=120, num_videos=0)
    stream = StreamConfig(kind="region", batch_size=200, num_images=100)
    assert stream.row_groups == 2
    config = DATA.model_copy(update={"streams": (stream,)})
    whole = _loader(shards, config)
    slots = whole.streams[0].slots(0)
    for half in range(2):
        loader = _loader(shards, config, rank=half, world_size=2)
        planned = loader.plan(loader.streams[0], 0, [], metadata_only=False)
        assert {item.slot for item in planned} <= set(slots[half * 50 : half * 50 + 50])
    assert StreamConfig(kind="region", batch_size=1024, num_images=400).row_groups == 8


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("broken", [(), (2, 3, 11)])
def test_world_size_divides_the_rows_and_changes_none(tmp_path, world_size, broken):
    shards = make_shards(tmp_path, broken=broken)
    whole = _loader(shards)
    parts = [_loader(shards, rank=rank, world_size=world_size) for rank in range(world_size)]
    num_substitutes = 0
    for step in range(NUM_STEPS):
        expected, actual = whole[step], [part[step] for part in parts]
        num_substitutes += len(expected.substitutes)
        for name, batch in expected.batches.items():
            assert [row for data in actual for row in _rows(data.batches[name])] == _rows(batch)
        assert {item for data in actual for item in data.substitutes} == set(expected.substitutes)
    assert bool(num_substitutes) == bool(broken)


def test_a_step_is_the_same_whenever_it_is_asked_for(shards):
    in_order = [_loader(shards)[step] for step in range(NUM_STEPS)]
    loader = _loader(shards)
    for step in reversed(range(NUM_STEPS)):
        for name, batch in loader[step].batches.items():
            assert _same(batch, in_order[step].batches[name])


def test_reading_ahead_in_processes_changes_nothing(shards):
    loader = _loader(shards)
    for data in iterate_steps(loader, 2, 5, num_workers=2):
        for name, batch in loader[data.step].batches.items():
            assert _same(batch, data.batches[name])


def test_every_epoch_holds_every_sample_once(shards):
    loader = _loader(shards)
    stream = loader.streams[0]
    assert stream.size() == 24
    epoch = [key for step in range(6) for name, key in loader.consumed(step) if name == "image"]
    again = [key for step in range(6, 12) for name, key in loader.consumed(step) if name == "image"]
    assert len(set(epoch)) == 24
    assert set(epoch) == set(again)
    assert epoch != again


def test_consumed_names_the_samples_of_the_batches(shards):
    loader = _loader(shards)
    for step in range(NUM_STEPS):
        consumed = loader.consumed(step)
        for name, batch in loader[step].batches.items():
            assert {key for stream, key in consumed if stream == name} == set(batch.keys)


def test_region_rows_fit_their_images(shards):
    batch = _loader(shards)[0].batches["region"]
    assert batch.num_rows == 8
    assert batch.patch_mask_RP.shape == (8, 4)
    assert batch.patch_mask_RP.any(dim=1).all()
    assert (batch.is_whole_image_R == (batch.box_cxcywh_R4 == torch.tensor([0.5, 0.5, 1, 1])).all(dim=1)).all()
    assert batch.image_of_R.max() < len(batch.pixels)
    assert batch.masked_labels_BK.ne(-100).any(dim=1).all()


def test_an_unusable_row_is_replaced_and_both_keys_are_recorded(tmp_path):
    shards = make_shards(tmp_path, broken=(5,))
    loader = _loader(shards)
    bad_key = next(
        sample.key
        for files in shards
        for sample in ShardReader(files.media, files.index).samples()
        if sample.source_row == "5"
    )
    replaced = [item for step in range(6) for item in loader[step].substitutes if item.stream == "image"]
    assert [(item.key, item.rule) for item in replaced] == [(bad_key, "decode_failed")]
    (item,) = replaced
    assert isinstance(item, Substitute)
    assert item.used != bad_key
    keys = [key for step in range(6) for key in loader[step].batches["image"].keys]
    assert bad_key not in keys
    assert len(keys) == 24


def test_a_damaged_shard_is_not_replaced_but_refused(tmp_path):
    shards = make_shards(tmp_path, num_shards=1)
    reader = ShardReader(shards[0].media, shards[0].index)
    offset = reader.table["payload_offset"][0].as_py()
    data = bytearray(shards[0].media.read_bytes())
    data[offset + 30] ^= 1
    shards[0].media.write_bytes(bytes(data))
    loader = _loader(shards)
    with pytest.raises(CorruptArtifact, match="rerun the pack stage"):
        [loader[step] for step in range(6)]


def test_aux_batches_come_at_their_exact_fraction(shards):
    stream = StreamConfig(
        kind="image", batch_size=4, sources=("drawn",), aux_sources=("clean",), aux_share=0.15, match_main=False
    )
    loader = _loader(shards, DATA.model_copy(update={"streams": (stream,)}))
    is_aux = [loader.streams[0].is_aux_step(step) for step in range(200)]
    assert [sum(is_aux[: step + 1]) for step in range(200)] == [int((step + 1) * 15 // 100) for step in range(200)]
    aux_step = is_aux.index(True)
    clean = {
        sample.key
        for files in shards
        for sample in ShardReader(files.media, files.index).samples()
        if sample.source == "clean"
    }
    assert set(loader[aux_step].batches["image"].keys) <= clean
    assert not set(loader[aux_step + 1].batches["image"].keys) & clean
    main = [key for step in range(200) if not is_aux[step] for _, key in loader.consumed(step)]
    assert set(main[:16]) == set(main[16:32])  # main batches go on where they were: 16 samples per epoch


def test_a_world_size_that_does_not_divide_the_batch_is_refused(shards):
    with pytest.raises(ConfigError, match="3 processes cannot share a batch of 4 rows"):
        _loader(shards, world_size=3)


def test_sources_that_do_not_exist_are_refused(shards):
    stream = StreamConfig(kind="image", batch_size=4, sources=("nowhere",))
    with pytest.raises(ConfigError, match="no shard holds a row"):
        _loader(shards, DATA.model_copy(update={"streams": (stream,)}))
