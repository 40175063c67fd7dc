"""Streams with a row per caption, with region phrases as captions, and with weights: what is drawn, and as what."""

from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipelines.s5_pretrain.samples import consumed_samples
from tests.support.training.captioned import TOKENIZER, captioned_shards
from x2vlm.config import parse_config
from x2vlm.data.loading.config import DataConfig, StreamConfig
from x2vlm.data.loading.loader import StepLoader, iterate_steps, substitutes_to_json
from x2vlm.data.shards.row_counts import count_rows
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import sample_key

# COCO-like images of five captions, web images of one, and Visual Genome-like ones of phrases alone.
SOURCES = {
    "coco": [(5, 2)] * 12,
    "web": [(1, 0)] * 24,
    "vg": [(0, 7)] * 9 + [(0, 3), (0, 0), (2, 6)],
}
PHRASES = {"vg": 4}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return captioned_shards(tmp_path_factory.mktemp("shards"), SOURCES)


def loader_of(shards, rank=0, world_size=1, **stream):
    values = {"kind": "image", "batch_size": 16, **stream}
    config = DataConfig.model_validate(
        {"seed": 5, "streams": (StreamConfig(**values),), "examples": {"max_tokens": 8}, "window_shards": 4}
    )
    return StepLoader(shards, config, TOKENIZER, 32, 16, rank, world_size)


def pass_of(loader, number=0):
    """(source, key, caption) of every row of a pass."""
    (stream,) = loader.streams
    size, found = stream.size(), []
    for position in range(number * size, (number + 1) * size):
        slot = SimpleNamespace(position=position, is_aux=False)
        row = stream.row(slot, stream.place(slot))
        (caption,) = row.captions
        found.append((row.key, caption))
    return found


KEYS = {sample_key(source, str(n)): (source, texts) for source, all in SOURCES.items() for n, texts in enumerate(all)}


def test_a_pass_has_every_caption_of_every_image_once(shards):
    loader = loader_of(shards, rows_per="caption")
    expected = Counter((key, f"c{n}") for key, (_, (captions, _)) in KEYS.items() for n in range(captions))
    assert sum(expected.values()) == 12 * 5 + 24 + 2
    for number in range(3):
        assert Counter(pass_of(loader, number)) == expected
    assert pass_of(loader, 0) != pass_of(loader, 1)


def test_without_the_option_an_image_is_one_row_with_one_of_its_captions(shards):
    loader = loader_of(shards)
    (stream,) = loader.streams
    keys = [loader.plan(stream, step, [])[index].row.key for step in range(2) for index in range(16)]
    assert stream.size() == 12 + 24 + 1
    assert len(set(keys)) == 32


def test_phrases_are_captions_so_many_of_an_image_in_a_pass_and_all_in_turn(shards):
    loader = loader_of(shards, rows_per="caption", region_captions=PHRASES)
    shown = defaultdict(Counter)
    for number in range(7):
        rows = Counter(pass_of(loader, number))
        assert set(rows.values()) == {1}
        for key, (source, (captions, phrases)) in KEYS.items():
            texts = [caption for owner, caption in rows if owner == key]
            assert sum(text.startswith("c") for text in texts) == captions
            own = [text for text in texts if text.startswith("p")]
            assert len(own) == (min(phrases, 4) if source == "vg" else 0)
            shown[key].update(own)
    for key, (source, (_, phrases)) in KEYS.items():
        if source == "vg" and phrases >= 4:  # 28 draws of 7 phrases: each four times
            assert set(shown[key]) == {f"p{n}" for n in range(phrases)}
            assert max(shown[key].values()) - min(shown[key].values()) <= 1


def test_rows_of_every_source_are_known_before_the_first_step(shards):
    (stream,) = loader_of(shards, rows_per="caption", region_captions=PHRASES, weights={"web": 2.5}).streams
    assert stream.rows_of_sources() == {"coco": 60, "vg": 9 * 4 + 3 + 2 + 4, "web": 60}
    assert stream.size() == 60 + 45 + 60
    (plain,) = loader_of(shards).streams
    assert plain.rows_of_sources() == {"coco": 12, "vg": 1, "web": 24}


def test_weights_of_sources_are_kept_step_by_step(shards):
    loader = loader_of(shards, sources=("coco", "web"), weights={"web": 0.5, "coco": 2})
    (stream,) = loader.streams
    assert stream.size() == 24 + 12
    drawn = [Counter(key for key, _ in pass_of_images(loader, number)) for number in range(4)]
    for counts in drawn:
        assert {times for key, times in counts.items() if KEYS[key][0] == "coco"} == {2}
        assert sum(KEYS[key][0] == "coco" for key in counts) == 12
        assert abs(sum(KEYS[key][0] == "web" for key in counts) - 12) <= 1
    web = Counter(key for counts in drawn for key in counts if KEYS[key][0] == "web")
    assert set(web.values()) == {2}
    assert len(web) == 24


def pass_of_images(loader, number):
    (stream,) = loader.streams
    size = stream.size()
    for position in range(number * size, (number + 1) * size):
        slot = SimpleNamespace(position=position, is_aux=False)
        place = stream.place(slot)
        yield stream.row(slot, place).key, place


def test_region_rows_of_a_source_stay_as_they_are(shards):
    """Phrases are captions of the image stream alone: no region image gets a row for a whole image."""
    regions = StreamConfig(kind="region", batch_size=32, num_images=12, sources=("vg",))
    images = StreamConfig(
        kind="image", batch_size=16, sources=("coco", "vg"), rows_per="caption", region_captions=PHRASES
    )
    data = {"seed": 5, "examples": {"max_tokens": 8}, "window_shards": 4}
    alone, both = (
        StepLoader(shards, DataConfig.model_validate({**data, "streams": streams}), TOKENIZER, 32, 16)
        for streams in ((regions,), (images, regions))
    )
    for step in range(3):
        one, other = alone[step].batches["region"], both[step].batches["region"]
        assert one.keys == other.keys
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.text_ids_BL, other.text_ids_BL)
        with_caption = [KEYS[key][1][0] > 0 for key in other.keys]
        assert not other.is_whole_image_R[~torch.tensor(with_caption)].any()


@pytest.mark.parametrize(("grain", "prefix"), [("region", "p"), ("object", "thing")])
def test_a_region_stream_of_one_grain_has_its_boxes_and_images_alone(shards, grain, prefix):
    """Images without such a box are no rows of it; the rest of the shard, and so its captions, stays."""
    regions = StreamConfig(kind="region", batch_size=24, num_images=12, sources=("vg", "web"), grains=(grain,))
    config = DataConfig.model_validate({"seed": 5, "streams": (regions,), "examples": {"max_tokens": 8}})
    loader = StepLoader(shards, config, TOKENIZER, 32, 16)
    (stream,) = loader.streams
    with_box = [texts for source, texts in KEYS.values() if source in ("vg", "web") and (texts[1] or grain == "object")]
    assert stream.size() == len(with_box) == (11 if grain == "region" else 36)
    keys = set()
    for step in range(8):
        batch = loader[step].batches["region"]
        keys |= set(batch.keys)
        for ids, length, whole in zip(batch.text_ids_BL, batch.lengths, batch.is_whole_image_R, strict=True):
            (text,) = TOKENIZER.tokens(ids[1 : length - 1].tolist())
            assert text.startswith("c" if whole else prefix)
    assert {KEYS[key][1][1] > 0 for key in keys} == ({True} if grain == "region" else {True, False})


def test_rows_of_one_image_are_cut_and_masked_each_in_its_own_way(shards):
    loader = loader_of(shards, rows_per="caption", sources=("coco",), batch_size=60)
    batch = loader[0].batches["image"]
    rows = defaultdict(list)
    for number, key in enumerate(batch.keys):
        rows[key].append(number)
    assert {len(found) for found in rows.values()} == {5}
    for found in rows.values():
        assert len({batch.pixels[row].numpy().tobytes() for row in found}) == 5
        assert len({tuple(batch.text_ids_BL[row].tolist()) for row in found}) == 5
        # They show one image: each other's positives, and never each other's hard negatives.
        assert len({int(batch.image_ids_B[row]) for row in found}) == 1


def same(first, second):
    return all(
        torch.equal(value, getattr(second, name))
        for name, value in vars(first).items()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_and_readers_together_see_the_batches_of_one_process(shards, world_size):
    options = {
        "rows_per": "caption", "region_captions": PHRASES, "weights": {"web": 0.4},
        "sources": ("coco", "web"), "aux_sources": ("vg",), "aux_share": 0.25,
    }  # fmt: skip
    whole = loader_of(shards, **options)
    parts = [
        iterate_steps(loader_of(shards, rank, world_size, **options), 3, 9, 1 if world_size == 2 else 0)
        for rank in range(world_size)
    ]
    seen_aux = set()
    for actual in zip(*parts, strict=True):
        step = actual[0].step
        expected = whole[step].batches["image"]
        seen_aux.add(actual[0].is_aux["image"])
        assert [key for data in actual for key in data.batches["image"].keys] == expected.keys
        assert torch.equal(torch.cat([data.batches["image"].pixels for data in actual]), expected.pixels)
        # Resumed at this step by a new process: the same.
        assert same(loader_of(shards, **options)[step].batches["image"], expected)
    assert seen_aux == {True, False}


def test_the_record_of_samples_tells_two_rows_of_one_broken_image_apart(tmp_path):
    """Both rows are replaced, by images of their own, and the record names these."""
    shards = captioned_shards(tmp_path, {"coco": [(6, 0)] * 8}, broken=[("coco", 2), ("coco", 5)])
    loader = loader_of(shards, rows_per="caption", batch_size=24)
    broken = {sample_key("coco", "2"), sample_key("coco", "5")}
    lines, keys = [], []
    for step in range(4):
        data = loader[step]
        lines.append({"step": step, "substitutes": substitutes_to_json(data.substitutes)})
        keys += [(step, "image", key) for key in data.batches["image"].keys]
    replaced = [item for line in lines for item in line["substitutes"] if item["key"] in broken]
    twice = Counter((line["step"], item["key"]) for line in lines for item in line["substitutes"])
    assert len(replaced) >= 24
    assert max(twice.values()) > 1
    assert len({item["used"] for item in replaced}) > 2
    recorded = {line["step"]: line["substitutes"] for line in lines}
    found = [row for table in consumed_samples(loader, 0, 4, recorded) for row in table.to_pylist()]
    assert [(row["step"], row["stream"], row["key"]) for row in found] == keys
    assert not broken & {key for _, _, key in keys}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "region", "num_images": 4, "rows_per": "caption"}, "rows_per: caption is for images and clips"),
        ({"region_captions": {"vg": 8}}, "region_captions has no effect without kind: image and rows_per: caption"),
        ({"kind": "video", "rows_per": "caption", "region_captions": {"vg": 8}}, "region_captions has no effect"),
        ({"grains": ["object"]}, "grains has no effect without kind: region"),
        ({"kind": "region", "num_images": 4, "grains": ["objects"]}, "grains.0: .*did you mean `object`"),
        ({"rows_per": "captions"}, "rows_per: .*did you mean `caption`"),
        (
            {"rows_per": "caption", "sources": ["coco", "visual_genome"], "region_captions": {"visual_genom": 8}},
            "region_captions: visual_genom is no source of this stream; did you mean `visual_genome`",
        ),
        ({"sources": ["coco"], "weights": {"sbu": 2}}, "weights: sbu is no source of this stream"),
        ({"weights": {"sbu": 0}}, "weights.sbu: .*greater than or equal to 0.001"),
        ({"weights": {"sbu": float("nan")}}, "weights.sbu: "),
        ({"weights": {"sbu": 1e9}}, "weights.sbu: .*less than or equal to 1000"),
        ({"rows_per": "caption", "region_captions": {"vg": 0}}, "region_captions.vg: .*greater than or equal to 1"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_when_it_is_loaded(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(StreamConfig, {"kind": "image", "batch_size": 4, **values}, "here.yaml")


@pytest.mark.parametrize(
    "stream",
    [
        {"rows_per": "caption", "region_captions": PHRASES},
        {"kind": "region", "num_images": 8, "grains": ("region",)},
        {"weights": {"coco": 2.0}},
    ],
    ids=["captions and phrases", "regions", "weights"],
)
def test_with_recorded_counts_a_start_opens_no_index(shards, stream, tmp_path):
    counts = count_rows([files.index for files in shards])
    counted = [replace(f, index=tmp_path / "none", counts=of) for f, of in zip(shards, counts, strict=True)]
    (ours,), (expected,) = (loader_of(files, **stream).streams for files in (counted, shards))
    assert ours.size() == expected.size()
    assert ours.rows_of_sources() == expected.rows_of_sources()
    with pytest.raises(CorruptArtifact, match="none"):
        pass_of(loader_of(counted, **stream))
