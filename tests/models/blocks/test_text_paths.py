"""Stochastic depth of the text and fusion layers: whole texts, or as in the reference positions of all texts."""

import numpy as np
import pytest
import torch

from tests.support.models.tiny import tiny_config, tiny_model
from tests.support.training.steps import mixed_step, step_model
from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.models.blocks.text_paths import TextDropPath, rates_of_layers, rows_of_counts, rows_of_offsets
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.objectives.step import step_losses

LENGTHS = [3, 7, 1, 5]


def kept(path, packed):
    """(4, 7, 8) factors of four texts; NaN where a text has no token."""
    torch.manual_seed(4)
    if not packed:
        return path(torch.ones(4, 7, 8))
    rows = rows_of_counts(np.array(LENGTHS), torch.device("cpu"))
    offsets = torch.cat([torch.arange(length) for length in LENGTHS])
    assert torch.equal(rows_of_offsets(offsets).text_of_T, rows.text_of_T)
    assert torch.equal(rows_of_offsets(offsets).position_of_T, rows.position_of_T)
    path.rows = rows
    found = path(torch.ones(1, sum(LENGTHS), 8))[0]
    table = torch.full((4, 7, 8), torch.nan)
    for text, piece in enumerate(found.split(LENGTHS)):
        table[text, : len(piece)] = piece
    return table


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_whole_texts_or_positions_of_all_texts_are_dropped(packed):
    for parity, same_along in (("fixed", 1), ("reference", 0)):
        for _ in range(10):
            table = kept(TextDropPath(0.5, parity).train(), packed)
            known = ~table.isnan()
            assert set(table[known].tolist()) <= {0.0, 2.0}
            lowest = table.masked_fill(~known, torch.inf).amin(dim=same_along)
            highest = table.masked_fill(~known, -torch.inf).amax(dim=same_along)
            assert torch.equal(lowest, highest)
        assert len(set(table[known].tolist())) == 2


def test_rates_grow_and_nothing_is_dropped_in_evaluation():
    assert rates_of_layers(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates_of_layers(0.3, 1) == [0]
    states = torch.ones(1000, 2, 1)
    assert TextDropPath(0.4, "fixed").eval()(states) is states
    assert TextDropPath(0.0, "fixed").train()(states) is states
    found = TextDropPath(0.4, "fixed").train()(states)
    assert found.mean().item() == pytest.approx(1, abs=0.1)


def with_paths(**changes):
    """The model of the step tests with the given drop paths and without other dropout."""
    config = step_model(dropout=0.0, attention_dropout=0.0).config
    vision = config.vision.model_copy(update={"drop_path": 0.0})
    fusion = config.fusion.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    torch.manual_seed(0)
    return build_model(
        ModelConfig.model_validate({**config.model_dump(), "vision": vision, "fusion": fusion, **changes})
    )


@pytest.mark.parametrize("name", ["text_drop_path", "cross_drop_path"])
def test_training_steps_drop_paths_and_evaluation_does_not(name):
    batches, negatives = mixed_step()
    plain, model = with_paths(), with_paths(**{name: 0.6})
    assert model.state_dict().keys() == plain.state_dict().keys()

    def loss(of):
        return step_losses(of, batches, negatives=negatives)["images"]["masked_lm"].item()

    assert loss(model.eval()) == loss(plain.eval())
    expected, draws = loss(plain.train()), {loss(model.train()) for _ in range(4)}
    assert len(draws) == 4
    assert expected not in draws


def test_padded_calls_drop_whole_texts():
    model = tiny_model(text_drop_path=0.9, cross_drop_path=0.9).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids, mask = torch.randint(5, 50, (6, 7)), torch.ones(6, 7, dtype=torch.bool)
    same = ids[:1].expand(6, -1)
    states = torch.cat([model.encode_text(same, mask) for _ in range(4)]).flatten(1)
    assert 1 < len(states.round(decimals=4).unique(dim=0)) <= 2**2  # the last layer keeps or drops its two branches


def test_the_reference_replaces_dropout_and_needs_both_rates():
    config = tiny_config(text_drop_path=0.1, cross_drop_path=0.2, text_drop_path_parity="reference")
    model = build_model(config)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert rates["text.encoder.embeddings.dropout"] == 0.1
    layers = [p for name, p in rates.items() if ".output" in name or "fusion" in name]
    assert layers
    assert not any(layers)
    with pytest.raises(ConfigError, match="both rates"):
        parse_config(ModelConfig, {"text_drop_path": 0.1, "text_drop_path_parity": "reference"}, "model")
