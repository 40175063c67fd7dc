"""Golden cases of one batch: every recorded array, loss and gradient of image, region, video, text and sentence pairs.

With separate encoders (untied words) the third and fourth recorded pass of the fusion layers are those of the masked
words and of the boxes; there the reference calls the masked-token pass `fused_bbox` and the box pass `cross_3`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.differences import Difference, arrays, directions, equal, norms, numbers, worst
from tests.golden.folders import case_model
from tests.support.models.golden_cases import LOSS_NAMES, Case, read_case, to_batch
from x2vlm.data.loading.batch import Batch
from x2vlm.models.checkpoints.reference import export_reference_state, reference_names
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.negatives import negative_weights
from x2vlm.objectives.parallel_text import parallel_text_losses, sentence_as_image
from x2vlm.objectives.step import pretrain_losses

PAIR_LOSS_NAMES = LOSS_NAMES | {"contrastive": "loss_ttc", "matching": "loss_ttm"}
Negatives = tuple[Tensor, Tensor]
Compute = Callable[[X2VLM], dict[str, Tensor]]


def check_batch(folder: Path) -> list[Difference]:
    """A case of one batch, its kind seen from the arrays it has."""
    case = read_case(folder)
    model = case_model(folder, case)
    if "in.text_ids_2" in case.tensors:
        return _parallel_text(model, case)
    batch = to_batch(case)
    negatives = case_negatives(model, batch, case)
    with torch.no_grad():
        found = compare_activations(activations(model, batch, negatives), case.tensors)
    if (folder / "tables.safetensors").exists():
        found.append(_tables(model, load_file(folder / "tables.safetensors")))
    if "losses" not in case.info:  # inputs of another case, such as the text batch of `mixed`
        return [*found, equal("a batch", batch.num_rows, len(case.tensors["in.text_ids"]))]
    config = ObjectiveConfig(
        matching=bool(case.info.get("options", {}).get("ret_match_loss", True)),
        box_loss_on_whole_images="in.is_image" not in case.tensors,
    )
    is_known = negatives is not None or batch.kind == "text" or not config.matching

    def compute(model: X2VLM) -> dict[str, Tensor]:
        return pretrain_losses(model, batch, negatives, config=config)

    found += losses_and_gradients(model, case, compute, LOSS_NAMES, is_known)
    if case.info["losses"].get("loss_itm") == 0 and not config.matching:
        found.append(equal("match head without gradient", model.match_head[0].weight.grad, None))
    return found


def _tables(model: X2VLM, recorded: dict[str, Tensor]) -> Difference:
    """The position tables of the loaded model against the recorded resized ones."""
    state = export_reference_state(model)
    ours = {f"vision_encoder.{name.removeprefix('vision_encoder.')}": value for name, value in recorded.items()}
    return worst("tables", [arrays(name, state[name], value) for name, value in ours.items()])


def losses_and_gradients(
    model: X2VLM, case: Case, compute: Compute, names: dict[str, str], is_known: bool = True
) -> list[Difference]:
    """Losses against both recorded precisions, then the gradient of their sum where one is recorded.

    Without known negatives (`is_known`) neither the matching loss nor what includes it.
    """
    model.zero_grad()
    has_gradients = "grad_norms" in case.info and is_known
    with torch.set_grad_enabled(has_gradients):
        losses = compute(model)
    ours = {name: losses[key].item() if key in losses else 0.0 for key, name in names.items()}
    extra = {names[key] for key in losses} - set(case.info["losses"])
    found = [equal("losses nobody recorded", extra, set())]
    for kind in ("losses", "losses_f64"):
        found += [
            numbers(name.replace("loss", kind, 1), ours[name], value)
            for name, value in case.info.get(kind, {}).items()
            if is_known or name != names["matching"]
        ]  # fmt: skip
    if not is_known:  # what cannot be computed can at least not be zero
        name = names["matching"]
        found.append(equal(f"{name} is recorded", case.info["losses"].get(name, 1) != 0, True))
    if not has_gradients:
        return found
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    if "loss_total" in case.info:
        found.append(numbers("loss_total", total.item(), case.info["loss_total"]))
    return found + _gradients(model, case)


def _gradients(model: X2VLM, case: Case) -> list[Difference]:
    parameters = dict(model.named_parameters())
    gradients = {theirs: parameters[ours].grad for ours, theirs in reference_names(model).items()}
    recorded = case.info["grad_norms"]
    unknown = sorted(set(recorded) - set(gradients))
    unrecorded = sorted(name for name, value in gradients.items() if value is not None and name not in recorded)
    sizes = {name: 0.0 if value is None else value.norm().item() for name, value in gradients.items()}
    every = [norms(name, sizes[name], value or 0.0) for name, value in recorded.items() if name in sizes]
    whole = math.sqrt(sum(size**2 for size in sizes.values()))
    found = [
        equal("gradients of unknown or unrecorded parameters", unknown + unrecorded, []),
        worst("grad_norms", every),
    ]
    if "grad_global_norm" in case.info:
        found.append(norms("grad_global_norm", whole, case.info["grad_global_norm"]))
    for name, value in case.tensors.items():
        if name.startswith("grad."):
            gradient = gradients[name.removeprefix("grad.")]
            found.append(directions(name, torch.zeros_like(value) if gradient is None else gradient, value))
    return found


def compare_activations(ours: dict[str, Tensor], recorded: dict[str, Tensor]) -> list[Difference]:
    """Differences of the recorded `out.*` arrays but the negatives, which are inputs; one that we lack is an excess."""
    found = []
    for name, value in recorded.items():
        short = name.removeprefix("out.")
        if not name.startswith("out.") or short in ("image_neg_idx", "text_neg_idx"):
            continue
        if short not in ours:
            found.append(Difference(f"{short}: nothing of ours to compare", math.inf, 0.0))
        else:
            found.append(arrays(short, ours[short].float(), value.float()))
    return found


@torch.no_grad()
def case_negatives(model: X2VLM, batch: Batch, case: Case) -> Negatives | None:
    """Image and text negatives of the matching loss; None for a batch of texts and where no recorded array tells."""
    if batch.kind == "text":
        return None
    if {"out.image_neg_idx", "out.text_neg_idx"} <= case.tensors.keys():
        return case.negatives
    vision, _ = _encode(model, batch)
    return _told_negatives(
        model, model.encode_text(batch.text_ids_BL, batch.text_mask_BL), batch.text_mask_BL, vision, case
    )


def _told_negatives(model: X2VLM, text: Tensor, mask: Tensor, vision: VisionTokens, case: Case) -> Negatives | None:
    """The recorded negatives; missing ones are of all pairs the nearest to the recorded states or logits."""
    rows = torch.arange(len(text))
    recorded = case.tensors.get("out.fused_match_neg", case.tensors.get("out.itm_logits", text[:0])[len(text) :])
    found = [case.tensors.get(f"out.{side}_neg_idx") for side in ("image", "text")]
    if not len(recorded):
        return None if None in found else (found[0], found[1])
    states = model.fuse(
        text.repeat_interleave(len(text), dim=0),
        mask.repeat_interleave(len(text), dim=0),
        vision.select(rows.repeat(len(text))),
    )
    if recorded.ndim == 2:
        states = model.match(states)
    pairs = states.flatten(1).reshape(len(text), len(text), -1)  # by text, then image
    own = torch.eye(len(text)).bool()
    of_text, of_image = recorded.flatten(1)[: len(text)], recorded.flatten(1)[len(text) :]
    image = (pairs - of_text[:, None]).norm(dim=-1).masked_fill(own, torch.inf).argmin(dim=1)
    words = (pairs.transpose(0, 1) - of_image[:, None]).norm(dim=-1).masked_fill(own, torch.inf).argmin(dim=1)
    return (image if found[0] is None else found[0], words if found[1] is None else found[1])


def activations(model: X2VLM, batch: Batch, negatives: Negatives | None) -> dict[str, Tensor]:
    """What a batch computes on the way to its losses, under the golden names."""
    if batch.kind == "text":
        return {"mlm_logits": _words(model, batch, None)[1]}
    ours: dict[str, Tensor] = {}
    vision, whole = _encode(model, batch)
    if whole is not None:
        ours["vision_embeds_full"] = whole.tokens_BND
    ours |= {"vision_embeds": vision.tokens_BND, "vision_atts": vision.mask_BN}
    text = ours["text_embeds"] = model.encode_text(batch.text_ids_BL, batch.text_mask_BL)
    ours["image_feat"], ours["text_feat"] = model.project(vision, text)
    ours |= _negatives(ours["image_feat"], ours["text_feat"], model.temperature)
    ours |= _matches(model, text, batch.text_mask_BL, vision, negatives)
    masked, ours["mlm_logits"] = _words(model, batch, vision)
    boxes = None
    if whole is not None:
        boxes = model.fuse(text, batch.text_mask_BL, whole)
        ours["pred_bbox_cxcywh"] = model.locate(boxes)
    return ours | _late_passes(model, masked, boxes)


def _late_passes(model: X2VLM, masked: Tensor, boxes: Tensor | None) -> dict[str, Tensor]:
    """The fusion passes after those of the matching loss, as this kind of model records them (see the module)."""
    if model.config.tie_words:
        return {} if boxes is None else {"fused_bbox": boxes}
    return {"fused_bbox": masked} | ({} if boxes is None else {"cross_3": boxes})


def _encode(model: X2VLM, batch: Batch) -> tuple[VisionTokens, VisionTokens | None]:
    if batch.kind == "video":
        return model.encode_video(batch.pixels), None
    images = model.encode_image(batch.pixels)
    if batch.kind == "image":
        return images, None
    return model.pool_regions(images, batch.image_of_R, batch.patch_mask_RP), images.select(batch.image_of_R)


def _negatives(image: Tensor, text: Tensor, temperature: Tensor) -> dict[str, Tensor]:
    similarity = image @ text.T / temperature
    own = torch.eye(len(similarity), dtype=torch.bool)
    return {
        "sim_over_temp": similarity,
        "text_negative_weights": negative_weights(similarity, own),
        "image_negative_weights": negative_weights(similarity.T, own),
    }


def _matches(
    model: X2VLM, text: Tensor, mask: Tensor, vision: VisionTokens, negatives: Negatives | None
) -> dict[str, Tensor]:
    positive = model.fuse(text, mask, vision)
    if negatives is None:
        return {"fused_match_pos": positive}
    image_negative, text_negative = negatives
    rows = torch.arange(len(text))
    text_rows, image_rows = torch.cat([rows, text_negative]), torch.cat([image_negative, rows])
    negative = model.fuse(text[text_rows], mask[text_rows], vision.select(image_rows))
    logits = model.match(torch.cat([positive, negative]))
    return {"fused_match_pos": positive, "fused_match_neg": negative, "itm_logits": logits}


def _words(model: X2VLM, batch: Batch, vision: VisionTokens | None) -> tuple[Tensor, Tensor]:
    masked = model.fuse(model.encode_text(batch.masked_ids_BL, batch.text_mask_BL), batch.text_mask_BL, vision)
    return masked, model.predict_words(masked, batch.masked_positions_BK)


def _parallel_text(model: X2VLM, case: Case) -> list[Difference]:
    """A case of sentence pairs, with the sentence as the image that agrees better with what is recorded."""
    tried = [_parallel_text_with(model, case, image) for image in (0, 1)]
    return min(tried, key=lambda found: sum(difference.is_excess for difference in found))


def _parallel_text_with(model: X2VLM, case: Case, image: int) -> list[Difference]:
    """The first (0) or the second sentence is the image."""
    batch = to_batch(case)
    other_ids, other_mask = case.tensors["in.text_ids_2"], case.tensors["in.text_atts_2"]
    asking = 1 - image
    with torch.no_grad():
        texts = model.encode_text(batch.text_ids_BL, batch.text_mask_BL), model.encode_text(other_ids, other_mask)
        masks = batch.text_mask_BL, other_mask
        ours = _negatives(model.project_text(texts[image]), model.project_text(texts[asking]), model.temperature)
        shown = sentence_as_image(texts[image], masks[image])
        negatives = _told_negatives(model, texts[asking], masks[asking], shown, case)
        ours |= _matches(model, texts[asking], masks[asking], shown, negatives)
        masked, ours["mlm_logits"] = _words(model, batch, sentence_as_image(texts[1], masks[1]))
        ours |= _late_passes(model, masked, None)
        if (recorded := case.tensors.get("out.text_embeds")) is not None:
            # One array for two sentences: the first, unless the recorded one is the other's.
            ours["text_embeds"] = min(texts, key=lambda text: (text - recorded).norm().item())
        found = compare_activations(ours, case.tensors)

    def compute(model: X2VLM) -> dict[str, Tensor]:
        if image == 0:
            return parallel_text_losses(model, batch, other_ids, other_mask, negatives)
        swapped = _swapped(batch, other_ids, other_mask)
        matched = parallel_text_losses(model, swapped, batch.text_ids_BL, batch.text_mask_BL, negatives)
        return matched | {"masked_lm": parallel_text_losses(model, batch, other_ids, other_mask)["masked_lm"]}

    return found + losses_and_gradients(model, case, compute, PAIR_LOSS_NAMES, negatives is not None)


def _swapped(batch: Batch, other_ids: Tensor, other_mask: Tensor) -> Batch:
    nothing = torch.full_like(batch.masked_labels_BK, -100)
    return Batch(
        kind="text", keys=batch.keys, text_ids_BL=other_ids, text_mask_BL=other_mask, masked_ids_BL=other_ids,
        masked_positions_BK=torch.zeros_like(batch.masked_positions_BK), masked_labels_BK=nothing,
    )  # fmt: skip


def check_all_image_rows(path: Path) -> list[Difference]:
    """A region batch of whole-image rows only: 0 by default, the reference's 0/0 in parity mode."""
    folder = path.parent
    case, recorded = read_case(folder), _flat(json.loads(path.read_text()))
    model, batch = case_model(folder, case), to_batch(case)
    batch = replace(batch, is_whole_image_R=torch.ones(batch.num_rows, dtype=torch.bool))
    with torch.no_grad():
        negatives = case_negatives(model, batch, case)
        ours = pretrain_losses(model, batch, negatives)
        parity = pretrain_losses(model, batch, negatives, config=ObjectiveConfig(parity="reference"))
    found = [numbers(f"{key} by default", ours[key].item(), 0.0) for key in ("box_l1", "box_giou")]
    for key, name in LOSS_NAMES.items():
        if name not in recorded:
            continue
        value = recorded[name]
        if value is None or math.isnan(float(value)):
            found.append(equal(f"{name} is nan", parity[key].isnan().item(), True))
        elif key.startswith("box"):
            found.append(numbers(name, parity[key].item(), float(value)))
    return found


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
