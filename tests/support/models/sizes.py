"""Model sizes and batch shapes whose cost is known: those of the published models, and small ones."""

from x2vlm.cost.flops import BatchShape
from x2vlm.data.kinds import BatchKind
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig

BASE = ModelConfig()
LARGE = ModelConfig(
    vision=VisionConfig(width=1024, depth=24, num_heads=16),
    text=TextConfig(width=1024, num_heads=16, intermediate=4096),
    fusion=FusionConfig(num_heads=16, intermediate=4096),
)


def batch_shape(kind: BatchKind, num_texts: int, num_images: int, matching: bool = True) -> BatchShape:
    """Captions of 14 tokens, 7 of them masked; labels of regions of 6, 3 masked: the lengths of the tables."""
    length, masked = (6, 3) if kind == "region" else (14, 7)
    return BatchShape(kind, num_images, (length,) * num_texts, (masked,) * num_texts, matching)


BASE_4M = [batch_shape("image", 128, 128), batch_shape("region", 128, 50)]
LARGE_4M = [batch_shape("image", 64, 64), batch_shape("region", 64, 25)]
BASE_PHASE_2 = [batch_shape("image", 64, 64), batch_shape("region", 64, 26), batch_shape("video", 40, 120)]
LARGE_PHASE_2 = [batch_shape("image", 32, 32), batch_shape("region", 32, 14), batch_shape("video", 20, 60)]


# Small and uneven on purpose: image and text differ in width, hardly a size equals another.
SMALL = ModelConfig(
    vision=VisionConfig(image_res=48, patch_size=16, width=48, depth=3, num_heads=4),
    text=TextConfig(width=32, num_layers=2, num_heads=2, intermediate=80, vocab_size=101),
    fusion=FusionConfig(num_layers=3, num_heads=4, intermediate=72),
    embed_dim=24,
)
TOWERS = {
    "beit2": SMALL.vision,
    "clip_vit": SMALL.vision.model_copy(update={"backbone": "clip_vit"}),
    "beit2 with a conv stem": SMALL.vision.model_copy(update={"stem": "conv"}),
    "clip_vit with a deep conv stem": VisionConfig(
        backbone="clip_vit", stem="deep_conv", image_res=48, patch_size=12, width=64, depth=2, num_heads=2
    ),
    "swin": VisionConfig(backbone="swin", image_res=64, patch_size=32, width=64, depth=8, num_heads=8),
}
ATTENTIVE = SMALL.model_copy(
    update={"num_frames": 4, "vision": SMALL.vision.model_copy(update={"temporal": "attention"})}
)
