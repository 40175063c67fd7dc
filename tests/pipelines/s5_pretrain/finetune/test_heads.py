"""Which head a fine-tuning goes on with: the given model's where it fits task and labels, else a new one."""

import pytest
import torch

from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.prepare import started_model
from tests.support.training.corpus import MODEL, TOKENIZER
from x2vlm.inference.processor import processor_for
from x2vlm.inference.task_folder import TaskFolder
from x2vlm.models.downstream.config import ClassifierConfig, DecoderConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import build_model

YES_NO = ("no", "yes")


def trained(head, task, labels=YES_NO):
    torch.manual_seed(1)
    model = TaskModel(build_model(MODEL), head)
    return TaskFolder(model, processor_for(MODEL, TOKENIZER, max_tokens=12), task, {}, labels)


def is_kept(given, task, labels=YES_NO, **options):
    config = FinetuneNodeConfig.model_validate({"task": task, "options": options})
    model, new = started_model(config, given, labels)
    old = given.model.state_dict()
    heads = {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
    same = all(name in old and torch.equal(old[name], value) for name, value in heads.items())
    assert same == (not any(name.startswith(("cls_head.", "text_decoder.")) for name in new))
    return same


@pytest.mark.parametrize("task", ["vqa", ""])  # "": imported from a checkpoint of the reference
def test_a_decoder_goes_on_with_any_list(task):
    given = trained(DecoderConfig(num_types=3), task)  # a multilingual one has tables of its own sizes
    assert is_kept(given, "vqa", ("another", "list", "of", "answers"))
    assert is_kept(given, "vqa", decoder_layers=given.model.head_config.num_layers)


@pytest.mark.parametrize("task", ["classification", ""])
def test_a_classifier_goes_on_with_its_own_labels(task):
    labels = YES_NO if task else ()
    assert is_kept(trained(ClassifierConfig(num_labels=2), task, labels), "classification")


def test_other_heads_start_anew():
    classifier = trained(ClassifierConfig(num_labels=2), "classification")
    assert not is_kept(classifier, "classification", ("yes", "no"))
    assert not is_kept(classifier, "classification", ("a", "b", "c"))
    assert not is_kept(classifier, "classification", num_images=2)
    assert not is_kept(classifier, "vqa")
    assert not is_kept(trained(None, "retrieval"), "vqa")
    assert not is_kept(trained(DecoderConfig(num_layers=2), "vqa"), "vqa", decoder_layers=MODEL.fusion.num_layers)
