"""Every experiment that is shipped says what it costs, parses, and names cards and sources that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from pipelines import experiment as experiment_module
from pipelines.estimate import EstimateOptions, estimate
from pipelines.experiment import STAGES, Experiment, load_experiment, shipped_experiments
from pipelines.flow.stage import Part, part_fingerprint
from pipelines.graph import build_graph
from pipelines.project import PROJECT_ROOT
from pipelines.s2_filter import FilterConfig
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.start import StartConfig
from tests.support.experiments import experiment_file
from tests.support.settings import at, settings_of
from x2vlm.config import parse_config
from x2vlm.data.cards import load_card
from x2vlm.data.loading.config import AugmentConfig, ExampleConfig, RegionConfig
from x2vlm.errors import ConfigError
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.tasks.config import RetrievalConfig

FILES = shipped_experiments()
NAMES = sorted(FILES)
RECIPES = [name for name in NAMES if name.startswith(("base_", "large_", "ablation_"))]


@pytest.mark.parametrize("name", NAMES)
def test_the_header_gives_command_needs_and_expectation(name: str) -> None:
    header = "\n".join(line for line in FILES[name].read_text().splitlines() if line.startswith("#"))
    for word in ("# Run: ", "# Needs: ", "# Expect: ", f" {name}"):
        assert word in header, f"{name}: its header lacks {word!r}"


def with_local_files(experiment: Experiment, folder: Path) -> Experiment:
    """`experiment` with stand-ins for the files that a user has to bring to start from."""
    (folder / "bert").mkdir()
    for name in ("open_clip_config.json", "beit.pth", "bert/config.json", "bert/model.safetensors"):
        (folder / name).write_text("{}")

    def found(config: PretrainConfig) -> PretrainConfig:
        if config.start is None or config.start.vision is None:
            return config
        start = StartConfig(vision=str(folder / "beit.pth"), text=str(folder / "bert"))
        return config.model_copy(update={"start": start})

    phases = {name: found(config) for name, config in experiment.phases.items()}
    changes = {"clip_model": str(folder), "phases": phases, "pretrain": found(experiment.pretrain)}
    return experiment.model_copy(update=changes)


def trainings(experiment: Experiment) -> list[PretrainConfig]:
    return [*experiment.phases.values(), experiment.pretrain]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_becomes_a_graph_once_its_files_are_there(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    for source in experiment.sources.values():
        assert load_card(PROJECT_ROOT / "datasets" / f"{source.card}.yaml").reader
    graph = build_graph(with_local_files(experiment, tmp_path))
    named = {
        source
        for config in trainings(experiment)
        for stream in config.data.streams
        for source in (*stream.sources, *stream.aux_sources)
    }
    assert named == set(experiment.sources)
    assert {f"filter/{source}" for source in named} <= set(graph)
    assert f"decontaminate/{name}" in graph[f"partition/{name}"].inputs["decisions"]
    first = f"pretrain/{name}.phase1" if experiment.phases else f"pretrain/{name}"
    assert [len(graph[first].inputs[slot]) for slot in ("start_vision", "start_text", "start_model")] == [1, 2, 0]
    if experiment.phases:
        assert graph[f"pretrain/{name}"].inputs["start_model"] == (first,)


# The six released configurations, column by column: rows per GPU, GPUs, and what else they say.
RELEASED: dict[str, dict[str, Any]] = {
    "base_4m_released": {
        "gpus": 8, "image": 128, "region": (128, 50), "region_weight": 1.0, "tokens": 40, "lr": 1e-4, "warmup": 2500,
        "steps": 504_495, "stop_matching": None, "aux": None, "video": None, "gradient": 1 / 8,
    },
    "large_4m_released": {
        "gpus": 16, "image": 64, "region": (64, 25), "region_weight": 1.0, "tokens": 40, "lr": 5e-5, "warmup": 2500,
        "steps": 504_495, "stop_matching": None, "aux": None, "video": None, "gradient": 1 / 16,
    },
    "base_1b_released.phase1": {
        "gpus": 24, "image": 128, "region": (64, 26), "region_weight": 0.5, "tokens": 30, "lr": 1e-4, "warmup": 2500,
        "steps": 1_292_034, "stop_matching": 200_000, "aux": 0.15, "video": None, "gradient": 1 / 24,
    },
    "base_1b_released": {
        "gpus": 16, "image": 64, "region": (64, 26), "region_weight": 1.0, "tokens": 40, "lr": 6e-5, "warmup": 1000,
        "steps": 404_595, "stop_matching": None, "aux": None, "video": (40, 0.35), "gradient": 1 / 16,
    },
    "large_1b_released.phase1": {
        "gpus": 24, "image": 64, "region": (32, 14), "region_weight": 0.5, "tokens": 30, "lr": 5e-5, "warmup": 2500,
        "steps": 2_584_068, "stop_matching": 200_000, "aux": 0.15, "video": None, "gradient": 1 / 24,
    },
    "large_1b_released": {
        "gpus": 32, "image": 32, "region": (32, 14), "region_weight": 1.0, "tokens": 40, "lr": 3e-5, "warmup": 1000,
        "steps": 404_595, "stop_matching": None, "aux": None, "video": (20, 0.35), "gradient": 1 / 32,
    },
}  # fmt: skip
FOUR_M = ("coco", "visual_genome", "sbu", "cc3m")


@pytest.mark.parametrize("training", sorted(RELEASED))
def test_a_released_recipe_has_every_value_of_the_released_configuration(training: str) -> None:
    expected = RELEASED[training]
    name, _, phase = training.partition(".")
    experiment = load_experiment(name)
    config = experiment.phases[phase] if phase else experiment.pretrain
    gpus = expected["gpus"]
    assert config.world_size == gpus
    streams = {stream.kind: stream for stream in config.data.streams}
    image, region = streams["image"], streams["region"]
    assert image.batch_size == gpus * expected["image"]
    assert (region.batch_size, region.num_images) == tuple(gpus * number for number in expected["region"])
    assert (image.loss_weight, region.loss_weight) == (1.0, expected["region_weight"])
    assert image.sources == (("laion_en",) if phase else FOUR_M)
    assert image.aux_sources == ((*FOUR_M, "cc12m") if phase else ())
    assert (image.aux_share or None, image.match_main) == (expected["aux"], not phase)
    assert (experiment.pretrain.start is not None and experiment.pretrain.start.node is not None) == bool(
        experiment.phases
    )
    if expected["video"]:
        rows, aux_share = expected["video"]
        video = streams["video"]
        assert (video.batch_size, video.aux_share, video.loss_weight) == (gpus * rows, aux_share, 1.0)
        assert (video.sources, video.aux_sources) == (("howto100m", "yttemporal"), ("webvid",))
        assert config.data.examples.frames_per_clip == config.model.num_frames == 3
    else:
        assert "video" not in streams
        assert config.model.num_frames is None
    masking, examples = config.data.examples.masking, config.data.examples
    assert (examples.max_tokens, masking.prob, masking.max_masks) == (expected["tokens"], 0.5, 12)
    assert (masking.whole_word, masking.skipgram_prob, masking.skipgram_size) == (True, 0.2, 3)
    assert (examples.regions.max_regions, examples.regions.min_share_in_crop) == (5, 0.5)
    train = config.train
    assert (train.optimizer.lr, train.optimizer.lr_multiplier, train.optimizer.weight_decay) == (
        expected["lr"],
        2,
        0.01,
    )
    assert (train.warmup_steps, train.steps, train.clip_norm) == (expected["warmup"], expected["steps"], 1.0)
    assert train.stop_matching_at == expected["stop_matching"]
    assert train.objective.contrastive_gradient == pytest.approx(expected["gradient"])
    assert train.objective.negative_group_size == (expected["image"] if "4m" in name else None)
    if "1b" in name:
        per_gpu = [stream.negative_group_size for stream in (image, region)]
        assert per_gpu == [expected["image"], expected["region"][0]]
    assert train.objective.box_loss_on_whole_images is False
    model = config.model
    width, depth, heads = (768, 12, 12) if name.startswith("base") else (1024, 24, 16)
    assert (model.vision.width, model.vision.depth, model.vision.num_heads) == (width, depth, heads)
    assert (model.text.width, model.text.num_layers, model.text.num_heads) == (width, 12, heads)
    assert (model.fusion.num_layers, model.fusion.num_heads, model.fusion.intermediate) == (6, heads, 4 * width)
    assert (model.text.intermediate, model.vision.image_res, model.vision.patch_size) == (4 * width, 224, 16)
    assert (model.embed_dim, model.temperature) == (256, 0.07)


# Settings that have a value "reference" and that a released recipe does not set, and why.
NOT_SET = {
    ("model", "text_drop_path_parity"): "the released pre-training configurations drop no path of the text layers",
    ("train", "rate_parity"): "the released configurations have no minimum rate, and both formulas are the same",
    ("train", "objective", "contrastive_gradient"): "a number, so that it does not depend on our GPUs: RELEASED above",
    ("train", "optimizer", "adamw"): "the default",
}


def parity_settings(config: type[pydantic.BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every setting below `config` that can be "reference"."""
    for path, kind in settings_of(config, above):
        if "'reference'" in str(kind):
            yield path


@pytest.mark.parametrize("training", sorted(RELEASED))
def test_a_released_recipe_sets_every_option_that_changes_what_is_learned(training: str) -> None:
    """A parity option that is added later and that no released recipe sets fails here, unless `NOT_SET` says why."""
    name, _, phase = training.partition(".")
    experiment = load_experiment(name)
    config = experiment.phases[phase] if phase else experiment.pretrain
    found = set(parity_settings(PretrainConfig))
    assert {path for path in found if at(config, path) != "reference"} == NOT_SET.keys() - {
        ("train", "optimizer", "adamw")
    }
    assert found >= {
        ("data", "examples", "masking", "parity"),
        ("data", "examples", "augment", "parity"),
        ("train", "objective", "parity"),
    }
    examples, objective = config.data.examples, config.train.objective
    assert examples.regions.whole_pixels
    assert not examples.augment.careful_flip
    assert not examples.augment.same_for_all_frames
    assert not examples.augment.scaled_decode
    assert objective.same_image_negatives
    assert objective.contrastive_targets == "row"
    # None of this is the default, and no other family has it.
    assert PretrainConfig().train.objective == ObjectiveConfig()
    for other in ("paper", "recommended"):
        for one in trainings(load_experiment(name.replace("released", other))):
            assert one.data.examples.augment == AugmentConfig()
            assert one.data.examples.regions == RegionConfig()
            assert one.data.examples.masking.parity is None
            assert one.train.objective == ObjectiveConfig(exclude_equal_texts=other == "recommended")


def table_of(name: str, section: str) -> list[tuple[str, ...]]:
    """The rows of a table in the header of a recipe, without its first one."""
    lines = FILES[name].read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"# {section}:"))
    rows = []
    for line in lines[start:]:
        text = line.removeprefix(f"# {section}:").removeprefix("#").strip()
        if not text.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in text.strip("|").split("|")))
    assert len({len(row) for row in rows}) == 1
    return rows[1:]


FAMILIES = {"Differs": "released", "Open": "paper", "Why": "recommended"}
SIZES = ("base_4m", "base_1b", "large_4m", "large_1b")


@pytest.mark.parametrize("section", FAMILIES)
def test_every_recipe_of_a_family_has_its_table_and_equal_rows_where_they_mean_the_same(section: str) -> None:
    tables = {size: table_of(f"{size}_{FAMILIES[section]}", section) for size in SIZES}
    for size, rows in tables.items():
        assert len(rows) >= 7, size
        assert all(all(row) for row in rows), size
        assert len({row[0] for row in rows}) == len(rows), size
    for four, large in (("base_4m", "base_1b"), ("large_4m", "large_1b")):
        assert {row[0] for row in tables[four]} - {row[0] for row in tables[large]} <= {
            row[0] for row in tables[four] if "groups" in row[0] or "steps" in row[0]
        }


@pytest.mark.parametrize("size", SIZES)
def test_what_a_released_recipe_says_to_differ_does(size: str) -> None:
    name = f"{size}_released"
    told = {row[0]: row[1] for row in table_of(name, "Differs")}
    experiment = load_experiment(name)
    assert experiment.decontaminate is not None
    assert experiment.decontaminate.rule.policy == "paper"
    assert "test images by policy `paper`, our reading" in told
    assert told["bfloat16"].startswith("fp16")
    assert {config.train.precision for config in trainings(experiment)} == {"bfloat16"}
    assert told["a checkpoint every 5,000 steps"].startswith("every 50,000")
    assert "checkpoint_every: 5000" in FILES[name].read_text()
    assert "every batch mixes its sources" in told
    assert "every row once per pass" in told
    assert all(stream.weights == {} for config in trainings(experiment) for stream in config.data.streams)
    assert "region rows chosen from 50 images or more" in told
    for config in trainings(experiment):
        region = next(stream for stream in config.data.streams if stream.kind == "region")
        assert (region.num_images or 0) / region.row_groups >= 50
    shares = {stream.aux_share for config in trainings(experiment) for stream in config.data.streams} - {0.0}
    assert ("exactly 15 % clean and 35 % WebVid batches" in told) == (shares == {0.15, 0.35}) == ("1b" in size)
    assert ("a clip is one row" in told) == ("1b" in size)


@pytest.mark.parametrize("size", SIZES)
def test_what_a_paper_recipe_says_of_open_questions_is_what_it_does(size: str) -> None:
    name = f"{size}_paper"
    told, released = dict(table_of(name, "Open")), load_experiment(f"{size}_released")
    for config, theirs in zip(trainings(load_experiment(name)), trainings(released), strict=True):
        masking, regions = config.data.examples.masking, config.data.examples.regions
        assert told["most masked tokens, groups"].startswith(f"{masking.max_masks}; whole words, n-grams of 2 and 3")
        assert (masking.skipgram_prob, masking.skipgram_size, masking.whole_word) == (0.2, 3, True)
        assert (regions.max_regions, regions.min_share_in_crop) == (5, 0.5)
        for stream, other in zip(config.data.streams, theirs.data.streams, strict=True):
            assert (stream.batch_size, stream.num_images) == (other.batch_size, other.num_images)
            size_of_group = other.negative_group_size or theirs.train.objective.negative_group_size
            assert stream.negative_group_size == size_of_group
            if stream.kind == "region":
                assert f"{stream.batch_size:,} of {stream.num_images}" in told["regions of a step"]
            assert str(size_of_group) in told["hard negatives come from"]
        assert config.train.optimizer.model_dump(exclude={"lr"}) == theirs.train.optimizer.model_dump(exclude={"lr"})
        assert config.train.precision == "bfloat16"


@pytest.mark.parametrize("size", SIZES)
def test_a_recommended_recipe_has_our_defaults_the_papers_filters_and_the_released_regions(size: str) -> None:
    ours, paper, released = (load_experiment(f"{size}_{family}") for family in ("recommended", "paper", "released"))
    assert ours.sources.keys() == released.sources.keys()
    assert {name: one.filter for name, one in paper.sources.items()}.items() <= {
        name: one.filter for name, one in ours.sources.items()
    }.items()
    assert (ours.filter, ours.decontaminate) == (paper.filter, paper.decontaminate)
    why = dict(table_of(f"{size}_recommended", "Why"))
    assert (ours.train_runtime.validate_every, ours.train_runtime.checkpoint_every) == (5000, 5000)
    for config, theirs in zip(trainings(ours), trainings(released), strict=True):
        assert config.data.examples == ExampleConfig(max_tokens=40)
        assert (config.train.stop_matching_at, config.train.matching_follows) == (None, None)
        assert config.train.objective.exclude_equal_texts
        assert 0 < config.data.validation_share <= 0.002
        for stream, other in zip(config.data.streams, theirs.data.streams, strict=True):
            assert stream.model_dump(exclude={"negative_group_size"}) == other.model_dump(
                exclude={"negative_group_size"}
            )
            group = other.negative_group_size or theirs.train.objective.negative_group_size
            assert stream.negative_group_size == group
            assert any(key.startswith("negatives from groups") and str(group) in key for key in why)
        assert config.train.optimizer == theirs.train.optimizer
        assert config.model == theirs.model
    assert f"{ours.pretrain.train.steps:,} steps" in " ".join(why) or "1b" in size
    if "4m" in size:
        assert ours.pretrain.train.steps == paper.pretrain.train.steps


@pytest.mark.parametrize("name", [name for name in RECIPES if "paper" in name])
def test_a_recipe_of_the_paper_has_what_the_paper_states(name: str) -> None:
    experiment = load_experiment(name)
    for config in trainings(experiment):
        assert config.data.examples.max_tokens == 30  # X2-VLM A.2
        assert config.data.examples.masking.prob == 0.4  # X2-VLM 3.3.1
        assert config.train.objective.contrastive_gradient == "true"  # as equations are written
        assert config.model.vision.image_res == 224
    first = trainings(experiment)[0]
    assert first.train.optimizer.lr == (1e-4 if name.startswith("base") else 5e-5)
    assert first.train.warmup_steps == 2500
    if "4m" in name:
        assert first.train.steps == (500_000 if name.startswith("base") else 250_000)
        assert first.world_size == (8 if name.startswith("base") else 16)
        assert first.data.streams[0].batch_size == 1024
        assert set(experiment.sources) == set(FOUR_M)


def test_each_ablation_differs_from_ours_in_what_its_name_says_and_in_nothing_else() -> None:
    def values(name: str) -> dict[str, Any]:
        return load_experiment(f"ablation_{name}").model_dump(exclude={"name"})

    ours = values("ours")
    assert ours["pretrain"]["train"]["steps"] == 100_000  # X2-VLM 4.6
    for name, field in (("no_aligning", "align_regions"), ("no_box", "locate_regions")):
        other = values(name)
        assert other["pretrain"]["train"]["objective"].pop(field) is False
        assert ours["pretrain"]["train"]["objective"][field] is True
        other["pretrain"]["train"]["objective"][field] = True
        assert other == ours
    for name, kept in (("no_object", "region"), ("no_region", "object")):
        other = values(name)
        # In the stream and not in the shards: region phrases go on to be captions, and all ablations share shards.
        images, regions = other["pretrain"]["data"]["streams"]
        assert regions.pop("grains") == (kept,)
        regions["grains"] = ()
        assert images["region_captions"] == {"visual_genome": 8}
        assert other == ours
    other = values("no_grains")
    streams = ours["pretrain"]["data"]["streams"]
    assert other["pretrain"]["data"]["streams"] == tuple(stream for stream in streams if stream["kind"] == "image")
    other["pretrain"]["data"]["streams"] = streams
    assert other == ours


def test_the_two_temporal_recipes_differ_in_how_frames_meet_and_in_nothing_else() -> None:
    mean, attention = (
        load_experiment(f"ablation_temporal_{name}").model_dump(exclude={"name"}) for name in ("mean", "attention")
    )
    assert mean["pretrain"]["model"]["vision"].pop("temporal") == "mean"
    assert attention["pretrain"]["model"]["vision"].pop("temporal") == "attention"
    assert mean == attention
    # What is known: 100,000 steps (X2-VLM 4.6), 3 frames (A.2), and the 4M set as in the other ablations.
    assert mean["pretrain"]["train"] == load_experiment("ablation_ours").model_dump()["pretrain"]["train"]
    assert mean["pretrain"]["data"]["examples"]["frames_per_clip"] == mean["pretrain"]["model"]["num_frames"] == 3
    ours, large = load_experiment("ablation_ours"), load_experiment("base_1b_paper")
    images, regions, clips = load_experiment("ablation_temporal_mean").pretrain.data.streams
    assert (images, regions) == ours.pretrain.data.streams
    assert clips == large.pretrain.data.streams[2]
    for name, source in load_experiment("ablation_temporal_mean").sources.items():
        assert source == large.sources[name]
    assert mean["filter"] == large.filter.model_dump()


@pytest.mark.parametrize("name", RECIPES)
def test_the_hours_of_a_header_are_what_the_estimate_says(name: str) -> None:
    header = " ".join(line.removeprefix("#").strip() for line in FILES[name].read_text().splitlines() if "#" in line)
    told = [
        (int(a100.replace(",", "")), int(h200.replace(",", "")))
        for a100, h200 in re.findall(r"([\d,]+) GPU hours on A100 .*?, ([\d,]+) on H200", header)
    ]
    phases = estimate(load_experiment(name), EstimateOptions(gpus=("A100-80", "H200")))
    assert told == [tuple(round(gpu.gpu_hours) for gpu in phase.gpus) for phase in phases]
    assert "estimated, not measured" in header


def test_an_unknown_experiment_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `large_4m_released`"):
        load_experiment("large_4m_relased")
    with pytest.raises(ConfigError, match=r"there are: ablation_no_aligning, .*sample, world"):
        load_experiment("zzz")


def test_an_experiment_is_found_by_its_bare_name_in_whichever_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {FILES[name].parent.name for name in RECIPES} == {"base", "large", "ablations"}
    assert load_experiment("base_4m_paper").name == "base_4m_paper"
    monkeypatch.setattr(experiment_module, "EXPERIMENTS", tmp_path)
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"two experiments are called twin: .*one/twin.yaml and .*other/twin.yaml"):
        load_experiment("twin")


ANY_SIZE = FilterConfig(min_short_edge=None, max_aspect_ratio=None)
AS_PUBLISHED = FilterConfig(min_short_edge=None, max_aspect_ratio=None, patch_size=0, region_text_overlap=None)
CLIPS = ("webvid", "howto100m", "yttemporal")


@pytest.mark.parametrize(
    ("name", "of_clean_images"),
    [
        *(
            (f"{size}_1b_{by}", rules)
            for size in ("base", "large")
            for by, rules in (("paper", ANY_SIZE), ("released", AS_PUBLISHED), ("recommended", ANY_SIZE))
        ),
        *((f"ablation_temporal_{how}", ANY_SIZE) for how in ("mean", "attention")),
    ],
)
def test_web_pairs_and_clips_are_filtered_by_the_papers_rules_and_clean_images_are_not(
    name: str, of_clean_images: FilterConfig
) -> None:
    experiment = load_experiment(name)
    for source, config in experiment.sources.items():
        expected = None if source in ("laion_en", *CLIPS) else of_clean_images
        assert config.filter == expected, source
    assert experiment.filter == FilterConfig(languages=("en",))


@pytest.mark.parametrize("name", NAMES)
def test_no_file_writes_the_same_filter_twice(name: str) -> None:
    raw = yaml.safe_load(FILES[name].read_text())
    filters = [*raw.get("filters", {}).values(), *(source.get("filter") for source in raw["sources"].values())]
    written = [str(value) for value in filters if isinstance(value, dict)]
    assert len(written) == len(set(written))


def sample_with(sources: dict[str, Any], filters: Any = None) -> dict[str, Any]:
    values = yaml.safe_load(FILES["sample"].read_text())
    values["sources"] = {name: {**value, **sources.get(name, {})} for name, value in values["sources"].items()}
    return {"name": "sample", **values} | ({} if filters is None else {"filters": filters})


def test_a_named_filter_is_the_same_experiment_as_one_written_out() -> None:
    rules = {"min_short_edge": 16, "languages": ["en"]}
    written = Experiment.model_validate(sample_with({"cc3m": {"filter": rules}, "laion": {"filter": rules}}))
    named = parse_config(
        Experiment, sample_with({"cc3m": {"filter": "web"}, "laion": {"filter": "web"}}, {"web": rules}), "here"
    )
    assert named.model_dump() == written.model_dump()
    assert parse_config(Experiment, named.model_dump(), "again").model_dump() == written.model_dump()
    assert [build_graph(e)["filter/laion"].config for e in (named, written)] == [FilterConfig.model_validate(rules)] * 2


@pytest.mark.parametrize(
    ("sources", "filters", "message"),
    [
        ({"laion": "wbe"}, {"web": {}}, "sources.laion.filter: no filter .* called 'wbe'; did you mean `web`"),
        ({"laion": "web"}, None, "sources.laion.filter: no filter of `filters` is called 'web'"),
        ({}, {"web": {}}, "sources: none names the filter `web` of `filters`; write `filter: web` at one, or take"),
        (
            {"laion": "web"},
            {"web": {"min_short_egde": 3}},
            "filters.web.min_short_egde: .*did you mean `min_short_edge`",
        ),
        ({"laion": "web"}, {"web": {"patch_size": -1}}, "filters.web.patch_size: .*got -1"),
        ({"laion": "web"}, ["web"], "filters: Input should be a valid dict"),
        ({"laion": {"patch_siez": 1}}, None, "sources.laion.filter.patch_siez: unknown key; did you mean `patch_size`"),
    ],
)
def test_a_wrong_name_of_a_filter_is_told_with_file_and_field(
    sources: dict[str, Any], filters: Any, message: str
) -> None:
    values = sample_with({name: {"filter": value} for name, value in sources.items()}, filters)
    with pytest.raises(ConfigError) as caught:
        parse_config(Experiment, values, "here.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("here.yaml: ")
    assert re.match(f"  {message}", lines[1])
    assert len(lines) == (3 if sources == {"laion": "wbe"} else 2)  # `wbe` is unknown, and so nothing names `web`


def test_the_options_of_an_evaluation_are_checked_when_the_file_is_loaded(tmp_path: Path) -> None:
    values = sample_with({})
    values["evaluate"]["retrieval"] |= {"batch_size": 4, "options": {"shortlist": 3}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    config = build_graph(load_experiment(str(path)))["evaluate/retrieval"].config
    assert config.model_dump() == {
        "task": "retrieval",
        "batch_size": 4,
        "options": RetrievalConfig(shortlist=3).model_dump(),
        "split": "",
        "card": "",
        "card_split": "",
        "known_as": (),
    }
    for change, message in (
        (
            {"options": {"shortlst": 3}},
            r"mine.yaml: .*\n  evaluate.retrieval.options.shortlst: .*did you mean `shortlist`",
        ),
        ({"known_as": ["coco"]}, r"known_as needs `data`"),
        ({"optoins": {}}, r"evaluate.retrieval.optoins: unknown key; did you mean `options`"),
        ({"task": "retreival"}, r"evaluate.retrieval.task: .*did you mean `retrieval`"),
    ):
        broken = {**values, "evaluate": {"retrieval": {**values["evaluate"]["retrieval"], **change}}}
        path.write_text(yaml.safe_dump(broken))
        with pytest.raises(ConfigError, match=message):
            load_experiment(str(path))


def test_the_two_4m_recipes_differ_where_paper_and_release_do() -> None:
    paper, released = load_experiment("base_4m_paper"), load_experiment("base_4m_released")
    assert set(released.sources) - set(paper.sources) == {"refcoco", "gqa", "flickr_entities"}
    assert paper.filter.patch_size == 16
    assert released.filter.patch_size == 0
    policies = [one.decontaminate.rule.policy for one in (paper, released) if one.decontaminate]
    assert policies == ["strict", "paper"]
    assert paper.pretrain.data.examples.masking.prob == 0.4  # X2-VLM 3.3.1
    assert released.pretrain.data.examples.masking.prob == 0.5


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"scores": {"num_cpus": 2}}, "runtime.scores: no stage has that name; did you mean `score`"),
        ({"pre_train": {"num_gpus": 1}}, "did you mean `pretrain`"),
        ({"pretrain": {"num_cpus": 8}}, "runtime.pretrain.num_cpus: has no effect.*cpus_per_worker"),
        ({"pretrain": {"num_gpus": 1, "max_retries": 9}}, "runtime.pretrain.max_retries: has no effect"),
        ({"score": {"num_gpus": 1.5}}, "runtime.score.num_gpus: .*whole ones"),
        ({"score": {"num_gpu": 1}}, "runtime.score.num_gpu: .*did you mean `num_gpus`"),
    ],
)
def test_a_runtime_that_cannot_take_effect_is_refused(
    runtime: dict[str, dict[str, float]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(experiment_file(tmp_path, runtime=runtime)))


def test_runtimes_reach_every_stage(tmp_path: Path) -> None:
    """Each name of `STAGES` is a stage of the graph, and the other way round; placement changes no fingerprint."""
    runtime = {stage: {"num_gpus": 0.5} for stage in STAGES}
    files = {split: f"{split}.csv" for split in ("train", "val", "test")}
    learned = {"task": "classification", "data": {"reader": "own_labels", "files": files}, "finetune": {"epochs": 1}}
    more = {"deduplicate": {"max_rows_per_caption": 9}, "evaluate": {"colours": learned}}
    graph = build_graph(load_experiment(str(experiment_file(tmp_path, runtime=runtime, **more))))
    assert {node.stage.name for node in graph.values()} == set(STAGES)
    assert {node.runtime.num_gpus for node in graph.values()} == {0.5}
    plain = build_graph(load_experiment(str(experiment_file(tmp_path, **more))))
    for key, node in graph.items():
        part = Part("part")
        assert part_fingerprint(node.stage, node.config, part) == part_fingerprint(node.stage, plain[key].config, part)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_never_trains_on_cpus(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.runtime["pretrain"].num_gpus == 1
    assert experiment.runtime["score"].num_gpus == 0.25
