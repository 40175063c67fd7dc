"""Saving a model to a folder and getting the same one back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.test_x2vlm import tiny_model
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.models.config import TextConfig
from x2vlm.models.hf import from_pretrained, save_pretrained


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path, tied):
    text = TextConfig(width=16, num_layers=1, num_heads=2, intermediate=32, vocab_size=50, max_positions=20)
    model = tiny_model(num_frames=2, tie_words=tied, text=text)
    save_pretrained(model, tmp_path / "model")
    other = from_pretrained(tmp_path / "model")
    assert other.config == model.config
    assert not other.training
    state = other.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        save_pretrained(tiny_model(), tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_unusable_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        from_pretrained(tmp_path)
    save_pretrained(tiny_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name != "temperature"}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptArtifact, match="temperature"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors"):
        from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model": {"embed_dims": 3}}))
    with pytest.raises(ConfigError, match="embed_dim"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match="model_type"):
        from_pretrained(tmp_path)
