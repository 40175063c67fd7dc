"""Fine-tuned checkpoint files as models of a task: exact round trips, values where their names say, refusals."""

from dataclasses import replace

import pytest
import torch

from tests.support.models import reference_shapes as tables
from tests.support.models.reference_shapes import TINY, TINY_XLM, random_state
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.released import CheckpointFile, load_checkpoint
from x2vlm.models.checkpoints.task_models import export_task_model, task_model_of
from x2vlm.models.downstream.classifier import Classifier
from x2vlm.models.downstream.decoder import AnswerDecoder

FILES = {
    "classification": (tables.classification, TINY),
    "classification_two_images": (tables.two_images, TINY),
    "question_answering": (tables.question_answering, TINY),
    "multilingual_classification": (tables.multilingual_classification, TINY_XLM),
    "multilingual_classification_two_images": (tables.multilingual_two_images, TINY_XLM),
    "multilingual_question_answering": (tables.multilingual_question_answering, TINY_XLM),
    "retrieval": (tables.retrieval, TINY),
    "captioning": (tables.captioning, replace(TINY, vocab=120)),
}


def state_of(name):
    shapes, sizes = FILES[name]
    return random_state(shapes(sizes), sizes)


def load(state):
    return load_checkpoint(CheckpointFile(state, {}, "checkpoint.th"), text_heads=2)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", [name for name in FILES if name != "captioning"])
def test_a_file_becomes_a_model_of_a_task_and_comes_back_bit_for_bit(name):
    state = state_of(name)
    loaded = load(state)
    model = task_model_of(loaded)
    assert not model.training
    assert same(export_task_model(model, loaded.kind, loaded.absent), state)


def test_a_captioning_file_has_no_head_of_its_own():
    model = task_model_of(load(state_of("captioning")))
    assert model.head is None
    exported = export_task_model(model, "captioning")
    assert exported.keys() == state_of("captioning").keys()


@pytest.mark.parametrize("name", ["question_answering", "multilingual_question_answering"])
def test_entries_that_others_imply_may_be_absent(name):
    state = state_of(name)
    for part in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids"):
        del state[f"text_decoder.{part}"]
    loaded = load(state)
    assert same(export_task_model(task_model_of(loaded), None, loaded.absent), state)


def test_a_decoder_may_have_an_output_matrix_of_its_own():
    state = state_of("multilingual_question_answering")
    state["text_decoder.cls.predictions.decoder.weight"] = torch.randn(50, 16)
    loaded = load(state)
    model = task_model_of(loaded)
    assert not model.head.config.tie_words
    assert same(export_task_model(model), state)


def test_values_go_where_their_names_say():
    state = state_of("multilingual_question_answering")
    decoder = task_model_of(load(state)).head
    assert isinstance(decoder, AnswerDecoder)
    layer = "text_decoder.bert.encoder.layer.1"
    assert torch.equal(
        decoder.encoder.layers[1].cross_attention.key.weight, state[f"{layer}.crossattention.self.key.weight"]
    )
    assert torch.equal(decoder.encoder.layers[1].feed_forward.outer.bias, state[f"{layer}.output.dense.bias"])
    assert torch.equal(
        decoder.embeddings.types.weight, state["text_decoder.bert.embeddings.token_type_embeddings.weight"]
    )
    assert decoder.num_positions == 20
    assert decoder.config.num_types == 2
    state = state_of("classification_two_images")
    classifier = task_model_of(load(state)).head
    assert isinstance(classifier, Classifier)
    assert (classifier.config.num_images, classifier.config.num_labels) == (2, 2)
    assert torch.equal(classifier.layers[3].weight, state["cls_head.3.weight"])


def test_a_shallow_decoder_has_its_own_depth():
    state = {n: v for n, v in state_of("question_answering").items() if ".layer.1." not in n or "decoder" not in n}
    loaded = load(state)
    model = task_model_of(loaded)
    assert model.head.config.num_layers == 1
    assert same(export_task_model(model), state)


def test_a_bias_that_differs_from_its_copy_is_refused():
    state = state_of("question_answering")
    state["text_decoder.cls.predictions.decoder.bias"] = torch.ones(50)
    with pytest.raises(ConfigError, match=r"decoder\.bias differs from text_decoder\.cls\.predictions\.bias"):
        task_model_of(load(state))


@pytest.mark.parametrize("kind", ["retrieval", "question_answering", "multilingual_classification", "unheard_of"])
def test_a_model_is_not_exported_as_another_kind(kind):
    model = task_model_of(load(state_of("classification")))
    with pytest.raises(ConfigError, match=kind):
        export_task_model(model, kind)
