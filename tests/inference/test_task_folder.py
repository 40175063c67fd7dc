"""A fine-tuned model as a folder: what comes back, and folders whose files are of two models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.models.folders import small_pretrained
from x2vlm import inference
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.inference.task_folder import load_task_model, save_task_model
from x2vlm.models.downstream.config import ClassifierConfig, DecoderConfig
from x2vlm.models.downstream.task_model import TaskModel

LABELS = ("False", "True")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return small_pretrained("bert", tmp_path_factory.mktemp("tokenizer"))


def save(pretrained, folder, head, labels=LABELS, seed=1):
    torch.manual_seed(seed)
    model = TaskModel(pretrained.model, head).eval()
    save_task_model(model, folder, "classification", {"num_images": 2}, labels, pretrained.processor)
    return model


@pytest.fixture
def folder(pretrained, tmp_path):
    save(pretrained, tmp_path / "model", ClassifierConfig(num_labels=2, num_images=2))
    return tmp_path / "model"


@pytest.mark.parametrize(
    "head",
    [
        None,
        ClassifierConfig(num_labels=2, num_images=2),
        DecoderConfig(),
        DecoderConfig(num_layers=1, num_types=3, tie_words=False),
    ],
)
def test_a_model_comes_back_as_it_was(pretrained, tmp_path, head):
    model = save(pretrained, tmp_path, head)
    found = load_task_model(tmp_path)
    assert (found.task, found.options, found.labels) == ("classification", {"num_images": 2}, LABELS)
    assert found.model.head_config == model.head_config
    assert not found.model.training
    state = model.state_dict()
    assert found.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())
    assert found.processor.config == pretrained.processor.config


def test_the_folder_is_a_model_folder_too(pretrained, folder):
    opened = inference.load(folder)
    assert torch.equal(opened.model.text_proj.weight, pretrained.model.text_proj.weight)


def test_a_plain_model_folder_has_no_task(pretrained, folder):
    (folder / "task.json").unlink()
    found = load_task_model(folder)
    assert (found.task, found.labels, found.model.head) == ("", (), None)


def test_a_decoder_may_have_any_list_and_an_imported_classifier_none(pretrained, tmp_path):
    save(pretrained, tmp_path / "a", DecoderConfig(), tuple("abcdefg"))
    assert load_task_model(tmp_path / "a").labels == tuple("abcdefg")
    save(pretrained, tmp_path / "b", ClassifierConfig(num_labels=11), ())
    assert load_task_model(tmp_path / "b").labels == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("no", "maybe", "yes"), "2 classes, and there are 3 labels"), (("yes", "yes"), "the label 'yes' occurs twice")],
)
def test_labels_of_another_model_are_refused_before_anything_is_written(pretrained, tmp_path, labels, message):
    with pytest.raises(ConfigError, match=message):
        save(pretrained, tmp_path / "model", ClassifierConfig(num_labels=2), labels)
    assert not (tmp_path / "model").exists()


def test_labels_that_were_changed_later_are_refused(folder):
    values = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(values | {"labels": ["no", "maybe", "yes"]}))
    with pytest.raises(ConfigError, match=r"task\.json: the classifier has 2 classes, and there are 3 labels"):
        load_task_model(folder)


def test_a_head_of_another_model_is_refused(pretrained, folder, tmp_path):
    save(pretrained, tmp_path / "other", ClassifierConfig(num_labels=2, num_images=2), seed=2)
    shutil.copy(tmp_path / "other" / "head.safetensors", folder / "head.safetensors")
    with pytest.raises(CorruptArtifact, match=r"head\.safetensors: sha256 is .* the head of another model"):
        load_task_model(folder)


def test_a_head_of_other_shapes_is_refused(folder):
    values = json.loads((folder / "task.json").read_text())
    tensors = load_file(folder / "head.safetensors")
    save_file({name: value for name, value in tensors.items() if "0.bias" not in name}, folder / "head.safetensors")
    (folder / "task.json").write_text(json.dumps(values | {"head_sha256": None}))
    with pytest.raises(CorruptArtifact, match=r"1 missing: layers\.0\.bias"):
        load_task_model(folder)
    (folder / "head.safetensors").write_bytes(b"short")
    with pytest.raises(CorruptArtifact, match=r"head\.safetensors"):
        load_task_model(folder)
    (folder / "head.safetensors").unlink()
    with pytest.raises(CorruptArtifact, match="missing; copy the folder again"):
        load_task_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "holds a list"),
        ("{}", "task: Field required"),
        ('{"task": "a", "options": {}, "labels": [], "head": {"kind": "oracle"}}', "no 'kind' 'oracle'"),
        ('{"task": "a", "options": {}, "labels": [], "heads": null}', "unknown key; did you mean `head`"),
    ],
)
def test_a_description_that_is_none_is_named(folder, content, message):
    (folder / "task.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"task\.json: .*{message}|task\.json: [^\n]*\n.*{message}"):
        load_task_model(folder)
