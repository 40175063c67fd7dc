"""A training that starts from published weights: which files count, what is filled, and who moves at which rate."""

import hashlib
import json
from pathlib import Path

import pydantic
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from transformers import BertConfig, BertForMaskedLM

from pipelines.flow.stage import Input, InputFile, InputPart, part_fingerprint
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.stage import PRETRAIN, plan_pretrain, pretrain_part
from pipelines.s5_pretrain.start import StartConfig, text_folder_files
from pipelines.s5_pretrain.start_weights import lay_down_start, load_start, random_model, started_model
from tests.support.training.corpus import DATA, MODEL, WORDS, make_shards
from tests.support.training.pretrain_part import LocalInputs, Out
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.models.checkpoints.reference import export_reference_state, reference_names
from x2vlm.models.x2vlm import build_model
from x2vlm.train.config import OptimizerConfig
from x2vlm.train.optim import new_parameter_names, parameter_groups

LR = 1e-3
CONFIG = PretrainConfig.model_validate(
    {
        "model": MODEL,
        "data": DATA,
        "start": {"vision": "beit.safetensors", "text": "bert"},
        "train": {
            "steps": 1,
            "warmup_steps": 0,
            "precision": "float32",
            "optimizer": {"lr": LR, "weight_decay": 0.0, "eps": 1e-15},
        },
        "world_size": 1,
    }
)


def _vision(seed: int = 5, depth: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    beit = Beit(
        img_size=32, patch_size=16, embed_dim=32, depth=depth, num_heads=2, num_classes=7, init_values=0.1,
        global_pool="avg", use_abs_pos_emb=False, use_rel_pos_bias=True,
    )  # fmt: skip
    return {name: value.clone() for name, value in beit.state_dict().items() if "index" not in name}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Local copies of a small BEiT-2 and BERT by slot, as the engine hands them over; under names of its own."""
    folder = tmp_path_factory.mktemp("backbones")
    save_file(_vision(), folder / "beit.safetensors")
    torch.manual_seed(6)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=40,
        )
    )  # fmt: skip
    bert.save_pretrained(folder / "bert")
    names = text_folder_files([file.name for file in (folder / "bert").iterdir()], "bert")
    assert names == ["config.json", "model.safetensors"]
    # The engine may keep a file under its hash: names come with the files, not from where they lie.
    weights = (folder / "beit.safetensors").rename(folder / "0f3c")
    return {
        "start_vision": {"beit.safetensors": weights},
        "start_text": {name: folder / "bert" / name for name in names},
        "start_model": {},
    }


def _input(slot: str, files: dict[str, Path]) -> tuple[Input, ...]:
    return tuple(
        Input(
            f"source:{slot}",
            "root",
            (
                InputPart(
                    name,
                    (InputFile(name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)),),
                ),
            ),
        )
        for name, path in files.items()
    )


@pytest.fixture(scope="module")
def inputs(backbones, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    shards = tuple(
        InputPart(
            f"{number:05d}",
            tuple(
                InputFile(file.name, 1, hashlib.sha256(file.read_bytes()).hexdigest(), str(file))
                for file in (one.media, one.index)
            ),
        )
        for number, one in enumerate(make_shards(folder))
    )
    return {
        "shards": (Input("pack/toy", "root-of-shards", shards),),
        "vocabulary": _input("vocabulary", {"vocab.txt": folder / "vocab.txt"}),
        **{slot: _input(slot, files) for slot, files in backbones.items()},
    }


def test_towers_are_the_backbones_and_the_rest_is_what_chance_gave(backbones):
    model, report = started_model(CONFIG, backbones)
    vision = _vision()
    text = load_file(backbones["start_text"]["model.safetensors"])
    state, chance = model.state_dict(), random_model(CONFIG).state_dict()
    assert torch.equal(state["vision.trunk.blocks.1.attn.qkv.weight"], vision["blocks.1.attn.qkv.weight"])
    assert torch.equal(state["vision.trunk.fc_norm.bias"], vision["fc_norm.bias"])
    query = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(state[f"text.encoder.{query}"], text[f"bert.{query}"])
    assert torch.equal(state["fusion.layers.0.self_attention.query.weight"], text[f"bert.{query}"])
    for name in ("fusion.layers.0.cross_attention.key.weight", "match_head.0.weight", "frame_position"):
        assert torch.equal(state[name], chance[name])
    assert sorted(report.missing) == sorted(new_parameter_names(model))
    origin = report.origins["vision_encoder.blocks.1.attn.qkv.weight"]
    assert origin == "vision: blocks.1.attn.qkv.weight"  # not where this machine keeps the file


def _train_one_step(config, inputs, folder):
    """(result, folder of outputs) of the whole stage."""
    out = Out(folder / "out", str(folder / "state"))
    out.path.mkdir()
    config = config.model_copy(update={"start": config.start.recorded()})
    (part,) = plan_pretrain(config, inputs)
    return pretrain_part(config, LocalInputs(), part, out), out.path


def _check_rates(folder):
    """The first step of Adam moves a number by the rate, whatever its gradient is."""
    before, after = load_file(folder / "state/start.safetensors"), load_file(folder / "out/model.safetensors")
    names = reference_names(build_model(MODEL))
    new = set(json.loads((folder / "out/start.json").read_text())["missing"])
    rates = {True: 2 * LR, False: LR}
    moved = {name: float((after[name] - before[name]).abs().max()) for name in names if name in after}
    assert len(moved) > 60
    for name, distance in moved.items():
        if name.endswith("key.bias"):
            continue  # softmax does not see it: its gradient is zero but for rounding
        assert distance == pytest.approx(rates[names[name] in new], rel=0.02), name
    return new


def test_every_parameter_moves_at_the_rate_its_origin_asks_for(inputs, tmp_path):
    result, _ = _train_one_step(CONFIG, inputs, tmp_path)
    new = _check_rates(tmp_path)
    start = result.summary["start"]
    assert start["num_missing"] == len(new)
    content = (tmp_path / "state/start.safetensors").read_bytes()
    assert start["weights_sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_workers_of_a_real_ray_start_from_the_same_weights_at_the_same_rates(inputs, tmp_path):
    import ray

    ray.init(num_cpus=4, include_dashboard=True)
    try:
        _train_one_step(CONFIG.model_copy(update={"world_size": 2}), inputs, tmp_path)
    finally:
        ray.shutdown()
    _check_rates(tmp_path)


def test_without_a_text_backbone_the_text_tower_is_new_too(backbones):
    config = CONFIG.model_copy(update={"start": StartConfig(vision="beit.safetensors")})
    model, report = started_model(config, backbones)
    groups = parameter_groups(model, OptimizerConfig(lr=LR), report.missing)
    rate_of = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert {rate_of[name] for name in rate_of if name.startswith("text.encoder")} == {2 * LR}
    assert {rate_of[name] for name in rate_of if name.startswith("vision.trunk")} == {LR}


def test_files_count_by_content_and_names_do_not(inputs):
    def fingerprint(config: PretrainConfig, changed: dict[str, tuple[Input, ...]]) -> str:
        config = config.model_copy(update={"start": config.start.recorded() if config.start else None})
        (part,) = plan_pretrain(config, {**inputs, **changed})
        return part_fingerprint(PRETRAIN, config, part)

    same = fingerprint(CONFIG, {})
    renamed = CONFIG.model_copy(update={"start": StartConfig(vision="/elsewhere/other.pth", text="my/bert")})
    assert fingerprint(renamed, {}) == same
    (one,) = inputs["start_vision"]
    file = one.parts[0].files[0]
    other = InputFile(file.path, file.bytes, "0" * 64, file.uri)
    changed = (Input(one.node, "root", (InputPart(file.path, (other,)),)),)
    assert fingerprint(CONFIG, {"start_vision": changed}) != same
    hub = [StartConfig(vision=f"timm/beit@{digit * 40}", text="my/bert") for digit in "ab"]
    first, second = (fingerprint(CONFIG.model_copy(update={"start": start}), {"start_vision": ()}) for start in hub)
    assert len({first, second, same}) == 3


def test_a_reference_checkpoint_and_a_saved_folder_give_the_same_start(tmp_path):
    phase1 = MODEL.model_copy(update={"num_frames": None})
    torch.manual_seed(9)
    teacher = build_model(phase1)
    torch.save({"model": export_reference_state(teacher)}, tmp_path / "model_state_epoch_9.th")
    save_pretrained(teacher, tmp_path / "saved")
    files = [
        {"model_state_epoch_9.th": tmp_path / "model_state_epoch_9.th"},
        {name: tmp_path / "saved" / name for name in ("config.json", "model.safetensors")},
    ]
    config = CONFIG.model_copy(update={"start": StartConfig(checkpoint="x")})
    for named in files:
        model, report = started_model(config, {"start_vision": {}, "start_text": {}, "start_model": named})
        assert report.missing == ["absolute_frame_pos_embed"]  # new in phase 2, and nothing else is
        for name, value in teacher.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


def test_a_model_that_looks_over_time_starts_from_one_that_averages_and_goes_on_from_itself(tmp_path):
    def start_from(folder):
        vision = MODEL.vision.model_copy(update={"temporal": "attention"})
        model = MODEL.model_copy(update={"num_frames": 2, "vision": vision})
        config = CONFIG.model_copy(update={"model": model, "start": StartConfig(checkpoint="x")})
        named = {name: folder / name for name in ("config.json", "model.safetensors")}
        return started_model(config, {"start_vision": {}, "start_text": {}, "start_model": named})

    torch.manual_seed(9)
    save_pretrained(build_model(MODEL.model_copy(update={"num_frames": 2})), tmp_path / "mean")
    model, report = start_from(tmp_path / "mean")
    names = reference_names(model)
    added = {names[name] for name, _ in model.named_parameters() if ".temporal." in name}
    assert set(report.missing) == added
    assert added
    groups = parameter_groups(model, OptimizerConfig(lr=LR, lr_multiplier=2), report.missing)
    new = {names[name] for group in groups if group["lr"] == 2 * LR for name, _ in group["params"]}
    assert new == added
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_pretrained(model, tmp_path / "attention")
    again, report = start_from(tmp_path / "attention")
    assert not report.missing
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_start_that_leaves_a_tower_at_random_is_refused(backbones, tmp_path):
    vision = MODEL.vision.model_copy(update={"depth": 3})
    deeper = CONFIG.model_copy(update={"model": MODEL.model_copy(update={"vision": vision})})
    with pytest.raises(ConfigError, match=r"16 parameters of the towers would stay at random.*vision_encoder.blocks.2"):
        started_model(deeper, backbones)


def test_what_is_laid_down_once_is_what_every_worker_loads(backbones, tmp_path):
    state = str(tmp_path / "state")
    job = lay_down_start(CONFIG, backbones, state)
    expected, _ = started_model(CONFIG, backbones)
    first, other = build_model(MODEL), build_model(MODEL)
    untouched = {name: value.clone() for name, value in other.state_dict().items()}
    assert load_start(first, job, is_first=True) == load_start(other, job, is_first=False) == job["new"]
    for name, value in expected.state_dict().items():
        assert torch.equal(first.state_dict()[name], value)
        assert torch.equal(other.state_dict()[name], untouched[name])
    assert lay_down_start(CONFIG, {}, state) == job  # resumed: read, not made again
    Path(job["weights"]).write_bytes(b"cut")
    with pytest.raises(CorruptArtifact, match=r"start\.safetensors: missing or changed"):
        load_start(first, job, is_first=True)


def test_a_hub_name_gives_the_files_of_its_commit(monkeypatch, tmp_path, backbones):
    """Out of a cache on disk, laid out as huggingface_hub does, with the network off."""
    commit, other = "c" * 40, "d" * 40
    for name in ("toy/bert", "toy/beit"):
        for revision in (commit, other):
            folder = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / revision
            folder.mkdir(parents=True)
            if name == "toy/beit":
                save_file(_vision(seed=5 if revision == commit else 6), folder / "model.safetensors")
            else:
                for file, path in backbones["start_text"].items():
                    (folder / file).write_bytes(path.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = StartConfig(vision=f"toy/beit@{commit}", text=f"toy/bert@{commit}")
    assert start.recorded() == start
    model, _ = started_model(CONFIG.model_copy(update={"start": start}), {slot: {} for slot in backbones})
    expected, _ = started_model(CONFIG, backbones)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_hub_name_is_refused_offline_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    name = f"google-bert/no-such-model-here@{'a' * 40}"
    config = CONFIG.model_copy(update={"start": StartConfig(text=name)})
    with pytest.raises(SourceUnavailable, match=r"google-bert/no-such-model-here: .*copy the folder by hand"):
        started_model(config, {"start_vision": {}, "start_text": {}, "start_model": {}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one"),
        ({"vision": "a.pth", "checkpoint": "b.th"}, "exactly one"),
        ({"node": "phase1", "checkpoint": "b.th"}, "exactly one"),
    ],
)
def test_a_start_is_one_thing(values, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        StartConfig(**values)


def test_a_text_folder_gives_the_files_its_weights_are_read_from():
    many = ["README.md", "config.json", "pytorch_model.bin", "model.safetensors", "tf_model.h5", "vocab.txt"]
    assert text_folder_files(many, "bert") == ["config.json", "model.safetensors"]
    assert text_folder_files(["config.json", "pytorch_model.bin"], "bert") == ["config.json", "pytorch_model.bin"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert text_folder_files(["config.json", *shards], "xlm") == ["config.json", shards[2], *shards[:2]]
    with pytest.raises(ConfigError, match=r"empty is no folder of a transformers model"):
        text_folder_files(["vocab.txt"], "empty")
