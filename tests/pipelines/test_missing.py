"""The list of everything an experiment reads and that is not here, against what its YAML and its cards name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.experiment import load_experiment
from pipelines.flow.run.planner import plan
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.missing import listing_all_missing, missing_inputs
from tests.support.experiments import ROOT, experiment_file
from x2vlm.errors import ConfigError, SourceUnavailable, X2VLMError

RECIPES = sorted(path.stem for path in (ROOT / "pipelines/experiments").glob("*/*.yaml"))


def named(value: Any) -> Iterator[str]:
    """Every path below data/ that an experiment's YAML names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from named(inner) if key != "data_root" else ()
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner)
    elif isinstance(value, str) and value.startswith("data/"):
        yield value


def of_evaluation(evaluation: dict[str, Any]) -> set[str]:
    """Every file of a task that its card names for the splits that are learned from, selected by or measured."""
    data, tuning = evaluation["data"], evaluation.get("finetune")
    card = yaml.safe_load((ROOT / "datasets" / f"{data['card']}.yaml").read_text())
    splits = evaluation.get("split", "test")
    splits = [splits] if isinstance(splits, str) else list(splits)
    if tuning:
        splits += ["train", *([] if tuning.get("selection") == "last" else ["val"])]
    found = set()
    for split in {data.get("splits", {}).get(name, name) for name in splits}:
        value = card["splits"][split]
        for part in value.get("parts", [value]):
            files = {**card.get("files", {}), **part.get("files", {})}
            found |= {f"{data['data_root']}/{card['id']}/{file['path']}" for file in files.values()}
    return found


def planned(path: Path | str, store: Path, targets: list[str] | None = None) -> X2VLMError:
    """The error of planning an experiment."""
    experiment = load_experiment(str(path), str(store))
    with pytest.raises(X2VLMError) as caught, listing_all_missing(experiment, targets or ()):
        plan(build_graph(experiment), Store(str(store)), experiment.name, targets)
    return caught.value


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_missing_inputs_are_all_that_it_names(name: str) -> None:
    (file,) = (ROOT / "pipelines/experiments").glob(f"*/{name}.yaml")
    values = yaml.safe_load(file.read_text())
    expected = set(named(values))
    for source in values["sources"].values():
        card = yaml.safe_load((ROOT / "datasets" / f"{source['card']}.yaml").read_text())
        expected |= {f"data/{card['id']}/{role['path']}" for role in card["files"].values()}
    for evaluation in values["evaluate"].values():
        expected |= of_evaluation(evaluation)
    missing = missing_inputs(load_experiment(name))
    assert {item.path for item in missing} == expected
    assert len(expected) > 10
    assert all(re.search(r"https://\S+", item.origin) for item in missing)


def test_one_error_lists_them_with_their_origin_and_condition(tmp_path: Path) -> None:
    error = planned("large_1b_paper", tmp_path / "store")
    assert isinstance(error, ConfigError)  # as the first one alone would be
    text = str(error)
    for words in (
        "data/coco/captions_train2017.json  (sources.coco, captions of card coco)",
        "https://cocodataset.org (open to everybody",
        "accept; datasets/**/laion_en.yaml",
        "withdrawn by its owner",
        "data/webvid/videos  (sources.webvid.media_root)",
        "data/clip  (clip_model)",
        "give the folder with open_clip_config.json",
        "data/bert-large-uncased/vocab.txt  (vocabulary)",
        "https://huggingface.co/google-bert/bert-large-uncased",
        "(phases.phase1.start.vision)",
        "https://visualqa.org/download.html",
    ):
        assert words in text
    assert text.count("data/visual_genome/image_data.json") == 1  # read by the source and by decontaminate


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Three sources of other people's data, one of them with no place, beside the shipped held-out one."""
    sources = {
        "cc3m": {"card": "pretrain/cc3m", "data_root": str(tmp_path / "data")},
        "sbu": {"card": "pretrain/sbu", "data_root": str(tmp_path / "data")},
        "coco_heldout": {"card": "sample/coco_heldout", "role": "held_out"},
    }
    pretrain = {"start": {"text": str(tmp_path / "bert")}}
    return experiment_file(tmp_path, sources=sources, vocabulary=str(tmp_path / "vocab.txt"), pretrain=pretrain)


def test_the_list_shrinks_as_files_come(experiment: Path, tmp_path: Path) -> None:
    cc3m, sbu = (tmp_path / "data" / name for name in ("cc3m/Train_GCC-training.tsv", "sbu/sbu-captions-all.json"))
    bert, vocabulary = tmp_path / "bert", tmp_path / "vocab.txt"

    def listed() -> set[str]:
        text = str(planned(experiment, tmp_path / "store"))
        return {str(path) for path in (cc3m, sbu, bert, vocabulary) if f"  {path}  (" in text}

    assert listed() == {str(path) for path in (cc3m, sbu, bert, vocabulary)}
    for path in (cc3m, sbu):
        path.parent.mkdir(parents=True)
        path.write_text("")
    assert listed() == {str(bert), str(vocabulary)}
    bert.mkdir()
    (bert / "config.json").write_text("{}")  # and no weights
    assert listed() == {str(bert), str(vocabulary)}
    (bert / "model.safetensors").write_bytes(b"")
    assert listed() == {str(vocabulary)}
    vocabulary.write_text("a")
    assert missing_inputs(load_experiment(str(experiment))) == []


def test_only_what_the_chosen_nodes_read_is_listed(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    for name, content in (("config.json", "{}"), ("model.safetensors", "")):
        (tmp_path / "bert" / name).write_text(content)
    error = planned(experiment, tmp_path / "store", ["read/sbu"])
    assert isinstance(error, SourceUnavailable)
    assert "sbu-captions-all.json" in str(error)
    assert "reads 1 input that is not here" in str(error)
    text = str(planned(experiment, tmp_path / "store", ["pretrain/*"]))
    assert all(name in text for name in ("sbu-captions-all.json", "Train_GCC-training.tsv", "vocab.txt"))


def test_a_source_without_a_place_and_errors_about_something_else(tmp_path: Path) -> None:
    sources = {
        "cc3m": {"card": "pretrain/cc3m"},
        "sbu": {"card": "pretrain/sbu", "data_root": "nowhere"},
        "coco_heldout": {"card": "sample/coco_heldout", "role": "held_out"},
    }
    text = str(planned(experiment_file(tmp_path, sources=sources), tmp_path / "store"))
    assert "card cc3m  (sources.cc3m.data_root is not set)" in text
    assert "nowhere/sbu/sbu-captions-all.json" in text
    sources["cc3m"]["data_root"] = "nowhere"
    path = experiment_file(tmp_path, sources=sources)
    assert "did you mean `score/sbu`?" in str(planned(path, tmp_path / "store", ["score/sbuu"]))
    assert "did you mean `score/*`?" in str(planned(path, tmp_path / "store", ["scoer/*"]))


@pytest.mark.parametrize(
    ("card", "meant"),
    [("coco", "sample/coco"), ("pretrain/cco", "pretrain/coco"), ("pretrain/visual-genome", "pretrain/visual_genome")],
)
def test_an_unknown_card_is_answered_with_the_nearest(tmp_path: Path, card: str, meant: str) -> None:
    sources = {"one": {"card": card}, "coco_heldout": {"card": "sample/coco_heldout", "role": "held_out"}}
    path = experiment_file(tmp_path, sources=sources)
    assert f"did you mean `{meant}`?" in str(planned(path, tmp_path / "store")) or meant == "sample/coco"
    with pytest.raises(ConfigError, match="did you mean `"):
        build_graph(load_experiment(str(path)))


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"evaluate": {"retrieval": {"task": "retrieval", "source": "coco_held_out"}}}, "coco_heldout"),
        ({"evaluate": {"retrieval": {"task": "retreival", "source": "coco_heldout"}}}, "retrieval"),
        ({"download": {"store": {"kind": "orignal"}}}, "original"),
        ({"download": {"hash_mismatch": "kep"}}, "keep"),
        ({"pretrain": {"data": {"streams": [{"kind": "regin", "batch_size": 2}]}}}, "region"),
        ({"decontaminate": {"tests": [{"name": "a", "format": "karpaty", "path": "b"}]}}, "karpathy"),
        ({"retries": [["timeuot"]]}, "timeout"),
    ],
)
def test_an_unknown_name_in_an_experiment_is_answered_with_the_nearest(
    tmp_path: Path, changes: dict[str, Any], meant: str
) -> None:
    path = experiment_file(tmp_path, **json.loads(json.dumps(changes)))
    with pytest.raises(ConfigError, match=f"did you mean `{meant}`"):
        build_graph(load_experiment(str(path)))
