"""The smallest model, texts and batches that have every part."""

import torch
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.x2vlm import X2VLM, build_model


def tiny_config(**changes) -> ModelConfig:
    """A model whose image and text widths differ."""
    sizes = {
        "vision": VisionConfig(image_res=64, width=24, depth=2, num_heads=2),
        "text": TextConfig(width=16, num_layers=2, num_heads=2, intermediate=32, vocab_size=50, max_positions=20),
        "fusion": FusionConfig(num_layers=2, num_heads=4, intermediate=40),
        "embed_dim": 8,
    }
    return ModelConfig(**(sizes | changes))


def tiny_model(**changes) -> X2VLM:
    """The same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return build_model(tiny_config(**changes)).eval()


def tiny_text(rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Token ids and mask of up to three texts of different lengths."""
    torch.manual_seed(1)
    mask = torch.arange(length)[None] < torch.tensor([length, length - 2, length - 3])[:rows, None]
    return torch.randint(5, 50, (rows, length)) * mask, mask


def tiny_batch(kind, pixels=None, **fields) -> Batch:
    """Three texts with one or two masked tokens each."""
    ids, mask = tiny_text()
    return Batch(
        kind=kind,
        keys=["a", "b", "c"],
        text_ids_BL=ids,
        text_mask_BL=mask,
        masked_ids_BL=ids,
        masked_positions_BK=torch.tensor([[1, 2], [1, 0], [3, 0]]),
        masked_labels_BK=torch.tensor([[7, 9], [11, -100], [13, -100]]),
        pixels=pixels,
        **fields,
    )


def region_batch(**changes) -> Batch:
    """Two images, one of them with a region and both with texts about the whole."""
    torch.manual_seed(2)
    fields = {
        "image_of_R": torch.tensor([0, 0, 1]),
        "patch_mask_RP": torch.rand(3, 16) > 0.5,
        "box_cxcywh_R4": torch.tensor([[0.5, 0.5, 1, 1], [0.3, 0.3, 0.2, 0.4], [0.6, 0.5, 0.5, 0.5]]),
        "is_whole_image_R": torch.tensor([True, False, False]),
    }
    return tiny_batch("region", torch.randn(2, 3, 64, 64), **(fields | changes))


def deep_model(**vision):
    """A tiny model in training mode with four or more image blocks and values large enough that each matters."""
    sizes = {"image_res": 64, "width": 24, "depth": 4, "num_heads": 2, "drop_path": 0.4}
    model = tiny_model(vision=VisionConfig(**(sizes | vision))).train()
    with torch.no_grad():
        for name, parameter in model.vision.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 if "table" in name else 0.05)
    return model
