"""The passes and losses of one batch as the reference computes them; see `reference_graph` for the purpose.

Kept on purpose: clean and masked texts go through the text layers separately; one fusion call per pass (positive pairs;
twice as many negative pairs; masked tokens; boxes); every region gets a copy of its image's tokens before anything is
projected; negatives are drawn row by row, each with a synchronisation; the MLM head runs on unused slots too;
generalised IoU is an R x R matrix of which the diagonal is used. On the meta device pass negatives: there is nothing to
draw from.

B rows, M images, R regions, F frames, P patches, N = P + 1, L text tokens, K masked slots, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tests.benchmarks.reference_graph import ReferenceGraph

Negatives = tuple[
    Sequence[int], Sequence[int]
]  # for every text the row of a negative image, for every image that of a negative text


@dataclass(frozen=True)
class GraphInputs:
    """One batch under the names of the golden arrays; `image` is None for texts alone, 5-D for clips."""

    text_ids: Tensor
    text_atts: Tensor
    text_ids_masked: Tensor
    masked_pos: Tensor
    masked_ids: Tensor
    image: Tensor | None = None
    image_atts: Tensor | None = None
    idx_to_group_img: Tensor | None = None
    target_bbox: Tensor | None = None
    is_image: Tensor | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "GraphInputs":
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__ if name in arrays})


def reference_losses(
    model: ReferenceGraph, inputs: GraphInputs, negatives: Negatives | None = None, matching: bool = True
) -> dict[str, Tensor]:
    """loss_itc, loss_itm, loss_mlm; with regions loss_bbox, loss_giou; with texts alone loss_mlm. Unweighted."""
    if inputs.image is None:
        return {"loss_mlm": mlm_loss(model, inputs, None, None)}
    image, image_atts, whole = image_side(model, inputs)
    text = model.text_encoder.encode(inputs.text_ids, inputs.text_atts)
    image_features = normalize(model.vision_proj(image[:, 0]), dim=-1)
    text_features = normalize(model.text_proj(text[:, 0]), dim=-1)
    losses = {"loss_itc": contrastive_loss(model, image_features, text_features)}
    if matching:
        chosen = negatives if negatives is not None else draw(model, image_features, text_features)
        losses["loss_itm"] = matching_loss(model, text, inputs.text_atts, image, image_atts, chosen)
    losses["loss_mlm"] = mlm_loss(model, inputs, image, image_atts)
    if whole is not None:
        losses["loss_bbox"], losses["loss_giou"] = box_losses(model, inputs, text, whole)
    return losses


def image_side(model: ReferenceGraph, inputs: GraphInputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens (B, N, D) and mask (B, N) of the image or region of each text; for regions also those of the whole image.

    Token 0 is the mean of the patches, for a region of the patches under its box.
    """
    pixels = inputs.image
    assert pixels is not None
    if pixels.ndim == 5:
        return video_side(model, pixels)
    patches = model.vision_encoder(pixels)
    tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
    if inputs.idx_to_group_img is None:
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device), None
    assert inputs.image_atts is not None
    copies = patches[inputs.idx_to_group_img]
    under_box = inputs.image_atts[:, 1:].to(copies.dtype)
    summary = (under_box[:, :, None] * copies).sum(dim=1) / under_box.sum(dim=1, keepdim=True)
    regions = torch.cat([summary[:, None], copies], dim=1)
    return regions, inputs.image_atts, tokens[inputs.idx_to_group_img]


def video_side(model: ReferenceGraph, frames: Tensor) -> tuple[Tensor, Tensor, None]:
    """Per frame as an image, the frame's vector added to all its tokens, then the mean over frames."""
    patches = model.vision_encoder(frames.flatten(0, 1))
    tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1).unflatten(0, frames.shape[:2])
    if model.sizes.frames is not None:
        tokens = tokens + model.absolute_frame_pos_embed[:, : frames.shape[1]]
    clips = tokens.mean(dim=1)
    return clips, torch.ones(clips.shape[:2], dtype=torch.long, device=clips.device), None


def contrastive_loss(model: ReferenceGraph, image: Tensor, text: Tensor) -> Tensor:
    logits = image @ text.T / model.temp
    labels = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


@torch.no_grad()
def draw(model: ReferenceGraph, image: Tensor, text: Tensor) -> Negatives:
    """A negative image per text, then a negative text per image, with a synchronisation for each."""
    similarity = image.float() @ text.float().T / model.temp
    of_image = (similarity.softmax(dim=1) + 1e-5).fill_diagonal_(0)
    of_text = (similarity.T.softmax(dim=1) + 1e-5).fill_diagonal_(0)
    wrong_images = [int(torch.multinomial(row, 1).item()) for row in of_text]
    wrong_texts = [int(torch.multinomial(row, 1).item()) for row in of_image]
    return wrong_images, wrong_texts


def matching_loss(
    model: ReferenceGraph, text: Tensor, atts: Tensor, image: Tensor, image_atts: Tensor, negatives: Negatives
) -> Tensor:
    """Positive pairs in one pass, negative images and texts in a second one of twice the rows."""
    wrong_images, wrong_texts = negatives
    other_image, other_image_atts = (torch.stack([x[row] for row in wrong_images]) for x in (image, image_atts))
    other_text, other_atts = (torch.stack([x[row] for row in wrong_texts]) for x in (text, atts))
    fuse = model.text_encoder.fuse
    own = fuse(text, atts, image, image_atts)[:, 0]
    wrong = fuse(
        torch.cat([text, other_text]), torch.cat([atts, other_atts]),
        torch.cat([other_image, image]), torch.cat([other_image_atts, image_atts]),
    )[:, 0]  # fmt: skip
    logits = model.itm_head(torch.cat([own, wrong]))
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(own)] = 1
    return cross_entropy(logits, labels)


def mlm_loss(model: ReferenceGraph, inputs: GraphInputs, image: Tensor | None, image_atts: Tensor | None) -> Tensor:
    """All layers again on the masked texts; tokens are predicted in every slot, used or not."""
    text = model.text_encoder.encode(inputs.text_ids_masked, inputs.text_atts)
    fused = model.text_encoder.fuse(text, inputs.text_atts, image, image_atts)
    slots = inputs.masked_pos[:, :, None].expand(-1, -1, fused.shape[-1])
    logits = model.text_encoder.cls.predictions(fused.gather(1, slots))
    return cross_entropy(logits.flatten(0, 1), inputs.masked_ids.flatten(), ignore_index=-100)


def box_losses(model: ReferenceGraph, inputs: GraphInputs, text: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and generalised IoU of the boxes predicted from the whole image; whole-image rows do not count."""
    target = inputs.target_bbox
    assert target is not None
    seen = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
    fused = model.text_encoder.fuse(text, inputs.text_atts, whole, seen)
    predicted = model.bbox_head(fused[:, 0]).sigmoid().float()
    counted = torch.ones(len(target), device=target.device) if inputs.is_image is None else 1 - inputs.is_image.float()
    l1 = (predicted - target).abs().sum(dim=1)
    ours, theirs = corners(predicted), corners(target)
    if target.device.type != "meta" and ((ours[:, 2:] < ours[:, :2]).any() or (theirs[:, 2:] < theirs[:, :2]).any()):
        missed = torch.zeros_like(l1)  # one box of negative size disables the term for the batch
    else:
        missed = 1 - generalised_iou_matrix(ours, theirs).diagonal()
    return (l1 * counted).sum() / counted.sum(), (missed * counted).sum() / counted.sum()


def corners(box: Tensor) -> Tensor:
    """(left, top, right, bottom) of (centre x, centre y, width, height)."""
    return torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], dim=1)


def generalised_iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """(R, R) generalised IoU of all pairs of corner boxes."""
    area_first, area_second = ((x[:, 2:] - x[:, :2]).prod(dim=1) for x in (first, second))
    low, high = torch.maximum(first[:, None, :2], second[:, :2]), torch.minimum(first[:, None, 2:], second[:, 2:])
    inner = (high - low).clamp_min(0).prod(dim=2)
    union = area_first[:, None] + area_second - inner
    low, high = torch.minimum(first[:, None, :2], second[:, :2]), torch.maximum(first[:, None, 2:], second[:, 2:])
    outer = (high - low).clamp_min(0).prod(dim=2)
    return inner / union - (outer - union) / outer
