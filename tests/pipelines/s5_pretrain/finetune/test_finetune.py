"""The finetune part: what it writes, which epoch it keeps, and what it refuses before the first batch."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipelines.flow.stage import Input
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.stage import finetune_part, plan_finetune
from tests.support.training.finetuning import LABELS, toy_config, toy_inputs, toy_split
from tests.support.training.pretrain_part import LocalInputs, Out
from x2vlm.errors import ConfigError, StageFailed
from x2vlm.inference.task_folder import load_task_model
from x2vlm.train.config import TrainRuntime
from x2vlm.train.metrics import read_metrics


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_inputs(tmp_path_factory.mktemp("inputs"))


def finetune(inputs, folder, config=None, **runtime):
    config = config or toy_config()
    (part,) = plan_finetune(config, inputs)
    out = Out(folder / "out", str(folder / "state"))
    out.path.mkdir(parents=True)
    return finetune_part(config, LocalInputs(), part, out, TrainRuntime(**runtime)), out


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    return finetune(inputs, tmp_path_factory.mktemp("finished"), checkpoint_every=2)


def test_a_folder_with_task_and_head_comes_out(finished):
    result, out = finished
    assert {path.name for path in out.path.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt", "README.md"),
        *("task.json", "head.safetensors", "metrics.jsonl", "selection.json", "samples.parquet"),
    }
    saved = load_task_model(out.path)
    assert (saved.task, tuple(saved.labels)) == ("classification", LABELS)
    assert result.counts["rows"].num_out == 9  # 3 epochs of 14 rows in batches of 4
    assert [line["step"] for line in read_metrics(out.path / "metrics.jsonl")] == list(range(9))
    samples = pq.read_table(out.path / "samples.parquet")
    assert samples.num_rows == 36
    assert set(samples["key"].to_pylist()) == {f"train-{number}" for number in range(14)}


def test_every_epoch_is_measured_and_the_best_is_kept(finished):
    _, out = finished
    told = json.loads((out.path / "selection.json").read_text())
    assert [item["epoch"] for item in told["epochs"]] == [0, 1, 2]
    assert [item["step"] for item in told["epochs"]] == [3, 6, 9]
    scores = [item["score"] for item in told["epochs"]]
    assert told["epoch"] == scores.index(max(scores))
    assert (told["label"], told["splits"]) == ("best epoch on the validation split", ["val"])
    kept = load_file(f"{out.state_uri}/checkpoints/step-{3 * (told['epoch'] + 1):08d}/model.safetensors")
    saved = load_task_model(out.path).model.state_dict()
    assert all(torch.equal(kept[name], saved[name]) for name in kept)


def test_a_model_learns_the_toy_task(inputs, tmp_path):
    _, out = finetune(inputs, tmp_path, toy_config(epochs=15, optimizer={"lr": 4e-3}))
    told = json.loads((out.path / "selection.json").read_text())
    losses = [line["loss"] for line in read_metrics(out.path / "metrics.jsonl")]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert max(item["score"] for item in told["epochs"]) > 25  # four colours


def test_the_last_epoch_needs_no_other_split(inputs, tmp_path):
    train_only = {**inputs, "data": (replace(inputs["data"][0], parts=inputs["data"][0].parts[:1]),)}
    _, out = finetune(train_only, tmp_path, toy_config(epochs=1, selection="last"))
    told = json.loads((out.path / "selection.json").read_text())
    assert (told["label"], told["epoch"], told["epochs"]) == ("last epoch", 0, [])
    with pytest.raises(ConfigError, match=r"no split val; they have train\. Name its files"):
        plan_finetune(toy_config(), train_only)


def test_reference_selection_reads_the_test_split_and_says_so(inputs, tmp_path):
    config = toy_config(epochs=2, selection="reference", reference_splits=("val", "test"))
    result, out = finetune(inputs, tmp_path, config)
    told = json.loads((out.path / "selection.json").read_text())
    for item in told["epochs"]:
        assert item["score"] == pytest.approx(sum(item["splits"][name]["headline"] for name in ("val", "test")) / 2)
    assert "as the reference" in result.summary["selection"]["label"]
    assert result.summary["selection"]["splits"] == ["val", "test"]


def test_another_resolution_and_drop_path_are_in_the_saved_model(tmp_path):
    inputs = toy_inputs(tmp_path / "inputs", image_res=64)
    config = toy_config(epochs=1, image_res=48, drop_path=0.1, max_tokens=9)
    _, out = finetune(inputs, tmp_path, config)
    saved = load_task_model(out.path)
    assert saved.model.config.vision.image_res == saved.processor.config.image_res == 48
    assert saved.model.config.text_drop_path == saved.model.config.cross_drop_path == 0.1
    assert saved.processor.config.max_tokens == 9


def test_low_rank_adapters_are_merged_into_a_plain_model(inputs, tmp_path):
    """Only attention and the head change, each weight of it by a term of the rank asked for."""
    _, out = finetune(inputs, tmp_path, toy_config(epochs=2, lora={"rank": 2, "alpha": 4.0}))
    first = load_file(f"{out.state_uri}/start.safetensors")
    saved = load_task_model(out.path).model.state_dict()
    changed = {name for name in first if not torch.equal(first[name], saved[name])}
    weights = {name for name in changed if name.startswith("base.")}
    for part in ("attn.qkv", "attn.proj", "attention.self.query", "cross_attention.value"):
        assert any(part in name for name in weights), part
    assert all("att" in name and name.endswith(".weight") for name in weights)
    assert any(name.startswith("head.") for name in changed)
    for name in weights:
        assert torch.linalg.matrix_rank(saved[name].double() - first[name].double(), atol=1e-6) <= 2
    told = json.loads((out.path / "selection.json").read_text())
    assert len(told["epochs"]) == 2


def other_data(inputs, *parts):
    names = {part.name for part in parts}
    kept = tuple(part for part in inputs["data"][0].parts if part.name not in names)
    return {**inputs, "data": (Input("task_data/toy", "other", (*kept, *parts)),)}


@pytest.mark.parametrize(
    ("split", "numbers", "labels", "message"),
    [
        (
            "val",
            range(100, 108),
            ("red", "pink", "mauve"),
            r"split val: 2 of its 3 answers are not among the 4.*'pink', 'mauve'",
        ),
        ("val", range(4), LABELS, r"every example of split val is one of split train; give the files of val"),
        ("train", range(14), ("yes", "no"), r"split train: none of the answers, such as 'red', is in the list of .* 2"),
    ],
    ids=["other answers", "the training file", "answers of another task"],
)
def test_data_that_do_not_fit_are_refused_before_the_first_batch(inputs, tmp_path, split, numbers, labels, message):
    bad = other_data(inputs, toy_split(tmp_path / "data", split, numbers, labels))
    with pytest.raises(ConfigError, match=message):
        finetune(bad, tmp_path)
    assert not (tmp_path / "state" / "metrics.jsonl").exists()


def test_a_split_that_cannot_be_measured_is_told_before_the_first_batch(inputs, tmp_path):
    unanswered = other_data(inputs, toy_split(tmp_path / "data", "val", range(100, 108), answered=False))
    config = FinetuneNodeConfig.model_validate({"task": "vqa", "finetune": toy_config().finetune})
    with pytest.raises(ConfigError, match=r"vqa: split val gives no accuracy.*has it answers\? Set `selection: last`"):
        finetune(unanswered, tmp_path, config)
    assert not (tmp_path / "state" / "metrics.jsonl").exists()


def test_options_that_the_data_do_not_fit_are_refused_before_the_first_batch(inputs, tmp_path):
    config = toy_config()
    two = config.model_copy(update={"options": config.options.model_copy(update={"num_images": 2})})
    with pytest.raises(ConfigError, match=r"split train: example train-0: 1 images.*this task takes 2"):
        finetune(inputs, tmp_path, two)


def test_a_folder_without_a_model_is_refused(inputs):
    part = inputs["model"][0].parts[0]
    files = tuple(file for file in part.files if file.path != "vocab.txt")
    with pytest.raises(StageFailed, match="pretrain/toy is no model to train on: it lacks a tokenizer"):
        plan_finetune(toy_config(), {**inputs, "model": (Input("pretrain/toy", "r", (replace(part, files=files),)),)})


def test_two_processes_train_and_select_as_one_run(inputs, tmp_path):
    """The rows of a step are the same, so the losses are, up to the order of sums."""
    two, alone = toy_config(epochs=1, world_size=2), toy_config(epochs=1)
    _, out = finetune(inputs, tmp_path / "two", two)
    _, one = finetune(inputs, tmp_path / "one", alone)
    lines = [list(read_metrics(place.path / "metrics.jsonl")) for place in (out, one)]
    assert [line["world_size"] for line in lines[0]] == [2] * 3
    assert pq.read_table(out.path / "samples.parquet").equals(pq.read_table(one.path / "samples.parquet"))
    assert [line["loss"] for line in lines[0]][:1] == pytest.approx([line["loss"] for line in lines[1]][:1], rel=0.3)
    assert json.loads((out.path / "selection.json").read_text())["epochs"][0]["step"] == 3
