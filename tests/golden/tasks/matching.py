"""Golden cases of retrieval and grounding: features, shortlists, scores and recalls, predicted boxes, and their losses.

Scores come from the functions that evaluate a model, losses from those that fine-tune it.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden.differences import Difference, arrays, equal, numbers
from tests.golden.folders import case_model
from tests.support.models.golden_cases import Case, read_case
from x2vlm.models.blocks.fusion_plan import TextTable
from x2vlm.models.checkpoints.reference import load_reference_state
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.objectives.negatives import negative_weights
from x2vlm.tasks.grounding import grounding_losses, locate_batch
from x2vlm.tasks.matching.encoded import EncodedImages
from x2vlm.tasks.matching.learning import matching_logits, retrieval_losses
from x2vlm.tasks.matching.reranking import rerank, shortlists
from x2vlm.tasks.scoring import best_ranks, recall_at
from x2vlm.train.ranks import Ranks

NOT_SCORED = -100.0


@torch.no_grad()
def check_retrieval(folder: Path) -> list[Difference]:
    """Every recorded array of evaluation and fine-tuning, the recalls, and the losses."""
    case = read_case(folder)
    base = case_model(folder, case)
    ours, found = _scores(base, case), []
    for name, value in ours.items():
        if f"out.{name}" in case.tensors:
            found.append(arrays(name, value, case.tensors[f"out.{name}"]))
    unknown = sorted(name for name in case.tensors if name.startswith("out.") and name[4:] not in ours)
    found.append(equal("arrays of evaluation that nobody compares", unknown, []))
    for name, value in case.info.get("metrics", {}).items():
        found.append(numbers(name, _metrics(ours, case)[name], value))
    if "train.text_ids" in case.tensors:
        found += _training(base, case)
    return [*found, *_keys(base, case)]


def _scores(base: X2VLM, case: Case) -> dict[str, Tensor]:
    images = base.encode_image(case.tensors["in.image"])
    ids_TL, mask_TL = case.tensors["in.text_ids"], case.tensors["in.text_atts"].bool()
    states_TLD = base.encode_text(ids_TL, mask_TL)
    image_IE, text_TE = base.project(images, states_TLD)
    size, num_images, num_texts = int(case.info["k_test"]), len(image_IE), len(text_TE)
    lengths = mask_TL.sum(dim=1).numpy()
    table = TextTable(states_TLD[mask_TL], np.cumsum(lengths) - lengths, lengths, lengths)
    encoded = EncodedImages(image_IE, images, np.arange(num_images), (range(num_images),))
    texts_of = shortlists(image_IE, text_TE, np.arange(num_texts), size)
    images_of = shortlists(text_TE, image_IE, np.arange(num_images), size)
    of_images = np.broadcast_to(np.arange(num_images)[:, None], texts_of.shape), texts_of
    of_texts = images_of, np.broadcast_to(np.arange(num_texts)[:, None], images_of.shape)
    i2t, t2i = rerank(base, encoded, table, (of_images, of_texts), 5, Ranks())
    return {
        "image_feat": image_IE,
        "text_feat": text_TE,
        "sims": image_IE @ text_TE.T,
        "score_i2t": _spread(texts_of, i2t, num_texts),
        "score_t2i": _spread(images_of, t2i, num_images),
    }


def _spread(chosen: np.ndarray, scores: np.ndarray, width: int) -> Tensor:
    table = np.full((len(chosen), width), NOT_SCORED)
    np.put_along_axis(table, chosen, scores, axis=1)
    return torch.from_numpy(table).float()


def _metrics(ours: dict[str, Tensor], case: Case) -> dict[str, float]:
    found: dict[str, float] = {}
    directions = (("txt", "score_i2t", case.info["img2txt"]), ("img", "score_t2i", case.info["txt2img"]))
    for name, scores, answers in directions:
        right = [answers[str(number)] for number in range(len(answers))]
        relevant = [value if isinstance(value, list) else [value] for value in right]
        ranks = best_ranks(ours[scores].numpy(), relevant, "reference")
        places = sorted({int(k) for key in case.info["metrics"] for k in re.findall(rf"^{name}_r(\d+)$", key)})
        found |= {f"{name}_r{k}": recall_at(ranks, k) for k in places}
        found[f"{name}_r_mean"] = float(np.mean([found[f"{name}_r{k}"] for k in places]))
    return found | {"r_mean": (found["txt_r_mean"] + found["img_r_mean"]) / 2}


def _training(base: X2VLM, case: Case) -> list[Difference]:
    recorded = {name.removeprefix("train."): value for name, value in case.tensors.items() if name.startswith("train.")}
    ids_BL, mask_BL, image_ids_B = recorded["text_ids"], recorded["text_atts"].bool(), recorded["idx"]
    pixels = recorded.get("image", case.tensors["in.image"])
    vision, states_BLD = base.encode_image(pixels), base.encode_text(ids_BL, mask_BL)
    image_BE, text_BE = base.project(vision, states_BLD)
    similarity, same = image_BE @ text_BE.T / base.temperature, image_ids_B[:, None] == image_ids_B[None]
    ours = {
        "text_negative_weights": negative_weights(similarity, same),
        "image_negative_weights": negative_weights(similarity.T, same),
    }
    found = []
    model = TaskModel(base)
    if {"image_neg_idx", "text_neg_idx"} <= recorded.keys():
        negatives = recorded["image_neg_idx"], recorded["text_neg_idx"]
        for name, chosen in zip(("image", "text"), negatives, strict=True):
            found.append(
                equal(f"{name} negatives of the same id", bool((image_ids_B[chosen] == image_ids_B).any()), False)
            )
        ours["itm_logits"] = matching_logits(model, vision, states_BLD, mask_BL, negatives)
        losses = retrieval_losses(model, vision, ids_BL, mask_BL, image_ids_B, negatives=(*negatives, None))
        for name, key in (("loss_itc", "contrastive"), ("loss_itm", "matching")):
            if name in case.info.get("train_losses", {}):
                found.append(numbers(name, losses[key].item(), case.info["train_losses"][name]))
    found += [arrays(f"train.{name}", value, recorded[name]) for name, value in ours.items() if name in recorded]
    return found


def _keys(base: X2VLM, case: Case) -> list[Difference]:
    """A checkpoint with the recorded names of parameters loads, and nothing of it is left over."""
    names = case.info.get("model_keys")
    if not names:
        return []
    state = {name: torch.zeros(0) for name in names}
    known = {_plain(name): value for name, value in _state_of(base).items()}
    state = {name: known.get(_plain(name), value) for name, value in state.items()}
    report = load_reference_state(build_model(base.config), state)
    return [equal("keys of a fine-tuned model that have no place", report.unexpected, [])]


def _plain(name: str) -> str:
    return name.replace("text_encoder.bert.", "text_encoder.")


def _state_of(base: X2VLM) -> dict[str, Tensor]:
    from x2vlm.models.checkpoints.reference import named_state

    return named_state(base)


@torch.no_grad()
def check_grounding(folder: Path) -> list[Difference]:
    """Predicted boxes, and the two losses."""
    case = read_case(folder)
    model = TaskModel(case_model(folder, case))
    ids_BL, mask_BL = case.tensors["in.text_ids"], case.tensors["in.text_atts"].bool()
    predicted_B4 = locate_batch(model, case.tensors["in.image"], torch.arange(len(ids_BL)), ids_BL, mask_BL)
    found = []
    if "out.pred_bbox_cxcywh" in case.tensors:
        found.append(arrays("pred_bbox_cxcywh", predicted_B4, case.tensors["out.pred_bbox_cxcywh"]))
    losses = grounding_losses(predicted_B4, case.tensors["in.target_bbox"].float())
    for name, key in (("loss_bbox", "box_l1"), ("loss_giou", "box_giou")):
        if name in case.info.get("losses", {}):
            found.append(numbers(name, losses[key].item(), case.info["losses"][name]))
    return found
