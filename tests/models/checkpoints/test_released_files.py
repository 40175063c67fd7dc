"""Checkpoint files that are damaged, hold no model, or hold code: refused with their name, and nothing is executed."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tests.support.models.reference_shapes import Sizes, grounding, random_state
from x2vlm.errors import CorruptArtifact, SourceUnavailable
from x2vlm.models.checkpoints.released import load_checkpoint, read_checkpoint

SIZES = Sizes(
    vision=24, depth=2, vision_heads=3, grid=4, vision_inner=96, text=16, text_layers=2, fusion_layers=2, inner=40,
    vocab=50, positions=20, embed=8,
)  # fmt: skip


def grounding_state() -> dict[str, torch.Tensor]:
    return random_state(grounding(SIZES), SIZES)


class Bomb:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path):
    target = tmp_path / "executed"
    bombs = {"plain.th": pickle.dumps({"model": Bomb(target)})}
    buffer = io.BytesIO()
    torch.save({"model": grounding_state(), "config": Bomb(target)}, buffer)
    bombs["beside_weights.th"] = buffer.getvalue()
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptArtifact, match=name):
            load_checkpoint(tmp_path / name)
    assert not target.exists()
    pickle.loads(bombs["plain.th"])  # the bomb is a real one
    assert target.exists()


def test_broken_files_are_refused_with_their_name(tmp_path):
    buffer = io.BytesIO()
    torch.save({"model": grounding_state()}, buffer)
    whole = buffer.getvalue()
    save_file(grounding_state(), tmp_path / "whole.safetensors")
    cut = (tmp_path / "whole.safetensors").read_bytes()
    contents = {
        "cut.th": whole[: len(whole) // 2],
        "empty.th": b"",
        "text.th": b"<html>404 not found</html>",
        "cut.safetensors": cut[: len(cut) // 2],
        "header.safetensors": b"\xff" * 16,
        "zip.th": _zip_of_nothing(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptArtifact, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(SourceUnavailable, match=r"absent\.th"):
        load_checkpoint(tmp_path / "absent.th")


def _zip_of_nothing() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"model": {"a": "text"}}, {"model": {}}, {"config": {}}])
def test_files_that_hold_no_model_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.th")
    with pytest.raises(CorruptArtifact, match=r"other\.th"):
        read_checkpoint(tmp_path / "other.th")
