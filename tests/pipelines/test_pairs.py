"""The mix of the image stream: pairs per source as published, and drawn as planned from the sample and from a world."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import WorldConfig
from pipelines.experiment import load_experiment, shipped_experiments
from pipelines.project import PROJECT_ROOT
from pipelines.s5_pretrain.config import PretrainConfig
from tests.support.corpora.world import read
from tests.support.flow_helpers import run_stage_part, upstream_input
from tests.support.training.captioned import TOKENIZER, indexes_of
from x2vlm.data.loading.config import DataConfig, StreamConfig
from x2vlm.data.loading.loader import StepLoader
from x2vlm.samples import Grain, Sample

FILES = shipped_experiments()
SIZED = [name for name in sorted(FILES) if re.match(r"(base|large)_(4m|1b)_", name)]
FOUR_M = [name for name in SIZED if "_4m_" in name] + [name for name in sorted(FILES) if name.startswith("ablation_")]

# What is published. X-VLM's table: images of COCO, Visual Genome, SBU, CC3M and CC12M in millions, and COCO's captions.
IMAGES = {"coco": 110_000, "visual_genome": 100_000, "sbu": 860_000, "cc3m": 2_900_000, "cc12m": 11_100_000}
COCO_CAPTIONS = 550_000
# The released configurations: the pairs of the 4M set and of LAION. They do not tell those of Visual Genome:
# 5,114,489 - 550,000 - 860,000 - 2,900,000 = 804,489.
RELEASED_4M, RELEASED_LAION = 5_114_489, 1_323_042_683
PUBLISHED = {
    "coco": COCO_CAPTIONS,
    "visual_genome": RELEASED_4M - COCO_CAPTIONS - IMAGES["sbu"] - IMAGES["cc3m"],
    "sbu": IMAGES["sbu"],
    "cc3m": IMAGES["cc3m"],
    "cc12m": IMAGES["cc12m"],
    "laion_en": RELEASED_LAION,
}
# Captions of an image in the files, phrases of one of Visual Genome (5,408,689 of 108,077 images).
CAPTIONS = {"coco": 5, "visual_genome": 0, "sbu": 1, "cc3m": 1, "cc12m": 1}
PHRASES = {"visual_genome": 5_408_689 // 108_077}
TITLES = {
    "COCO": "coco", "Visual Genome": "visual_genome", "SBU": "sbu", "CC3M": "cc3m", "CC12M": "cc12m",
    "LAION": "laion_en",
}  # fmt: skip


def image_stream(config: PretrainConfig) -> StreamConfig:
    return next(stream for stream in config.data.streams if stream.kind == "image")


def planned(stream: StreamConfig) -> dict[str, float]:
    """Pairs of a pass by source: images times captions, with the phrases that a pass shows, times the weight."""
    assert stream.rows_per == "caption"
    found: dict[str, float] = {}
    for source in (*stream.sources, *stream.aux_sources):
        if source == "laion_en":
            found[source] = RELEASED_LAION * stream.weights.get(source, 1)
            continue
        texts = CAPTIONS[source] + min(PHRASES.get(source, 0), stream.region_captions.get(source, 0))
        found[source] = IMAGES[source] * texts * stream.weights.get(source, 1)
    return found


def told(name: str) -> dict[str, int]:
    """Pairs by source as the header of a recipe gives them, and what it calls their sum."""
    lines = FILES[name].read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# Pairs:"))
    end = next(n for n, line in enumerate(lines) if n > start and re.match(r"# [A-Z]\w+:", line))
    text = " ".join(line.removeprefix("# Pairs:").removeprefix("#").strip() for line in lines[start:end])
    found = {
        source: int(number.replace(",", ""))
        for title, source in TITLES.items()
        for number in re.findall(rf"\b{title} ([\d,]{{5,}})", text)
    }
    total = re.search(r"together ([\d,]+) of the released 5,114,489", text)
    assert total is not None
    return {**found, "together": int(total[1].replace(",", ""))}


@pytest.mark.parametrize("name", SIZED)
def test_pairs_of_every_source_are_the_published_ones_within_a_hundredth(name: str) -> None:
    experiment = load_experiment(name)
    for config in (*experiment.phases.values(), experiment.pretrain):
        plan = planned(image_stream(config))
        for source, pairs in plan.items():
            assert pairs == pytest.approx(PUBLISHED[source], rel=0.01), source
        four_m = {source: plan[source] for source in ("coco", "visual_genome", "sbu", "cc3m")}
        total = sum(four_m.values())
        assert total == pytest.approx(RELEASED_4M, rel=0.01)
        assert 100 * four_m["coco"] / total == pytest.approx(11, abs=0.5)
        assert 100 * four_m["visual_genome"] / total == pytest.approx(16, abs=0.5)
        # The released schedule: 101 passes of ceil(5,114,489 / 1,024) steps are its 504,495 steps.
        assert -(-RELEASED_4M // 1024) * 101 == 504_495
        assert total / 1024 * 101 == pytest.approx(504_495, rel=0.01)


@pytest.mark.parametrize("name", SIZED)
def test_the_header_of_a_recipe_counts_what_its_settings_give(name: str) -> None:
    experiment, header = load_experiment(name), told(name)
    plans = [planned(image_stream(one)) for one in (*experiment.phases.values(), experiment.pretrain)]
    together = {source: pairs for plan in plans for source, pairs in plan.items()}
    assert {source: header[source] for source in together} == pytest.approx(together, rel=1e-9)
    assert header.keys() == {*together, "together"}
    assert (
        header["together"]
        == sum(plans[-1].values())
        == sum(header[s] for s in ("coco", "visual_genome", "sbu", "cc3m"))
    )


@pytest.mark.parametrize("name", FOUR_M)
def test_every_recipe_on_the_4m_set_has_the_same_mix(name: str) -> None:
    stream = image_stream(load_experiment(name).pretrain)
    assert planned(stream) == planned(image_stream(load_experiment("base_4m_released").pretrain))


def test_a_row_per_image_would_be_another_data_set() -> None:
    """What the default of a stream gives on the 4M set: COCO 3 % and Visual Genome nothing."""
    total = sum(IMAGES[source] for source in ("coco", "sbu", "cc3m"))
    assert 100 * IMAGES["coco"] / total == pytest.approx(2.8, abs=0.1)
    (stream,) = [image_stream(load_experiment("sample").pretrain)]
    assert (stream.rows_per, stream.region_captions, stream.weights) == ("image", {}, {})


def texts_of(sample: Sample, stream: StreamConfig) -> int:
    """Pairs that an image gives in a pass, counted on the sample itself."""
    phrases = sum(concept.grain == Grain.REGION for concept in sample.concepts)
    return len(sample.captions) + min(phrases, stream.region_captions.get(sample.source, 0))


def drawn(samples: list[Sample], stream: StreamConfig, folder: Path) -> tuple[Counter[str], Counter[str], int]:
    """Rows by source of a whole pass of `stream`, in batches of its own size, and how often it draws each image."""
    small = stream.model_copy(update={"batch_size": 64, "negative_group_size": None})
    config = DataConfig(seed=3, streams=(small,))
    loader = StepLoader(indexes_of(folder, samples), config, TOKENIZER, 32, 16)
    source_of = {sample.key: sample.source for sample in samples}
    size = loader.streams[0].size()
    keys = [key for step in range(-(-size // 64)) for _, key in loader.consumed(step)][:size]
    return Counter(source_of[key] for key in keys), Counter(keys), size


def check_shares(samples: list[Sample], stream: StreamConfig, folder: Path) -> dict[str, int]:
    """A pass of the stream over these samples draws every source and image as planned; returns the plan."""
    plan = Counter({sample.key: texts_of(sample, stream) for sample in samples})
    by_source: Counter[str] = Counter()
    for sample in samples:
        by_source[sample.source] += plan[sample.key]
    sources, images, size = drawn(samples, stream, folder)
    assert size == sum(plan.values())
    assert +sources == +by_source
    assert +images == +plan
    return dict(+by_source)


def test_shares_on_a_world_of_2000_scenes_are_those_of_the_plan(tmp_path: Path) -> None:
    """The 4M sources of a world; the read stage, and a whole pass of the recipe's own stream, counted row by row."""
    sources = ("coco", "visual_genome", "sbu", "cc3m")
    build_world(WorldConfig(seed=11, scenes=2000, media="none", sources=sources), tmp_path / "world")
    samples = [
        sample
        for name in sources
        for sample in read(tmp_path / "world", name, PROJECT_ROOT, tmp_path / f"read-{name}")[0]
    ]
    stream = image_stream(load_experiment("base_4m_released").pretrain)
    plan = check_shares(samples, stream, tmp_path / "shards")
    assert plan.keys() == set(sources)
    of_genome = [sample for sample in samples if sample.source == "visual_genome"]
    assert len(of_genome) > 150
    assert not any(sample.captions for sample in of_genome)
    # A row per image would give Visual Genome nothing, and every image of COCO one row of its five.
    per_image, _, _ = drawn(samples, StreamConfig(kind="image", batch_size=64, sources=sources), tmp_path / "images")
    assert "visual_genome" not in per_image
    assert plan["coco"] / per_image["coco"] > 3


def test_shares_on_the_sample_are_those_of_the_plan(tmp_path: Path) -> None:
    """The shipped annotations of COCO, Visual Genome, CC3M and LAION, with the weights that a user may give."""
    samples = [sample for name in ("coco", "visual_genome", "cc3m", "laion") for sample in shipped(name, tmp_path)]
    values: dict[str, Any] = {"kind": "image", "batch_size": 64, "rows_per": "caption"}
    stream = StreamConfig(**values, region_captions={"visual_genome": 8})
    plan = check_shares(samples, stream, tmp_path / "plain")
    assert plan["visual_genome"] > 0
    weighted = stream.model_copy(update={"weights": {"cc3m": 3.0, "coco": 0.5}})
    sources, _, _ = drawn(samples, weighted, tmp_path / "weighted")
    # Half a source is a row more or less for a pass, and the next one begins that much earlier or later.
    for source, weight in (("visual_genome", 1), ("cc3m", 3), ("coco", 0.5)):
        assert sources[source] == pytest.approx(weight * plan[source], abs=2)


def shipped(name: str, folder: Path) -> list[Sample]:
    """What the read stage makes of a card of the shipped sample."""
    import pyarrow.parquet as pq

    from pipelines.s1_download.read import READ, read_config
    from x2vlm.data.cards import file_paths, load_card
    from x2vlm.samples import samples_of

    path = PROJECT_ROOT / "datasets" / "sample" / f"{name}.yaml"
    card = load_card(path)
    files = tuple(upstream_input(Path(file), name) for file in file_paths(card, PROJECT_ROOT).values())
    config = read_config(card)
    [part] = READ.plan_parts(config, {"card": (upstream_input(path, name),), "files": files})
    out = folder / f"read-{name}"
    run_stage_part(READ, config, part, out)
    return [sample for file in sorted(out.glob("rows-*")) for sample in samples_of(pq.read_table(file))]
