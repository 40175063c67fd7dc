"""Saving a model to a folder and getting the same one back."""

import json
import shutil
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.support.models.folders import small_pretrained
from tests.support.models.tiny import tiny_model
from x2vlm import inference
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable
from x2vlm.inference.pretrained import from_pretrained, save_pretrained
from x2vlm.models.config import TextConfig


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


def test_weights_of_another_width_are_refused_with_both_shapes(tmp_path):
    save_pretrained(tiny_model(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model"]["text"]["width"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(
        CorruptArtifact, match=r"text_proj\.weight \(8, 16\) instead of \(8, 32\)|\(50, 16\) instead of"
    ):
        from_pretrained(tmp_path)


def test_cut_weights_are_refused_by_name(tmp_path):
    save_pretrained(tiny_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptArtifact, match=r"model\.safetensors.*copy the folder again"):
            from_pretrained(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_loaded(tmp_path, zipped):
    """Under the right name, and lying where the weights should be; its code must not run."""
    marker = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (marker.touch, ())

    model = tiny_model()
    save_pretrained(model, tmp_path)
    path = tmp_path / "model.safetensors"
    torch.save({"weights": model.state_dict(), "code": Code()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CorruptArtifact, match=r"it is a pickle: .*never loaded"):
        from_pretrained(tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptArtifact, match=r"the folder has pytorch_model\.bin, but a pickle can run code"):
        from_pretrained(tmp_path)
    assert not marker.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of huggingface_hub as a download leaves it, and no way to the network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small"
    pretrained = small_pretrained("bert", tmp_path / "tokenizer", 3)
    save_pretrained(pretrained.model, repository / "snapshots" / commit, processor=pretrained.processor)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return pretrained


def test_a_hub_name_is_taken_from_the_cache(hub, tmp_path):
    loaded = inference.load("someone/small")
    assert all(torch.equal(a, b) for a, b in zip(hub.model.parameters(), loaded.model.parameters(), strict=True))
    assert from_pretrained("someone/small", revision="main").config == hub.model.config
    with pytest.raises(SourceUnavailable, match=r"someone/other.*HF_TOKEN"):
        from_pretrained("someone/other")
    with pytest.raises(SourceUnavailable, match="someone/small"):
        from_pretrained("someone/small", revision="v9")
    for name in ("nowhere", "/nowhere/else", "./some/where", "a/b/c", "../up", "someone/sm all", tmp_path / "none"):
        with pytest.raises(ConfigError, match="folder"):
            from_pretrained(name)


def test_a_folder_goes_before_the_hub(hub, tmp_path):
    shutil.copytree(tmp_path / "hub" / "models--someone--small" / "snapshots", tmp_path / "someone", symlinks=False)
    (local,) = (tmp_path / "someone").iterdir()
    local.rename(tmp_path / "someone" / "small")
    (tmp_path / "someone" / "small" / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="preprocessor_config"):
        inference.load("someone/small")


def test_without_huggingface_hub_a_name_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceUnavailable, match="pip install huggingface_hub"):
        from_pretrained("someone/small")


def test_a_processor_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    pretrained = small_pretrained("bert", tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="does not fit"):
        save_pretrained(tiny_model(), tmp_path / "model", processor=pretrained.processor)
    assert not (tmp_path / "model").exists()
