"""Captioning as a finetune part: every way to train runs, self-critical training with the words of all texts."""

import json
import math

import pytest

from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from tests.support.training.finetuning import SETTINGS, finetune_here, toy_inputs
from x2vlm.inference.task_folder import load_task_model
from x2vlm.train.metrics import read_metrics


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return toy_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(("mode", "loss"), [("fg_free", "words"), ("causal", "words"), ("scst", "self_critical")])
def test_every_way_to_train_gives_a_model_of_the_task(inputs, tmp_path, monkeypatch, mode, loss):
    monkeypatch.setenv("PATH", "")  # without Java: scores by the Python part are enough here
    options = {"mode": mode, "prompt": "a", "max_tokens": 6, "min_tokens": 1, "scst_max_tokens": 4, "scst_samples": 2}
    values = {"task": "captioning", "options": options, "finetune": {**SETTINGS, "epochs": 1}}
    out = finetune_here(FinetuneNodeConfig.model_validate(values), inputs, tmp_path)
    lines = list(read_metrics(out.path / "metrics.jsonl"))
    assert len(lines) == 3
    assert all(math.isfinite(line[f"task/{loss}"]) for line in lines)
    saved = load_task_model(out.path)
    assert (saved.task, saved.model.head) == ("captioning", None)
    assert saved.options["mode"] == mode
    assert json.loads((out.path / "selection.json").read_text())["epochs"][0]["score"] >= 0
