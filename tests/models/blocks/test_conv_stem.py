"""The stem of convolutions: one patch where a patch embedding has one, from the pixels around it."""

import pydantic
import pytest
import torch

from x2vlm.models.blocks.conv_stem import ConvStem
from x2vlm.models.config import VisionConfig, stem_layers
from x2vlm.models.vision import VisionEncoder

CONFIG = VisionConfig(stem="conv", image_res=48, patch_size=12, width=64, depth=1, num_heads=2)


def test_strides_are_the_prime_factors_of_the_patch_size() -> None:
    assert stem_layers(CONFIG) == [(3, 8, 3), (8, 16, 2), (16, 32, 2)]
    released = VisionConfig(stem="conv")
    assert stem_layers(released) == [(3, 48, 2), (48, 96, 2), (96, 192, 2), (192, 384, 2)]
    deep = CONFIG.model_copy(update={"stem": "deep_conv"})
    assert stem_layers(deep) == [(3, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 3), (64, 64, 1)]


def test_a_patch_depends_on_the_pixels_around_its_place_alone() -> None:
    torch.manual_seed(0)
    stem = ConvStem(CONFIG)
    image = torch.randn(1, 3, 48, 48, requires_grad=True)
    patches_BPD = stem(image)
    assert patches_BPD.shape == (1, 16, 64)
    before_norms = torch.nn.Sequential(*(layer for layer in stem.layers if isinstance(layer, torch.nn.Conv2d)))
    before_norms(image)[0, :, 1, 2].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(dim=0).nonzero()
    # 3 x 3 pixels, then 1 more on each side at stride 3, and 1 more at stride 6: around (12..23, 24..35).
    assert seen.min(dim=0).values.tolist() == [12 - 10, 24 - 10]
    assert seen.max(dim=0).values.tolist()[0] < 24 + 10


@pytest.mark.parametrize("backbone", ["beit2", "clip_vit"])
def test_an_image_has_the_same_tokens_alone_and_among_others(backbone: str) -> None:
    torch.manual_seed(0)
    tower = VisionEncoder(CONFIG.model_copy(update={"backbone": backbone})).eval()
    images = torch.randn(3, 3, 48, 48)
    together, alone = tower(images).patches_MPD, tower(images[1:2]).patches_MPD
    assert together.shape == (3, 16, 64)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="prime factors are 2 and 3, not 14"):
        VisionConfig(stem="conv", image_res=224, patch_size=14)
    with pytest.raises(pydantic.ValidationError, match="swin has stages of its own"):
        VisionConfig(backbone="swin", stem="conv", patch_size=32)
