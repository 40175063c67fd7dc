"""Evaluations of an experiment: presets, data of their own, several splits, models of each other; errors at load."""

from pathlib import Path

import pytest
import yaml

from pipelines.evaluations import EvaluationConfig
from pipelines.experiment import load_experiment
from pipelines.graph import build_graph
from pipelines.missing import missing_inputs
from tests.support.experiments import experiment_file
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.tasks.presets import PRESETS

FILES = {"train": "/data/train.csv", "val": "/data/val.csv", "test": "/data/test.csv"}
OWN = {"reader": "own_labels", "files": FILES, "media_root": "/data/images"}
LEARNED = {"task": "classification", "data": OWN, "finetune": {"epochs": 2, "batch_size": 8}}


ZERO = {"task": "classification", "data": OWN}


def graph_of(folder: Path, evaluate: dict[str, object]):
    return build_graph(load_experiment(str(experiment_file(folder, evaluate=evaluate))))


def test_data_training_and_evaluation_are_nodes(tmp_path):
    graph = graph_of(tmp_path, {"colours": LEARNED, "zero": ZERO})
    (pretrain,) = [key for key in graph if key.startswith("pretrain/")]
    assert graph["finetune/colours"].inputs == {"model": (pretrain,), "data": ("task_data/colours",)}
    assert graph["evaluate/colours"].inputs["model"] == ("finetune/colours",)
    assert graph["evaluate/zero"].inputs["model"] == (pretrain,)
    assert "finetune/zero" not in graph
    assert set(graph["task_data/colours"].config.files) == {"train", "val", "test"}
    assert set(graph["task_data/zero"].config.files) == {"test"}
    assert graph["evaluate/colours"].config.known_as == ("colours.test", "colours")


def test_several_splits_are_measured_by_nodes_of_their_own(tmp_path):
    shown = {"task": "classification", "data": OWN, "split": ["val", "test"], "model": "colours"}
    graph = graph_of(tmp_path, {"colours": LEARNED, "both": shown})
    assert {key for key in graph if key.startswith("evaluate/both")} == {"evaluate/both.val", "evaluate/both.test"}
    assert graph["evaluate/both.val"].inputs["model"] == ("finetune/colours",)
    assert graph["evaluate/both.val"].config.split == "val"


def test_files_of_a_card_are_inputs_once(tmp_path):
    data = {"card": "downstream/vqav2", "data_root": "/d", "media_root": "/m", "splits": {"test": "test_dev"}}
    node = graph_of(tmp_path, {"vqa": {"task": "classification", "data": data, "split": ["val", "test"]}})[
        "task_data/vqa"
    ]
    names = [Path(source.uri).name for source in node.inputs["files"]]
    assert len(names) == len(set(names)) == 4  # questions twice, annotations and the list of answers once
    ((val,), (test,)) = node.config.files["val"], node.config.files["test"]
    assert val["answers"] == test["answers"]
    assert node.config.media_root == "/m"


def test_an_evaluation_knows_its_card_and_what_the_card_calls_the_split(tmp_path):
    data = {"card": "downstream/nlvr2", "data_root": "/d", "media_root": "/m", "splits": {"test": "test2"}}
    graph = graph_of(tmp_path, {"pairs": {"task": "classification", "data": data, "split": ["val", "test"]}})
    configs = [graph[f"evaluate/pairs.{split}"].config for split in ("val", "test")]
    assert [(one.card, one.split, one.card_split) for one in configs] == [
        ("downstream/nlvr2", "val", "val"),
        ("downstream/nlvr2", "test", "test2"),
    ]
    own = graph_of(tmp_path, {"zero": ZERO})["evaluate/zero"].config
    assert (own.card, own.card_split) == ("", "")


def test_test_images_are_known_by_the_names_of_the_search(tmp_path):
    searched = {"tests": [{"name": "photos", "format": "karpathy", "path": "/d/dataset_coco.json"}]}

    def load(**fields: object):
        evaluate = {"zero": ZERO | fields}
        return load_experiment(str(experiment_file(tmp_path, evaluate=evaluate, decontaminate=searched)))

    assert load(known_as=["photos"]).evaluate["zero"].known_as == ("photos",)
    with pytest.raises(ConfigError, match=r"evaluate\.zero\.known_as: no .* is called 'photo'; did you mean `photos`"):
        load(known_as=["photo"])


def test_a_preset_stands_where_nothing_else_is_written():
    chosen = next(one for one in PRESETS.values() if one.task == "grounding" and one.finetune is not None)
    value = EvaluationConfig.model_validate(
        {
            "task": "grounding",
            "data": {**OWN, "reader": "own_boxes"},
            "finetune": {"preset": chosen.name, "epochs": 1, "optimizer": {"lr": 0.5}},
        }
    )
    assert value.finetune is not None
    assert chosen.finetune is not None
    changed = {"epochs": 1, "optimizer": chosen.finetune.optimizer.model_copy(update={"lr": 0.5})}
    assert value.finetune == chosen.finetune.model_copy(update=changed)


def test_all_of_an_experiment_survives_being_written_down_and_read_again():
    value = EvaluationConfig.model_validate(LEARNED)
    assert EvaluationConfig.model_validate(value.model_dump(mode="json")) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "coco_heldout"}, "give either `source`.*or `data`"),
        ({"data": None}, "give either `source`.*or `data`"),
        ({"data": {**OWN, "files": {"train": "a", "test": "b"}}}, "data.files: split val is needed"),
        ({"split": "tset"}, "data.files: split tset is needed; did you mean `test`"),
        ({"split": ["val", "val"]}, "split: name one split, or several different ones"),
        ({"finetune": {"preset": "vqa2_bse"}}, "finetune.preset.*no preset is called 'vqa2_bse'; did you mean"),
        ({"finetune": {"epcohs": 3}}, "finetune.epcohs: unknown key; did you mean `epochs`"),
        ({"finetune": {"batch_size": 3, "world_size": 2}}, r"batch_size \(3\) is no multiple of world_size \(2\)"),
        ({"finetune": {"select_from_epoch": 10}}, r"select_from_epoch \(10\) leaves none of 10 epochs"),
        ({"data": {**OWN, "reader": "own_lables"}}, "no reader of a downstream format is called `own_lables`"),
        ({"data": {**OWN, "card": "downstream/vqav2"}}, "give either `card`, or `reader`"),
        ({"data": {"card": "downstream/vqav2", "options": {"a": 1}}}, "no effect with `card`"),
    ],
)
def test_what_cannot_be_meant_is_told_when_the_file_is_loaded(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(EvaluationConfig, {**LEARNED, **change}, "here")


def test_a_preset_of_another_task_is_refused():
    name = next(one.name for one in PRESETS.values() if one.task == "retrieval" and one.finetune is not None)
    with pytest.raises(ConfigError, match=rf"{name} is a preset of task retrieval, not of classification"):
        parse_config(EvaluationConfig, {**LEARNED, "finetune": {"preset": name}}, "here")


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"one": LEARNED, "two": {**LEARNED, "model": "oen"}}, r"two.model: 'oen' is no other.*did you mean `one`"),
        ({"one": {**LEARNED, "model": "one"}}, r"one.model: one start from each other"),
        ({"zero": ZERO, "two": {**LEARNED, "model": "zero"}}, r"two.model: 'zero' is not fine-tuned itself"),
    ],
)
def test_a_model_must_be_one_that_another_evaluation_makes(tmp_path, evaluate, message):
    values = yaml.safe_load(experiment_file(tmp_path).read_text()) | {"evaluate": evaluate}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(path))


def test_a_card_and_a_split_that_do_not_exist_are_told_with_the_nearest(tmp_path):
    for data, message in (
        ({"card": "downstream/vqa2", "data_root": "/d"}, r"no card .*vqa2\.yaml; did you mean `downstream/vqav2`"),
        ({"card": "downstream/vqav2", "data_root": "/d", "splits": {"test": "test_dve"}}, r"no split `test_dve`; did"),
        ({"card": "downstream/vqav2"}, r"set `data_root` to the folder that holds vqav2/"),
    ):
        with pytest.raises(ConfigError, match=message):
            graph_of(tmp_path, {"vqa": {"task": "classification", "data": data}})


def test_missing_files_and_media_are_listed_with_where_to_get_them(tmp_path):
    data = {"card": "downstream/nlvr2", "data_root": str(tmp_path), "media_root": str(tmp_path / "none")}
    own = {"task": "classification", "data": {**OWN, "files": {"test": str(tmp_path / "mine.csv")}}}
    evaluate = {"nlvr2": {"task": "classification", "data": data}, "own": own}
    experiment = load_experiment(str(experiment_file(tmp_path, evaluate=evaluate)))
    found = {item.field: item for item in missing_inputs(experiment)}
    rows = found["evaluate.nlvr2.data, rows of split test of card nlvr2"]
    assert rows.path == str(tmp_path / "nlvr2" / "test1.json")
    assert "github.com/lil-lab/nlvr" in rows.origin
    assert rows.nodes == ("task_data/nlvr2",)
    assert found["evaluate.nlvr2.data.media_root"].path == str(tmp_path / "none")
    assert found["evaluate.own.data, rows of split test"].path == str(tmp_path / "mine.csv")
