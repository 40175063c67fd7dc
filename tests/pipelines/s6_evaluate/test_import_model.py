"""Checkpoint files of the reference as models that can be measured and fine-tuned."""

import json

import pytest
import torch

from pipelines.flow.stage import Input
from pipelines.s6_evaluate.config import EvaluateConfig
from pipelines.s6_evaluate.import_model import IMPORT, ImportConfig
from pipelines.s6_evaluate.stage import EVALUATE
from tests.support.models import reference_shapes as tables
from tests.support.models.reference_shapes import Sizes, random_state
from tests.support.parts import as_part, as_source, run_stage
from tests.support.training.corpus import WORDS
from tests.support.training.finetuning import LABELS, toy_model_folder, toy_split
from x2vlm.errors import ConfigError
from x2vlm.inference.task_folder import load_task_model

SIZES = Sizes(
    vision=24, depth=2, vision_heads=3, grid=4, vision_inner=96, text=16, text_layers=2, fusion_layers=2, inner=40,
    vocab=len(WORDS), positions=20, embed=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    state = random_state(tables.classification(SIZES), SIZES)
    torch.save({"model": state}, folder / "model.th")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    inputs = {"checkpoint": (as_source(folder / "model.th"),), "vocabulary": (as_source(folder / "vocab.txt"),)}
    return state, run_stage(IMPORT, ImportConfig(max_tokens=12), inputs, folder / "out")


def test_a_classifier_of_the_reference_is_a_folder_with_its_head(imported):
    state, run = imported
    saved = load_task_model(run.folder / "model")
    assert saved.labels == ()
    assert saved.model.head_config.num_labels == len(state["cls_head.3.bias"])
    assert torch.equal(saved.model.state_dict()["head.layers.3.bias"], state["cls_head.3.bias"])
    assert saved.processor.config.max_tokens == 12
    assert json.loads((run.folder / "model" / "config.json").read_text())["training"]["kind"] == "classification"


def test_it_answers_with_the_list_of_the_data_if_that_is_as_long(imported, tmp_path):
    state, run = imported
    number = len(state["cls_head.3.bias"])
    labels = ("red", "green", "blue", "white", *(f"colour {index}" for index in range(number)))[:number]
    assert evaluated(run, tmp_path / "fits", labels)["num_examples"] == 8
    with pytest.raises(ConfigError, match=rf"a list of {number + 1} answers, and the model's classifier has {number}"):
        evaluated(run, tmp_path / "other", (*labels, "one more"))


def evaluated(run, folder, labels):
    data = Input("task_data/toy", "root", (toy_split(folder / "data", "test", range(200, 208), labels),))
    slots = {"model": (run.artifact,), "rows": (), "media": (), "contamination": (), "data": (data,)}
    config = EvaluateConfig(task="classification", split="test")
    done = run_stage(EVALUATE, config, slots, folder / "out")
    return json.loads((done.folder / "classification" / "result.json").read_text())


def test_a_model_without_a_head_is_told_to_be_fine_tuned(tmp_path):
    model = Input("pretrain/toy", "root", (as_part("train", toy_model_folder(tmp_path / "model")),))
    data = Input("task_data/toy", "root", (toy_split(tmp_path / "data", "test", range(200, 208), LABELS),))
    slots = {"model": (model,), "rows": (), "media": (), "contamination": (), "data": (data,)}
    with pytest.raises(ConfigError, match=r"answers with a head \(classifier\).*the model has none; fine-tune"):
        run_stage(EVALUATE, EvaluateConfig(task="classification", split="test"), slots, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"the task data have no split tset; they have test"):
        run_stage(EVALUATE, EvaluateConfig(task="classification", split="tset"), slots, tmp_path / "none")
