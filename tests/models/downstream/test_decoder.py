"""The decoder of answers: starts from the base, ranks as every answer alone would, and costs what its parts cost."""

import pytest
import torch

from tests.support.models.tiny import tiny_config, tiny_text
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.reference import head_names, reference_names, trained_names
from x2vlm.models.checkpoints.task_heads import decoder_layer_sources, head_state, start_decoder
from x2vlm.models.config import FusionConfig, TextConfig, VisionConfig
from x2vlm.models.downstream.answers import (
    AnswerTable,
    answer_losses,
    rank_answers,
    score_answers,
    weighted_answer_loss,
)
from x2vlm.models.downstream.config import DecoderConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import build_model

# [CLS] 2, [SEP] 3, padding 0. Several answers share their first token, one has a single token, one has four.
ANSWERS = [[11], [12, 13], [12, 14], [11, 15, 16, 17], [12], [18, 18], [19]]


def table_of(answers=ANSWERS):
    longest = max(map(len, answers)) + 2
    ids = torch.tensor([[2, *answer, 3] + [0] * (longest - 2 - len(answer)) for answer in answers])
    return AnswerTable(ids, ids != 0)


def task_model(head=None, **changes):
    torch.manual_seed(4)
    model = TaskModel(build_model(tiny_config(**changes)), head or DecoderConfig()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.mul_(6)
    return model


def question_states(model, rows=3):
    ids, mask = tiny_text(rows)
    torch.manual_seed(6)
    vision = model.base.encode_image(torch.randn(rows, 3, 64, 64))
    return model.base.fuse(model.base.encode_text(ids, mask), mask, vision), mask


def memory_of(model, rows=3):
    return model.head.question_memory(*question_states(model, rows))


@torch.no_grad()
def log_probs_one_by_one(model):
    """For every question and answer the log probability of each token, by whole passes over single answers."""
    states, mask = question_states(model)
    found = []
    for row in range(len(states)):
        length = int(mask[row].sum())
        memory = model.head.question_memory(states[row : row + 1, :length], mask[row : row + 1, :length])
        per_answer = []
        for answer in ANSWERS:
            ids = torch.tensor([[2, *answer, 3]])
            logits = model.head.predict(model.head(ids, torch.ones_like(ids), memory))[0, :-1]
            per_answer.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0])
        found.append(per_answer)
    return found


@pytest.mark.parametrize("score", ["released", "chain"])
@pytest.mark.parametrize("at_once", [1, 2, 32])
def test_ranking_is_that_of_every_answer_alone(monkeypatch, score, at_once):
    monkeypatch.setattr("x2vlm.models.downstream.answers.ANSWERS_AT_ONCE", at_once)
    model = task_model()
    ranked = rank_answers(model.head, memory_of(model), table_of(), 4, score)
    for row, tokens in enumerate(log_probs_one_by_one(model)):
        first = [float(item[0]) for item in tokens]
        expected = sorted(range(len(ANSWERS)), key=lambda number: (-round(first[number], 5), number))[:4]
        assert ranked.answers_BK[row].tolist() == expected
        twice = [float(tokens[number].sum()) + (first[number] if score == "released" else 0) for number in expected]
        torch.testing.assert_close(ranked.probs_BK[row], torch.tensor(twice).softmax(0), atol=1e-5, rtol=1e-4)
        for number, token in enumerate(answer[0] for answer in ANSWERS):
            assert ranked.first_token_probs_BV[row, token].log().item() == pytest.approx(first[number], abs=1e-4)
    torch.testing.assert_close(ranked.first_token_probs_BV.sum(1), torch.ones(3))


def test_a_list_shorter_than_the_shortlist_is_ranked_whole_and_ties_go_by_the_list():
    model = task_model()
    ranked = rank_answers(model.head, memory_of(model), table_of(), 128)
    assert sorted(ranked.answers_BK[0].tolist()) == list(range(len(ANSWERS)))
    order = ranked.answers_BK[0].tolist()
    assert [number for number in order if ANSWERS[number][0] == 12] == [1, 2, 4]  # equal first tokens
    twice = table_of([[11, 12], [11, 12]])
    best, probability = rank_answers(model.head, memory_of(model), twice, 2).best()
    assert best.tolist() == [0, 0, 0]
    torch.testing.assert_close(probability, torch.full((3,), 0.5))


def test_scores_of_given_answers_are_those_behind_the_ranking():
    model = task_model()
    ranked = rank_answers(model.head, memory_of(model), table_of(), 5)
    scores = score_answers(model.head, memory_of(model), table_of(), ranked.answers_BK)
    torch.testing.assert_close(scores.softmax(1), ranked.probs_BK)


def test_keys_of_a_question_are_projected_once_whatever_the_list(monkeypatch):
    monkeypatch.setattr("x2vlm.models.downstream.answers.ANSWERS_AT_ONCE", 2)
    model = task_model()
    rows = []
    for layer in model.head.encoder.layers:
        layer.cross_attention.key.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    rank_answers(model.head, memory_of(model), table_of(), 7)
    assert rows == [3, 3] * len(model.head.encoder.layers)  # summaries and other tokens of three questions


def test_start_tokens_are_run_once_and_short_answers_are_not_padded_to_long_ones(monkeypatch):
    monkeypatch.setattr("x2vlm.models.downstream.answers.ANSWERS_AT_ONCE", 2)
    model = task_model()
    tokens = []
    model.head.encoder.layers[0].self_attention.query.register_forward_hook(
        lambda _, inputs, __: tokens.append(inputs[0].shape[:2].numel())
    )
    rank_answers(model.head, memory_of(model), table_of(), 7)
    # [CLS], then by two answers a question what stands between their first token and [SEP], the shortest first.
    assert tokens == [3, 3 * 2 * 1, 3 * 2 * 2, 3 * 2 * 2, 3 * 4]


def test_half_precision_training_agrees_roughly():
    model = task_model()
    table, questions = table_of(), torch.tensor([0, 0, 0, 1, 1, 2, 2])

    def loss():
        found = answer_losses(model.head, table.ids_NL, table.mask_NL, memory_of(model).select(questions))
        return weighted_answer_loss(found, torch.ones(7), 3)

    exact = loss()
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    rough.backward()
    assert all(parameter.grad is not None for name, parameter in model.head.named_parameters())


def test_the_loss_is_the_weighted_sum_over_the_answers_of_the_batch():
    model = task_model()
    table, questions = table_of(), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    losses = answer_losses(model.head, table.ids_NL, table.mask_NL, memory_of(model).select(questions))
    alone = log_probs_one_by_one(model)
    expected = [-alone[question][number].sum() for number, question in enumerate(questions.tolist())]
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-4, rtol=1e-5)
    weights = torch.tensor([0.5, 0.25, 0.25, 0.1, 0.9, 1.0, 0.5])
    assert weighted_answer_loss(losses, weights, 3).detach().item() == pytest.approx(
        float((weights @ losses).detach()) / 3
    )


def test_a_later_token_and_padding_change_no_earlier_prediction():
    model = task_model()
    memory = memory_of(model, 1)
    ids = torch.tensor([[2, 11, 12, 3]])
    long = torch.tensor([[2, 11, 30, 31, 0]])
    with torch.no_grad():
        short_states = model.head(ids, torch.ones_like(ids), memory)
        long_states = model.head(long, long != 0, memory)
    torch.testing.assert_close(short_states[:, :2], long_states[:, :2])
    assert not torch.allclose(short_states[:, 2], long_states[:, 2], atol=1e-3)


# ---- where a new decoder starts


@pytest.mark.parametrize(
    ("num_text", "num_fusion", "num_layers", "expected"),
    [
        (12, 6, 6, [0, 1, 2, 3, 4, 5]),
        (12, 6, 3, [1, 3, 5]),  # 13, 15, 17
        (3, 6, 3, [0, 2, 4]),  # 3, 5, 7
        (2, 2, 1, [1]),
        (3, 3, 1, [0]),
    ],
)
def test_layers_start_from_all_or_every_second_fusion_layer(num_text, num_fusion, num_layers, expected):
    assert decoder_layer_sources(num_text, num_fusion, num_layers) == expected


@pytest.mark.parametrize("num_layers", [1, 2, 4, 7])
def test_other_depths_are_refused(num_layers):
    with pytest.raises(ConfigError, match="6 layers or half of them, 3"):
        decoder_layer_sources(12, 6, num_layers)


def started(**changes):
    """A model whose head has just started, its base's values by reference name, and the head's state."""
    model = task_model(**changes)
    base = dict(model.base.named_parameters())
    values = {reference: base[name].detach().clone() for name, reference in reference_names(model.base).items()}
    before = {name: value.clone() for name, value in head_state(model.head).items()}
    return values, before, start_decoder(model), head_state(model.head)


EQUAL_WIDTHS = {
    "vision": VisionConfig(image_res=64, width=16, depth=1, num_heads=2),
    "fusion": FusionConfig(num_layers=4, num_heads=4, intermediate=40),
}


@pytest.mark.parametrize("head", [DecoderConfig(), DecoderConfig(num_layers=2)])
def test_a_started_decoder_has_the_values_of_its_origins(head):
    values, _, origins, state = started(head=head, **EQUAL_WIDTHS)
    assert all(torch.equal(state[name], values[source]) for name, source in origins.items())
    assert origins["text_decoder.bert.embeddings.LayerNorm.bias"] == "text_encoder.bert.embeddings.LayerNorm.bias"
    assert origins["text_decoder.cls.predictions.bias"] == "text_encoder.cls.predictions.bias"
    number = 2 if head.num_layers is None else 3  # of 2 + 4 layers the odd ones are 3 and 5
    assert origins["text_decoder.bert.encoder.layer.0.output.dense.bias"].split(".")[4] == str(number)


def test_keys_and_values_start_anew_where_the_widths_differ():
    values, before, origins, state = started()
    new = {name for name, source in origins.items() if source is None}
    parts = [f"crossattention.self.{part}.{leaf}" for part in ("key", "value") for leaf in ("weight", "bias")]
    assert new == {f"text_decoder.bert.encoder.layer.{number}.{part}" for number in range(2) for part in parts}
    assert all(torch.equal(state[name], before[name]) for name in new)
    assert all(torch.equal(state[name], values[source]) for name, source in origins.items() if source)


def test_with_separate_encoders_only_layers_are_taken_over():
    xlm = TextConfig(
        architecture="xlm-roberta", width=16, num_layers=2, num_heads=2, intermediate=32, vocab_size=50,
        max_positions=20, type_vocab_size=1, pad_id=1,
    )  # fmt: skip
    head = DecoderConfig(num_positions=12, num_types=2)
    _, before, origins, state = started(head=head, text=xlm, tie_words=False, **EQUAL_WIDTHS)
    kept = {name for name, source in origins.items() if source is None}
    assert kept == {name for name in origins if ".layer." not in name}
    assert all(torch.equal(state[name], before[name]) for name in kept)
    assert origins["text_decoder.bert.encoder.layer.3.output.dense.bias"] == (
        "cross_encoder.encoder.layer.3.output.dense.bias"
    )
    assert state["text_decoder.bert.embeddings.position_embeddings.weight"].shape == (12, 16)


def test_the_optimizer_knows_every_parameter_by_its_reference_name():
    model = task_model()
    names = trained_names(model)
    assert names.keys() == dict(model.named_parameters()).keys()
    assert set(head_names(model.head).values()) <= set(names.values())
    assert len(set(names.values())) == len(names)


def test_drop_paths_of_the_base_reach_the_decoder():
    model = task_model(cross_drop_path=0.5, text_drop_path=0.5)
    last = model.head.encoder.layers[-1]
    assert last.feed_forward.drop_path.rate == 0.5
