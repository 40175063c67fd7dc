"""The scoring model: a folder that is whole, or a name pinned to the weights it must have."""

import hashlib
from pathlib import Path

import open_clip
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pipelines.s3_score import ScoreConfig
from tests.support.stages.scoring import copy_of, tiny_clip
from x2vlm.data.scores.clip_score import load_clip_folder, load_clip_name
from x2vlm.errors import ConfigError, SourceUnavailable


@pytest.mark.parametrize("gone", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_incomplete_folder_is_an_error_that_says_what_is_needed(project_root: Path, tmp_path: Path, gone: str) -> None:
    folder = copy_of(tiny_clip(project_root), tmp_path / "clip")
    (folder / gone).unlink()
    with pytest.raises(ConfigError, match=r"needs open_clip_config\.json and exactly one \.safetensors"):
        load_clip_folder(folder)


def test_weights_that_do_not_fit_the_config_are_an_error(project_root: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_clip(project_root), tmp_path / "clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["visual.proj"]
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_clip_folder(folder)


def test_a_named_model_must_be_pinned() -> None:
    with pytest.raises(ValidationError, match="weights_sha256"):
        ScoreConfig(model="ViT-B-32/openai")
    with pytest.raises(ValidationError, match="weights_sha256"):
        ScoreConfig(weights_sha256="0" * 64)
    assert ScoreConfig(model="ViT-B-32/openai", weights_sha256="0" * 64).device == "auto"


def test_a_named_model_is_loaded_if_its_weights_are_the_expected_ones(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "ViT-B-32.safetensors"
    with torch.device("meta"):  # its shapes; drawing 151 million numbers takes seconds
        state = open_clip.create_model("ViT-B-32", device="meta").state_dict()
    shapes = {name: value.shape for name, value in state.items()}
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, weights)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda known: str(weights))  # the edge of the network
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    clip = load_clip_name("ViT-B-32/openai", digest, "cpu")
    assert clip.weights_sha256 == digest
    with pytest.raises(SourceUnavailable, match=f"{digest}, the experiment expects 0000"):
        load_clip_name("ViT-B-32/openai", "0" * 64, "cpu")
    with pytest.raises(ConfigError, match="knows no model"):
        load_clip_name("ViT-B-32/nothing", digest, "cpu")
