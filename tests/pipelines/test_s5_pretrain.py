"""The pretrain stage: its part, its outputs, resuming, and workers on a real Ray."""

import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pydantic
import pytest

from pipelines.flow.stage import Input, InputFile, InputPart, part_fingerprint
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.stage import PRETRAIN, plan_pretrain, pretrain_part
from pipelines.s5_pretrain.worker import fetch_shards
from tests.training_corpus import DATA, MODEL, WORDS, make_shards
from x2vlm import inference
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.models.hf import load_pretrained
from x2vlm.train.loop import TrainConfig
from x2vlm.train.metrics import read_metrics

STEPS = 4
CONFIG = PretrainConfig(
    model=MODEL,
    data=DATA,
    train=TrainConfig.model_validate(
        {"steps": STEPS, "warmup_steps": 1, "precision": "float32", "checkpoint_every": 2, "optimizer": {"lr": 2e-3}}
    ),
    world_size=1,
)


@dataclass(frozen=True)
class Out:
    """Where a part writes, as the engine would give it."""

    path: Path
    state_uri: str


class LocalInputs:
    """A PartReader over local files."""

    def local_path(self, file):
        return Path(file.uri)

    def open(self, file):
        return Path(file.uri).open("rb")


def _file(path):
    data = path.read_bytes()
    return InputFile(path.name, len(data), hashlib.sha256(data).hexdigest(), str(path))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    shards = make_shards(folder, broken=(3,))
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    parts = tuple(
        InputPart(f"{number:05d}", (_file(files.media), _file(files.index))) for number, files in enumerate(shards)
    )
    return {
        "shards": (Input("pack/toy", "root-of-shards", parts),),
        "vocabulary": (Input("source:vocabulary", "root", (InputPart("vocab", (_file(vocabulary),)),)),),
    }


def _run(config, inputs, folder):
    out = Out(folder / "out", str(folder / "state"))
    out.path.mkdir(parents=True)
    (part,) = plan_pretrain(config, inputs)
    return pretrain_part(config, LocalInputs(), part, out), out.path


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    return _run(CONFIG, inputs, tmp_path_factory.mktemp("run"))


def test_outputs_are_what_the_stage_promises(done, inputs):
    result, path = done
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "vocab.txt",
        "preprocessor_config.json",
        "README.md",
        "metrics.jsonl",
        "samples.parquet",
    }
    result.counts["rows"].check("pretrain")
    assert result.counts["rows"].num_out == STEPS
    assert [line["step"] for line in read_metrics(path / "metrics.jsonl")] == list(range(STEPS))
    assert result.summary["shards_root"] == "root-of-shards"
    assert result.summary["metrics"]["image/contrastive"] > 0
    assert json.loads((path / "config.json").read_text())["training"]["train"]["steps"] == STEPS
    assert load_pretrained(path / "config.json", path / "model.safetensors").config == MODEL


def test_the_folder_is_a_model_ready_for_use(done):
    _, path = done
    pretrained = inference.load(path)
    assert pretrained.model.config == MODEL
    config = pretrained.processor.config
    assert (config.max_tokens, config.frames_per_clip, config.image_res) == (12, 2, 32)
    features = inference.embed_texts(pretrained, ["a red square", "a blue bar"])
    assert features.norm(dim=-1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    card = (path / "README.md").read_text()
    assert "root-of-shards" in card
    assert f"| steps | {STEPS} |" in card
    assert "## Licence\n\nNot recorded." in card


def test_texts_longer_than_the_model_are_refused_before_training(inputs, tmp_path):
    text = MODEL.text.model_copy(update={"max_positions": 8})
    config = CONFIG.model_copy(update={"model": MODEL.model_copy(update={"text": text})})
    with pytest.raises(ConfigError, match="max_tokens is 12, the model has 8 positions"):
        _run(config, inputs, tmp_path)
    assert not (tmp_path / "state").exists()


def test_the_record_of_samples_is_complete_and_names_substitutes(done):
    result, path = done
    table = pq.read_table(path / "samples.parquet")
    assert table.num_rows == result.file_rows["samples.parquet"]
    rows = table.to_pylist()
    for step in range(STEPS):
        assert sum(row["step"] == step and row["stream"] == "image" for row in rows) == 4
        assert sum(row["step"] == step and row["stream"] == "video" for row in rows) == 4
    replaced = [
        (line["step"], item) for line in read_metrics(path / "metrics.jsonl") for item in line.get("substitutes", [])
    ]
    assert replaced
    assert result.summary["num_substitutes"] == len(replaced)
    recorded = {(row["step"], row["stream"], row["key"]) for row in rows}
    for step, item in replaced:
        assert (step, item["stream"], item["key"]) not in recorded
        assert (step, item["stream"], item["used"]) in recorded


def test_running_again_gives_the_same_weights(done, inputs, tmp_path):
    _, path = _run(CONFIG, inputs, tmp_path)
    assert (path / "model.safetensors").read_bytes() == (done[1] / "model.safetensors").read_bytes()
    assert (path / "samples.parquet").read_bytes() == (done[1] / "samples.parquet").read_bytes()


def test_the_part_reads_every_shard_and_its_fingerprint_knows_the_recipe(inputs):
    (part,) = plan_pretrain(CONFIG, inputs)
    assert [read.file.path for read in part.reads if read.slot == "shards"] == [
        f"shard-{number:05d}.{suffix}" for number in range(3) for suffix in ("tar", "parquet")
    ]
    other = CONFIG.model_copy(update={"world_size": 2})
    assert part_fingerprint(PRETRAIN, CONFIG, part) != part_fingerprint(PRETRAIN, other, part)


def test_a_vocabulary_that_does_not_fit_is_refused(inputs, tmp_path):
    small = MODEL.model_copy(update={"text": MODEL.text.model_copy(update={"vocab_size": 10})})
    with pytest.raises(ConfigError, match=r"model\.text\.vocab_size is 10"):
        _run(CONFIG.model_copy(update={"model": small}), inputs, tmp_path)


def test_a_changed_index_is_refused(inputs, tmp_path):
    part = inputs["shards"][0].parts[0]
    tar, index = part.files
    job = {"media": tar.uri, "media_sha256": tar.sha256, "index": index.uri, "index_sha256": "0" * 64}
    with pytest.raises(CorruptArtifact, match="rerun pack"):
        fetch_shards([job])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 3}, "no multiple of world_size"),
        ({"model": MODEL.model_copy(update={"num_frames": 1})}, "clips have 2 frames"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(change, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        PretrainConfig.model_validate(CONFIG.model_dump() | change)


@pytest.mark.slow
def test_a_killed_ray_worker_is_replaced_and_the_run_ends_the_same(inputs, tmp_path, monkeypatch):
    """Two workers on a real Ray; one kills itself after the first checkpoint. Weights equal an undisturbed run."""
    import ray

    import pipelines.s5_pretrain.worker as s5

    config = CONFIG.model_copy(update={"world_size": 2})
    ray.init(num_cpus=4, include_dashboard=True)  # without the dashboard, replacing a worker hangs in Ray 2.60
    try:
        _, undisturbed = _run(config, inputs, tmp_path / "undisturbed")
        marker = tmp_path / "killed"

        def dying_worker(job):
            """The stage's own worker, imported afresh in the worker's process, with a hook after every step."""
            import pipelines.s5_pretrain.worker as worker_side
            from x2vlm.train.loop import fit

            def fit_and_die_once(*args, **named):
                def on_step(step):
                    if args[3].rank == 1 and step == 2 and not marker.exists():
                        marker.touch()
                        os.kill(os.getpid(), signal.SIGKILL)

                return fit(*args, on_step=on_step, **named)

            worker_side.fit = fit_and_die_once
            worker_side.train_worker(job)

        monkeypatch.setattr(s5, "train_worker", dying_worker)
        _, disturbed = _run(config, inputs, tmp_path / "disturbed")
    finally:
        ray.shutdown()
    assert marker.exists()
    assert (disturbed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert [line["step"] for line in read_metrics(disturbed / "metrics.jsonl")] == list(range(STEPS))
