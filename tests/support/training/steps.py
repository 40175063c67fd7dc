"""Steps to compute losses of, and the same losses from the model's public calls: padded, pass by pass, row by row."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from tests.support.models.tiny import tiny_config
from x2vlm.data.loading.batch import Batch
from x2vlm.models.config import TextConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.objectives.box_losses import box_losses
from x2vlm.objectives.losses import contrastive, masked_lm, matching

NUM_SLOTS = 5
Negatives = dict[str, tuple[Tensor, Tensor]]


def step_model(temporal: Literal["mean", "attention"] = "mean", **text: Any) -> X2VLM:
    """A model whose image and text widths differ, for captions of up to 40 tokens and clips of two frames."""
    torch.manual_seed(0)
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32, "vocab_size": 50, "max_positions": 48}
    vision = tiny_config().vision.model_copy(update={"temporal": temporal})
    model = build_model(tiny_config(num_frames=2, vision=vision, text=TextConfig(**(sizes | text)))).eval()
    with torch.no_grad():  # start values leave biases at zero and the layers close to the identity
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def texts(lengths: list[int], num_masked: list[int], width: int, seed: int, known: bool = True) -> dict[str, Any]:
    """The text fields of a batch padded to `width` tokens; with `known` the host knows their lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 50, (rows, width), generator=generator)
    positions = torch.zeros(rows, NUM_SLOTS, dtype=torch.long)
    labels = torch.full((rows, NUM_SLOTS), -100)
    for row, (length, count) in enumerate(zip(lengths, num_masked, strict=True)):
        positions[row, :count] = torch.randperm(length - 1, generator=generator)[:count].sort().values + 1
        labels[row, :count] = torch.randint(5, 50, (count,), generator=generator)
    masked = ids.scatter(1, positions, 4)
    return {
        "keys": [f"{seed}-{row}" for row in range(rows)],
        "text_ids_BL": ids * mask,
        "text_mask_BL": mask,
        "masked_ids_BL": masked * mask,
        "masked_positions_BK": positions,
        "masked_labels_BK": labels,
        "lengths": tuple(lengths) if known else None,
        "num_masked": tuple(num_masked) if known else None,
    }


def mixed_step(known: bool = True) -> tuple[dict[str, Batch], Negatives]:
    """Images, regions, clips and texts with everything that could go wrong in a layout.

    Texts of 3 to 40 tokens, some without a masked token; an image that is everybody's negative and images that are
    nobody's; two equal regions, a region of one patch, one of all patches; an image in which no region lies.
    """
    generator = torch.Generator().manual_seed(9)
    image_of = [0, 0, 2, 2, 2, 1, 0]
    patches = torch.rand(7, 16, generator=generator) > 0.5
    patches[:, 3] = True
    patches[3] = patches[2]
    patches[4] = torch.arange(16) == 5
    patches[5] = True
    box = torch.rand(7, 4, generator=generator) * 0.5 + 0.2
    batches = {
        "images": Batch(
            kind="image",
            pixels=torch.randn(6, 3, 64, 64, generator=generator),
            **texts([3, 40, 17, 8, 9, 25], [1, 5, 4, 0, 3, 5], 40, 1, known),
        ),
        "regions": Batch(
            kind="region",
            pixels=torch.randn(4, 3, 64, 64, generator=generator),
            image_of_R=torch.tensor(image_of),
            image_of=tuple(image_of) if known else None,
            patch_mask_RP=patches,
            box_cxcywh_R4=box,
            is_whole_image_R=torch.tensor([False, False, False, False, False, True, False]),
            **texts([4, 6, 3, 3, 11, 16, 5], [2, 3, 1, 1, 0, 5, 2], 16, 2, known),
        ),
        "clips": Batch(
            kind="video",
            pixels=torch.randn(3, 2, 3, 64, 64, generator=generator),
            **texts([12, 7, 19], [3, 2, 5], 24, 3, known),
        ),
        "texts": Batch(kind="text", **texts([5, 22, 8, 3], [2, 5, 3, 0], 24, 4, known)),
    }
    negatives = {
        "images": (torch.tensor([3, 3, 3, 0, 3, 3]), torch.tensor([1, 0, 1, 1, 2, 1])),
        "regions": (torch.tensor([2, 5, 0, 5, 0, 2, 4]), torch.tensor([5, 2, 1, 6, 5, 0, 3])),
        "clips": (torch.tensor([1, 2, 0]), torch.tensor([2, 2, 0])),
    }
    return batches, negatives


def padded_losses(model: X2VLM, batches: Mapping[str, Batch], negatives: Negatives) -> dict[str, dict[str, Tensor]]:
    """The losses by public calls on padded rows: every pass on its own, image tokens repeated for every row."""
    return {label: _padded_losses(model, batch, negatives.get(label)) for label, batch in batches.items()}


def _padded_losses(model: X2VLM, batch: Batch, negatives: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    masked = model.encode_text(batch.masked_ids_BL, batch.text_mask_BL)
    vision, whole = _images(model, batch)
    words = model.predict_words(model.fuse(masked, batch.text_mask_BL, vision), batch.masked_positions_BK)
    losses = {"masked_lm": masked_lm(words, batch.masked_labels_BK)}
    if vision is None or negatives is None:
        return losses
    text, mask = model.encode_text(batch.text_ids_BL, batch.text_mask_BL), batch.text_mask_BL
    losses["contrastive"] = contrastive(*model.project(vision, text), model.temperature)
    image_negative, text_negative = negatives
    own = model.match(model.fuse(text, mask, vision))
    wrong_images = model.match(model.fuse(text, mask, vision.select(image_negative)))
    wrong_texts = model.match(model.fuse(text[text_negative], mask[text_negative], vision))
    losses["matching"] = matching(torch.cat([own, wrong_images, wrong_texts]))
    if whole is not None:
        boxes = model.locate(model.fuse(text, mask, whole))
        losses["box_l1"], losses["box_giou"] = box_losses(boxes, batch.box_cxcywh_R4, ~batch.is_whole_image_R)
    return losses


def _images(model: X2VLM, batch: Batch) -> tuple[VisionTokens | None, VisionTokens | None]:
    """Unshared: each row brings its own copy of the patches."""
    if batch.kind == "text":
        return None, None
    if batch.kind == "video":
        return model.encode_video(batch.pixels), None
    images = model.encode_image(batch.pixels)
    if batch.kind == "image":
        return images, None
    regions = model.pool_regions(images, batch.image_of_R, batch.patch_mask_RP)
    own = images.patches_MPD[batch.image_of_R]
    whole = VisionTokens(summary_BD=images.summary_BD[batch.image_of_R], patches_MPD=own)
    return VisionTokens(regions.summary_BD, own, None, regions.patch_mask_BP), whole


def gradients(model: X2VLM, losses: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Gradients of all parameters of the sum of all losses, each stream with a weight of its own."""
    model.zero_grad()
    total = sum((number + 1) * loss for number, parts in enumerate(losses.values()) for loss in parts.values())
    total.backward()
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
