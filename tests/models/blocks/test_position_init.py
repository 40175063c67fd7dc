"""Absolute positions of the image tower that start as sines and cosines."""

import pydantic
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from x2vlm.models.config import VisionConfig
from x2vlm.models.vision import AMPLITUDE, VisionEncoder

CONFIG = VisionConfig(
    backbone="clip_vit", position_init="sincos", image_res=48, patch_size=12, width=64, depth=1, num_heads=2
)


def test_the_nearest_positions_are_those_of_neighbours() -> None:
    tower = VisionEncoder(CONFIG)
    assert isinstance(tower.trunk, VisionTransformer)
    positions_PD = tower.trunk.pos_embed[0, 1:]
    assert positions_PD.shape == (16, 64)
    assert positions_PD.requires_grad
    # A sine and a cosine of each wave: every position is as large as the others.
    torch.testing.assert_close(positions_PD.square().mean(dim=1), torch.full((16,), 0.5 * AMPLITUDE**2))
    distance = torch.cdist(positions_PD, positions_PD).fill_diagonal_(torch.inf)
    for patch, nearest in enumerate(distance.argmin(dim=1).tolist()):
        rows, columns = abs(patch // 4 - nearest // 4), abs(patch % 4 - nearest % 4)
        assert rows + columns == 1, (patch, nearest)


def test_all_else_is_as_without_it() -> None:
    torch.manual_seed(0)
    with_waves = VisionEncoder(CONFIG).state_dict()
    torch.manual_seed(0)
    without = VisionEncoder(CONFIG.model_copy(update={"position_init": "normal"})).state_dict()
    assert [name for name in without if not torch.equal(without[name], with_waves[name])] == ["trunk.pos_embed"]
    torch.testing.assert_close(with_waves["trunk.pos_embed"][:, :1], without["trunk.pos_embed"][:, :1])


def test_towers_without_absolute_positions_refuse_it() -> None:
    with pytest.raises(pydantic.ValidationError, match="beit2 has no absolute positions"):
        VisionConfig(position_init="sincos")
    with pytest.raises(pydantic.ValidationError, match="multiple of 4"):
        VisionConfig(backbone="clip_vit", position_init="sincos", width=66, num_heads=2)
