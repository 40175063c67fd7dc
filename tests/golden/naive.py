"""The reference's arithmetic once more, naively: plain functions over a state under reference names.

Written from the description of the reference, without any of the project's model code, so that golden cases of kinds
without public examples can be made. B rows, N image tokens, L text tokens, D width. Evaluation mode.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, normalize

from tests.support.models.reference_shapes import relative_position_index


@dataclass(frozen=True)
class Naive:
    """A model: its state, and the reference's description of it."""

    state: dict[str, Tensor]
    cfg: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]

    @property
    def is_separate(self) -> bool:
        return "cross_encoder.encoder.layer.0.output.dense.weight" in self.state


def affine(m: Naive, name: str, x: Tensor) -> Tensor:
    return linear(x, m[f"{name}.weight"], m[f"{name}.bias"])


def normed(m: Naive, name: str, x: Tensor, eps: float) -> Tensor:
    return layer_norm(x, x.shape[-1:], m[f"{name}.weight"], m[f"{name}.bias"], eps)


def image_tokens(m: Naive, pixels: Tensor) -> Tensor:
    """(B, 1 + patches, D): the mean of the normalised patches, then the patches."""
    eps, heads, patch = m.cfg["vision_layernorm_eps"], m.cfg["vision_heads"], m.cfg["patch_size"]
    proj = "vision_encoder.patch_embed.proj"
    grid = pixels.shape[-1] // patch
    cut = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # B C rows columns patch patch
    flat = cut.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), grid * grid, -1)
    x = linear(flat, m[f"{proj}.weight"].flatten(1), m[f"{proj}.bias"])
    x = torch.cat([m["vision_encoder.cls_token"].expand(len(x), 1, -1), x], dim=1)
    index = relative_position_index(grid)
    for i in range(m.cfg["vision_depth"]):
        block = f"vision_encoder.blocks.{i}"
        h = normed(m, f"{block}.norm1", x, eps)
        q_bias, v_bias = m[f"{block}.attn.q_bias"], m[f"{block}.attn.v_bias"]
        qkv = h @ m[f"{block}.attn.qkv.weight"].T + torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        bias = m[f"{block}.attn.relative_position_bias_table"][index].permute(2, 0, 1)
        weights = (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2) + bias).softmax(-1)
        h = (weights @ v).transpose(1, 2).flatten(2)
        x = x + m[f"{block}.gamma_1"] * affine(m, f"{block}.attn.proj", h)
        h = gelu(affine(m, f"{block}.mlp.fc1", normed(m, f"{block}.norm2", x, eps)))
        x = x + m[f"{block}.gamma_2"] * affine(m, f"{block}.mlp.fc2", h)
    patches = normed(m, "vision_encoder.fc_norm", x[:, 1:], eps)
    return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)


def video_tokens(m: Naive, frames: Tensor) -> Tensor:
    encoded = [image_tokens(m, frames[:, f]) for f in range(frames.shape[1])]
    position = m["absolute_frame_pos_embed"]
    return torch.stack([tokens + position[:, f] for f, tokens in enumerate(encoded)]).mean(0)


def attend(m: Naive, name: str, x: Tensor, keys: Tensor, attention_bias: Tensor) -> Tensor:
    """Post-norm attention; `attention_bias` is added to the logits."""
    heads = m.cfg["text_heads"]

    def split(part: str, states: Tensor) -> Tensor:
        return affine(m, f"{name}.self.{part}", states).unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split("query", x), split("key", keys), split("value", keys)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + attention_bias).softmax(-1)
    out = affine(m, f"{name}.output.dense", (weights @ v).transpose(1, 2).flatten(2))
    return normed(m, f"{name}.output.LayerNorm", out + x, m.cfg["text_layernorm_eps"])


def text_layer(m: Naive, layer: str, x: Tensor, pad: Tensor, image: tuple[Tensor, Tensor] | None) -> Tensor:
    x = attend(m, f"{layer}.attention", x, x, pad)
    if image is not None:
        tokens, atts = image
        x = attend(m, f"{layer}.crossattention", x, tokens, (1 - atts[:, None, None].to(x)) * -1e9)
    h = affine(m, f"{layer}.output.dense", gelu(affine(m, f"{layer}.intermediate.dense", x)))
    return normed(m, f"{layer}.output.LayerNorm", h + x, m.cfg["text_layernorm_eps"])


def text_states(m: Naive, ids: Tensor, atts: Tensor) -> Tensor:
    """After the embeddings and the text-only layers."""
    prefix = "text_encoder." if m.is_separate else "text_encoder.bert."
    table = f"{prefix}embeddings"
    x = m[f"{table}.word_embeddings.weight"][ids] + m[f"{table}.token_type_embeddings.weight"][0]
    x = x + m[f"{table}.position_embeddings.weight"][: ids.shape[1]]
    x = normed(m, f"{table}.LayerNorm", x, m.cfg["text_layernorm_eps"])
    pad = (1 - atts[:, None, None].to(x)) * -10000.0
    for i in range(m.cfg["text_only_layers"]):
        x = text_layer(m, f"{prefix}encoder.layer.{i}", x, pad, None)
    return x


def fuse(m: Naive, text: Tensor, atts: Tensor, image: tuple[Tensor, Tensor] | None) -> Tensor:
    pad = (1 - atts[:, None, None].to(text)) * -10000.0
    for i in range(m.cfg["fusion_layers"]):
        layer = f"cross_encoder.encoder.layer.{i}"
        if not m.is_separate:
            layer = f"text_encoder.bert.encoder.layer.{m.cfg['text_only_layers'] + i}"
        text = text_layer(m, layer, text, pad, image)
    return text


def head(m: Naive, name: str, x: Tensor) -> Tensor:
    return affine(m, f"{name}.3", gelu(normed(m, f"{name}.1", affine(m, f"{name}.0", x), 1e-5)))


def word_logits(m: Naive, states: Tensor, positions: Tensor) -> Tensor:
    name = "mlm_head.predictions" if m.is_separate else "text_encoder.cls.predictions"
    x = torch.stack([row[spots] for row, spots in zip(states, positions, strict=True)])
    x = normed(
        m, f"{name}.transform.LayerNorm", gelu(affine(m, f"{name}.transform.dense", x)), m.cfg["text_layernorm_eps"]
    )
    table = f"{name}.decoder.weight" if m.is_separate else "text_encoder.bert.embeddings.word_embeddings.weight"
    return x @ m[table].T + m[f"{name}.bias"]


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def box_iou_and_hull(a: list[Tensor], b: list[Tensor]) -> tuple[Tensor, Tensor]:
    """IoU and the fraction of the hull that neither covers, of two (cx, cy, w, h)."""

    def corners(box: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2

    (ax, ay, ax2, ay2), (bx, by, bx2, by2) = corners(a), corners(b)
    zero = torch.zeros_like(ax)
    inside = torch.maximum(torch.minimum(ax2, bx2) - torch.maximum(ax, bx), zero) * torch.maximum(
        torch.minimum(ay2, by2) - torch.maximum(ay, by), zero
    )
    union = (ax2 - ax) * (ay2 - ay) + (bx2 - bx) * (by2 - by) - inside
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax, bx)) * (torch.maximum(ay2, by2) - torch.minimum(ay, by))
    return inside / union, (hull - union) / hull


@dataclass(frozen=True)
class Pairs:
    """What plays the image of every row: its tokens and mask, and for regions the same for the whole image."""

    tokens: Tensor
    atts: Tensor
    full: Tensor | None = None


def image_side(m: Naive, inputs: dict[str, Tensor]) -> Pairs:
    pixels = inputs["image"]
    tokens = video_tokens(m, pixels) if pixels.ndim == 5 else image_tokens(m, pixels)
    if "idx_to_group_img" not in inputs:
        return Pairs(tokens, torch.ones(tokens.shape[:2], dtype=torch.long))
    full = tokens[inputs["idx_to_group_img"]]
    cover = inputs["image_atts"][:, 1:, None].to(full)
    summary = (full[:, 1:] * cover).sum(1, keepdim=True) / cover.sum(1, keepdim=True)
    return Pairs(torch.cat([summary, full[:, 1:]], dim=1), inputs["image_atts"], full)


def run(m: Naive, inputs: dict[str, Tensor], negatives: tuple[Tensor, Tensor] | None) -> tuple[dict, dict]:
    """(`out.*` arrays, losses) of an image, region or video batch; no matching loss without negatives."""
    pairs = image_side(m, inputs)
    text = text_states(m, inputs["text_ids"], inputs["text_atts"])
    out = {"vision_embeds": pairs.tokens, "vision_atts": pairs.atts, "text_embeds": text}
    out["image_feat"] = normalize(affine(m, "vision_proj", pairs.tokens[:, 0]), dim=-1)
    out["text_feat"] = normalize(affine(m, "text_proj", text[:, 0]), dim=-1)
    contrastive, more = contrast(m, out["image_feat"], out["text_feat"])
    losses = {"loss_itc": contrastive, "loss_itm": torch.zeros(())}
    if negatives is not None:
        losses["loss_itm"], matches = match(m, text, inputs["text_atts"], (pairs.tokens, pairs.atts), negatives)
        out |= more | matches
    masked = fuse(
        m,
        text_states(m, inputs["text_ids_masked"], inputs["text_atts"]),
        inputs["text_atts"],
        (pairs.tokens, pairs.atts),
    )
    out["mlm_logits"] = word_logits(m, masked, inputs["masked_pos"])
    losses["loss_mlm"] = mlm_loss(out["mlm_logits"], inputs["masked_ids"])
    if m.is_separate:
        out["fused_bbox"] = masked
    if pairs.full is not None:
        out["vision_embeds_full"] = pairs.full
        fused = fuse(m, text, inputs["text_atts"], (pairs.full, torch.ones_like(pairs.atts)))
        out["cross_3" if m.is_separate else "fused_bbox"] = fused
        predicted = out["pred_bbox_cxcywh"] = head(m, "bbox_head", fused[:, 0]).sigmoid()
        losses |= boxes(predicted, inputs["target_bbox"], inputs.get("is_image"))
    return out, losses


def contrast(m: Naive, image: Tensor, text: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    similarity = image @ text.T / m["temp"]
    labels = torch.arange(len(similarity))
    loss = (cross_entropy(similarity, labels) + cross_entropy(similarity.T, labels)) / 2
    keep = 1 - torch.eye(len(similarity), dtype=similarity.dtype)
    weights = {
        "sim_over_temp": similarity,
        "text_negative_weights": (similarity.softmax(1) + 1e-5) * keep,
        "image_negative_weights": (similarity.T.softmax(1) + 1e-5) * keep,
    }
    return loss, weights


def match(
    m: Naive, text: Tensor, atts: Tensor, image: tuple[Tensor, Tensor], negatives: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    image_negative, text_negative = negatives
    tokens, attention_bias = image
    positive = fuse(m, text, atts, image)
    wrong_image = fuse(m, text, atts, (tokens[image_negative], attention_bias[image_negative]))
    wrong_text = fuse(m, text[text_negative], atts[text_negative], image)
    negative = torch.cat([wrong_image, wrong_text])
    logits = head(m, "itm_head", torch.cat([positive, negative])[:, 0])
    labels = torch.cat([torch.ones(len(text)), torch.zeros(2 * len(text))]).long()
    arrays = {"fused_match_pos": positive, "fused_match_neg": negative, "itm_logits": logits}
    arrays |= {"image_neg_idx": image_negative, "text_neg_idx": text_negative}
    return cross_entropy(logits, labels), arrays


def boxes(predicted: Tensor, target: Tensor, is_image: Tensor | None) -> dict[str, Tensor]:
    counted = [row for row in range(len(predicted)) if is_image is None or not is_image[row]]
    l1, giou = [], []
    for row in counted:
        l1.append((predicted[row] - target[row].to(predicted)).abs().sum())
        inside, outside = box_iou_and_hull(list(predicted[row]), list(target[row].to(predicted)))
        giou.append(1 - (inside - outside))
    return {"loss_bbox": torch.stack(l1).mean(), "loss_giou": torch.stack(giou).mean()}


def run_text_only(m: Naive, inputs: dict[str, Tensor]) -> tuple[dict, dict]:
    states = fuse(m, text_states(m, inputs["text_ids_masked"], inputs["text_atts"]), inputs["text_atts"], None)
    logits = word_logits(m, states, inputs["masked_pos"])
    return {"mlm_logits": logits}, {"loss_mlm": mlm_loss(logits, inputs["masked_ids"])}


def run_parallel(m: Naive, inputs: dict[str, Tensor], negatives: tuple[Tensor, Tensor]) -> tuple[dict, dict]:
    """Sentence pairs: the first plays the image, its masked tokens look at the second."""
    first, second = (text_states(m, inputs[f"text_ids{n}"], inputs[f"text_atts{n}"]) for n in ("", "_2"))
    features = [normalize(affine(m, "text_proj", states[:, 0]), dim=-1) for states in (first, second)]
    contrastive, out = contrast(m, *features)
    matching, matches = match(m, second, inputs["text_atts_2"], (first, inputs["text_atts"]), negatives)
    masked = text_states(m, inputs["text_ids_masked"], inputs["text_atts"])
    masked = fuse(m, masked, inputs["text_atts"], (second, inputs["text_atts_2"]))
    logits = word_logits(m, masked, inputs["masked_pos"])
    out |= matches | {"text_embeds": first, "fused_bbox": masked, "mlm_logits": logits}
    losses = {"loss_ttc": contrastive, "loss_ttm": matching, "loss_mlm": mlm_loss(logits, inputs["masked_ids"])}
    return out, losses
