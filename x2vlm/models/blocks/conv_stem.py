"""Patches by a few convolutions instead of one: what a small image tower needs to learn from few images.

Xiao et al. 2021, "Early Convolutions Help Transformers See Better": 3 x 3 convolutions with small strides instead of
one whose stride is its size. Theirs have batch norm; here each image is normalised alone, so that its features do not
depend on the rest of its batch.
"""

from torch import Tensor, nn

from x2vlm.models.config import VisionConfig, stem_layers


class ConvStem(nn.Module):
    """Pixels (B, 3, H, W) to patches (B, P, D), row by row; takes the place of a timm model's `patch_embed`."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.size, self.grid_size = (cfg.image_res, cfg.image_res), (cfg.grid, cfg.grid)
        self.num_patches = cfg.grid**2
        layers: list[nn.Module] = []
        for channels_in, channels_out, stride in stem_layers(cfg):
            layers += [
                nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
                nn.GroupNorm(1, channels_out),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(stem_layers(cfg)[-1][1], cfg.width, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        patches_BDHW: Tensor = self.proj(self.layers(images_BCHW))
        return patches_BDHW.flatten(2).transpose(1, 2)
