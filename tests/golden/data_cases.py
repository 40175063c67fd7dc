"""Golden cases of the data functions (`data/*`): boxes, masks, frames, words, images, texts, the schedule."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from tests.golden.differences import EXACT, Check, Difference, arrays, equal, numbers, worst
from tests.golden.folders import nearest
from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.loading.masking import MaskingConfig, choose_positions, mask_text
from x2vlm.data.loading.operations import Operation, apply_operation
from x2vlm.data.loading.regions import (
    RegionConfig,
    choose_rows,
    draw_crop_around,
    patch_mask,
    place_boxes,
    whole_image_row,
)
from x2vlm.data.loading.transforms import cut_and_resize
from x2vlm.data.randomness import Draws
from x2vlm.data.text.captions import mentions_a_side, pre_caption
from x2vlm.data.text.tokenizer import WordPieceTokenizer, load_tokenizer
from x2vlm.errors import InvalidSample
from x2vlm.objectives.box_losses import box_losses, generalised_iou, to_xyxy
from x2vlm.samples import Box
from x2vlm.tasks.scoring import box_iou
from x2vlm.train.optim import lr_factor

# Draws per masking case, a tenth of the reference's: over all cases some 80,000 masked tokens.
NUM_REPEATS = 300
# Captions were cut to this many words before they were cut into pieces.
MAX_CAPTION_WORDS = 30
# Interpolated images round differently in OpenCV, by a grey level or two.
GREY_LEVELS = {"Sharpness": 1, "ShearX": 2, "ShearY": 2, "TranslateX": 2, "TranslateY": 2, "Rotate": 2}
OPERATIONS = {
    "Identity": "identity", "AutoContrast": "autocontrast", "Equalize": "equalize", "Brightness": "brightness",
    "Sharpness": "sharpness", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
    "TranslateY": "translate_y", "Rotate": "rotate",
}  # fmt: skip


def check_of(name: str) -> Check | None:
    """The check for the folder `data/<name>`; None for a kind that nobody described."""
    if name.startswith("regions_"):
        return check_regions
    return {
        "augment": check_augment,
        "boxes": check_boxes,
        "frames": check_frames,
        "masking": check_masking,
        "patch_masks": check_patch_masks,
        "region_collate": check_region_collate,
        "schedule": check_schedule,
        "texts": check_texts,
    }.get(name)


def _info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "case.json").read_text())


def check_augment(folder: Path) -> list[Difference]:
    """Every image operation with the recorded arguments."""
    recorded, arguments = load_file(folder / "tensors.safetensors"), _info(folder)["arguments"]
    pixels_NCHW = torch.from_numpy(recorded["image"]).permute(2, 0, 1)[None].contiguous()
    found = []
    for name, values in arguments.items():
        if f"out_{name}" not in recorded:
            continue
        operation = Operation(OPERATIONS[name], float(values[0]) if values else 0.0, wraps=True)
        ours = apply_operation(pixels_NCHW, operation)[0].permute(1, 2, 0).numpy().astype(int)
        largest = int(np.abs(ours - recorded[f"out_{name}"]).max())
        found.append(Difference(name, largest, GREY_LEVELS.get(name, EXACT)))
    return found


def check_boxes(folder: Path) -> list[Difference]:
    """Conversions, IoU, generalised IoU, both losses in all three settings, and the IoU of evaluation."""
    info, recorded = _info(folder), load_torch(folder / "tensors.safetensors")
    predicted, target = recorded["pred_cxcywh"].float(), recorded["target_cxcywh"].float()
    corners, target_corners = to_xyxy(predicted), to_xyxy(target)
    back = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    found = [
        arrays("pred_xyxy", corners, recorded["pred_xyxy"]),
        arrays("target_xyxy", target_corners, recorded["target_xyxy"]),
        arrays("back_cxcywh", back, recorded["back_cxcywh"]),
        arrays("giou_diag", generalised_iou(corners, target_corners), recorded["giou_diag"]),
        arrays("l1_each", _l1_each(predicted, target), recorded["l1_each"]),
        arrays("iou_diag", _iou_each(corners, target_corners), recorded["iou_diag"]),
    ]
    size = len(recorded["giou_matrix_first20"])
    pairs = [generalised_iou(corners[row].expand(size, 4), target_corners[:size]) for row in range(size)]
    found.append(arrays("giou_matrix", torch.stack(pairs), recorded["giou_matrix_first20"]))
    everything, regions = torch.ones(len(predicted), dtype=torch.bool), ~recorded["is_image"].bool()
    found.append(_losses("loss_all", box_losses(predicted, target, everything), info["loss_all"]))
    found.append(_losses("loss_without_images", box_losses(predicted, target, regions), info["loss_without_images"]))
    found.append(_negative_width(predicted, target, everything, info["loss_when_row_3_has_negative_width"]))
    found += [
        numbers(f"computeIoU {number}", box_iou(Box(*item["a"]), Box(*item["b"]), "inclusive"), item["iou"], 1e-9)
        for number, item in enumerate(info["computeIoU"])
    ]
    return found


def _l1_each(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    one = torch.ones(1, dtype=torch.bool)
    rows = [box_losses(predicted[row : row + 1], target[row : row + 1], one)[0] for row in range(len(predicted))]
    return torch.stack(rows)


def _iou_each(corners: torch.Tensor, target_corners: torch.Tensor) -> torch.Tensor:
    def box(row: torch.Tensor) -> Box:
        left, top, right, bottom = row.tolist()
        return Box(left, top, right - left, bottom - top)

    return torch.tensor([box_iou(box(a), box(b)) for a, b in zip(corners, target_corners, strict=True)])


def _losses(name: str, ours: tuple[torch.Tensor, torch.Tensor], recorded: list[float]) -> Difference:
    return arrays(name, torch.stack(ours).double(), torch.tensor(recorded, dtype=torch.float64))


def _negative_width(
    predicted: torch.Tensor, target: torch.Tensor, everything: torch.Tensor, recorded: list[float]
) -> Difference:
    """The batch again with width -0.1 predicted in row 3: in parity mode no row has a term any more."""
    changed = predicted.clone()
    changed[3, 2] = -0.1
    return _losses("loss_with_negative_width", box_losses(changed, target, everything, "reference"), recorded)


def check_patch_masks(folder: Path) -> list[Difference]:
    """The patches under boxes at every recorded resolution."""
    patch_size, recorded = _info(folder)["patch_size"], load_file(folder / "tensors.safetensors")
    found = []
    for name in sorted(name for name in recorded if name.startswith("boxes_xywh_")):
        image_res = int(name.split("_")[2])
        masks = recorded[f"mask_{image_res}"]
        ours = np.stack([patch_mask(box, image_res, patch_size) for box in recorded[name]])
        wrong = int((ours != masks[:, 1:]).any(axis=1).sum()) + int((~masks[:, 0].astype(bool)).sum())
        found.append(Difference(f"{image_res} px: wrong masks of {len(masks)}", wrong, EXACT))
    return found


def check_regions(folder: Path) -> list[Difference]:
    """Rows of every image from its recorded crop, mirror and order, and the image itself where it is recorded."""
    info, recorded = _info(folder), load_file(folder / "tensors.safetensors")
    config = RegionConfig(
        max_regions=info["max_regions"], min_share_in_crop=info["min_perc_in_image"], whole_pixels=True
    )
    rows, origins, found = [], [], []
    for number, image in enumerate(info["rows"]):
        if image["result"] != "ok":  # refused by the reference: nothing of it is in the arrays
            continue
        found.append(_flip_rule(image, info["careful_hflip"]))
        found.append(_crop_holds_anchor(image))
        placed = [whole_image_row(info["image_res"], info["patch_size"])] if image["caption"] else []
        placed += place_boxes(
            [Box(*item["bb"]) for item in image["elems"]],
            image["elem_order"],
            tuple(image["crop_xyxy"]),
            image["flipped"],
            info["image_res"],
            info["patch_size"],
            info["max_regions"] - len(placed),
            config,
        )
        found.append(equal("rows of a picture", len(placed), image["n_out"]))
        rows += placed
        origins += [number] * len(placed)
    boxes = torch.tensor([row.box_cxcywh for row in rows])
    masks = np.stack([row.patch_mask_P for row in rows])
    is_whole = [row.is_whole_image for row in rows]
    checks = {
        "out_target_bbox": lambda name, value: arrays(name, boxes, torch.from_numpy(value), 1e-6),
        "out_image_atts": lambda name, value: equal(name, bool((masks == value[:, 1:]).all()), True),
        "out_is_image": lambda name, value: equal(name, is_whole == value.astype(bool).tolist(), True),
        "out_image_index": lambda name, value: equal(name, origins == value.tolist(), True),
    }
    results = [check(name, recorded[name]) for name, check in checks.items() if name in recorded]
    return [worst("crops, mirrors and counts", found), *results, *_images(info, recorded)]


def _flip_rule(image: dict[str, Any], careful: bool) -> Difference:
    texts = [text for item in [*image["elems"], image] for text in _texts(item.get("caption"))]
    says = mentions_a_side(texts, parity_reference=True)
    flipped = image["flip_draw_below_half"] and not (careful and says)
    return equal("mirrored", (says, flipped), (image["mentions_left_or_right"], image["flipped"]))


def _texts(caption: Any) -> list[str]:
    if caption is None:
        return []
    if isinstance(caption, dict):
        return list(caption)  # the reference looks at the keys
    return [caption] if isinstance(caption, str) else list(caption)


def _crop_holds_anchor(image: dict[str, Any]) -> Difference:
    """The recorded crop is one that ours could have drawn: it holds the anchor and lies inside the image."""
    width, height = image["image_size"]
    box = Box(*(int(number) for number in image["elems"][image["crop_around_elem"]]["bb"]))
    left, top, right, bottom = image["crop_xyxy"]
    possible = 0 <= left <= box.x and 0 <= top <= box.y and right <= width and bottom <= height
    possible &= right >= min(box.x + box.w, width) and bottom >= min(box.y + box.h, height)
    own = draw_crop_around(box, width, height, Draws("golden"))
    possible &= own[0] <= box.x and own[1] <= box.y and own[2] >= box.x + box.w and own[3] >= box.y + box.h
    return equal("crop", possible, True)


def _images(info: dict[str, Any], recorded: dict[str, np.ndarray]) -> list[Difference]:
    found = []
    for name in sorted(name for name in recorded if name.startswith("raw_image_")):
        number = int(name.rsplit("_", 1)[1])
        row = info["rows"][number]
        image = Image.fromarray(recorded[name])
        cut = np.asarray(cut_and_resize(image, tuple(row["crop_xyxy"]), row["flipped"], info["image_res"]))
        pixels = torch.from_numpy(cut.astype(np.float32) / 255).permute(2, 0, 1)
        found.append(arrays(f"image_{number}", pixels, torch.from_numpy(recorded[f"image_{number}"]), 1e-6))
    return found


def check_region_collate(folder: Path) -> list[Difference]:
    """How often rows occur in a batch of fixed size, and the image of every recorded row."""
    found = []
    for number, case in enumerate(_info(folder)["cases"]):
        total = sum(case["rows_per_image"])
        ours = choose_rows(total, case["batch_size"], Draws("collate", number))
        counts = [sorted(map(rows.count, range(total))) for rows in (ours, case["row_ids"])]
        found.append(equal(f"case {number}: how often rows occur", *counts))
        with_rows = [count for count in case["rows_per_image"] if count]
        image_of = [image for image, count in enumerate(with_rows) for _ in range(count)]
        found.append(equal("image of rows", [image_of[row] for row in case["row_ids"]], case["idx_to_group_img"]))
    return found


def check_frames(folder: Path) -> list[Difference]:
    """Frames of evaluation exactly, of training by what can occur."""
    info = _info(folder)
    exact = [equal("frames", choose_frames(r["frames"], r["wanted"]), r["indexes"]) for r in info["evaluation"]]
    training = [difference for row in info["training"] for difference in _training_frames(row)]
    return [worst("evaluation", exact), worst("training", training)]


def _training_frames(row: dict[str, Any]) -> list[Difference]:
    chosen = np.array([choose_frames(row["frames"], row["wanted"], Draws("frames", label)) for label in range(400)])
    # Extremes of 400 draws: within 5 % of the clip, as those of the reference are draws as well.
    tolerance = max(1, 0.05 * row["frames"])
    return [
        Difference("lowest", float(np.abs(chosen.min(axis=0) - row["lowest"]).max()), tolerance),
        Difference("highest", float(np.abs(chosen.max(axis=0) - row["highest"]).max()), tolerance),
        equal("ascending", bool((np.diff(chosen, axis=1) >= 0).all()), True),
    ]


def check_masking(folder: Path) -> list[Difference]:
    """Chosen positions by their chances (z-scores over all cases), split words and replacements by their shares."""
    cases = _info(folder)["cases"]
    results = [_mask_often(case, number) for number, case in enumerate(cases)]
    scores = [score for result, case in zip(results, cases, strict=True) for score in _scores(result.rates, case)]
    finite = [score for score in scores if math.isfinite(score)]
    weights = [case["target_count"] for case in cases]
    found = [
        worst("target_count", [equal("count", sorted(r.counts), [w]) for r, w in zip(results, weights, strict=True)]),
        # 1 for equal distributions; a rule that is off by one position is above 2.
        Difference("position_rate: mean squared z-score", float(np.mean(np.square(finite))), 1.5),
        Difference("positions hidden always or never, differently", len(scores) - len(finite), EXACT),
    ]
    split = [case["word_pieces_split_from_their_word_per_repeat"] for case in cases]
    ours = [result.num_split / NUM_REPEATS for result in results]
    found.append(Difference("split words over all cases, relative", abs(sum(ours) - sum(split)) / sum(split), 0.05))
    for name in ("share_mask", "share_random", "share_kept"):
        theirs = np.average([case[name] for case in cases], weights=weights)
        total = sum(result.kinds[name] for result in results) / sum(sum(r.kinds.values()) for r in results)
        found.append(numbers(f"{name} over all cases", total, float(theirs), 0.01))
    return found


@dataclass
class _Masked:
    """What came out of masking one text again and again."""

    rates: np.ndarray
    counts: set[int]
    num_split: int
    kinds: dict[str, int]


def _mask_often(case: dict[str, Any], number: int) -> _Masked:
    config = MaskingConfig(
        prob=case["mask_prob"], max_masks=case["mask_max"], skipgram_prob=case["skipgram_prb"],
        skipgram_size=case["skipgram_size"], whole_word=case["whole_word"], parity="reference",
    )  # fmt: skip
    tokens = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *case["tokens"]]))
    # A large vocabulary, so that a random entry is hardly ever the original one.
    tokenizer = WordPieceTokenizer([*tokens, *(f"filler{index}" for index in range(2000))])
    ids = [tokens.index(token) for token in case["tokens"]]
    continues = [token.startswith("##") for token in case["tokens"]]
    result = _Masked(np.zeros(len(ids)), set(), 0, {"share_mask": 0, "share_kept": 0, "share_random": 0})
    for repeat in range(NUM_REPEATS):
        draws = Draws("golden", number, repeat)
        if case["num_source_tokens"] == 0:
            masked = mask_text(ids, tokenizer, draws, config)
            chosen = set(masked.positions)
            for position in chosen:
                result.kinds[_kind(masked.ids[position], ids[position], tokenizer)] += 1
        else:
            chosen = choose_positions(continues, draws, config, case["num_source_tokens"])
        result.counts.add(len(chosen))
        result.rates[list(chosen)] += 1 / NUM_REPEATS
        result.num_split += sum(
            continues[spot] and (spot in chosen) != (spot - 1 in chosen) for spot in range(2, len(continues))
        )
    return result


def _kind(new: int, original: int, tokenizer: WordPieceTokenizer) -> str:
    return "share_mask" if new == tokenizer.mask_id else "share_kept" if new == original else "share_random"


def _scores(rates: np.ndarray, case: dict[str, Any]) -> list[float]:
    """z-scores of our rates against the recorded ones; infinite where only one of both is certain."""
    scores = []
    for position, rate in enumerate(rates):
        recorded = case["position_rate"].get(str(position), 0.0)
        if recorded in (0.0, 1.0):
            if abs(rate - recorded) > 1e-9:
                scores.append(math.inf)
            continue
        variance = recorded * (1 - recorded) * (1 / NUM_REPEATS + 1 / case["repeats"])
        scores.append((rate - recorded) / math.sqrt(variance))
    return scores


def check_schedule(folder: Path) -> list[Difference]:
    """The rate in force at every recorded step."""
    found = []
    for number, case in enumerate(_info(folder)["cases"]):
        # After their restart of the schedule the configured minimum is ignored.
        min_rate = 0.0 if case.get("after_pretraining_reinit") else case["settings"].get("min_rate", 0.0)
        lr, warmup, total = case["settings"]["lr"], case["resolved_warmup"], case["total_steps"]
        rates = [
            numbers(f"step {step}", lr_factor(int(step), warmup, total, min_rate, "reference") * lr, recorded, 1e-12)
            for step, recorded in case["lr_used_at_step"].items()
        ]
        found.append(worst(f"case {number}", rates))
    return found


def check_texts(folder: Path) -> list[Difference]:
    """Captions, the test for left and right, and word pieces."""
    info = _info(folder)
    captions = [equal(repr(r["text"]), _caption(r["text"], r["max_words"]), r["caption"]) for r in info["rows"]]
    sides = [
        equal(repr(text), mentions_a_side([text], parity_reference=True), says)
        for text, says in info["contains_left_or_right"].items()
    ]
    for rule in info["left_right_rule"]:
        note = rule["annotation"]
        texts = [text for item in [*note["elems"], note] for text in _texts(item.get("caption"))]
        sides.append(equal(repr(note), mentions_a_side(texts, parity_reference=True), rule["says_left_or_right"]))
    tokenizer = _tokenizer(folder, info["tokenization"])
    pieces = [
        difference
        for text, recorded in info["tokenization"].items()
        for difference in _pieces(text, recorded, tokenizer)
    ]
    return [
        worst("captions", captions),
        worst("left/right", sides),
        worst("ids", pieces),
    ]


def _tokenizer(folder: Path, recorded: dict[str, Any]) -> WordPieceTokenizer:
    """The vocabulary the ids were recorded with: the one beside the cases, or that of `tests/golden/reference`."""
    public = Path(__file__).resolve().parent / "reference" / "vocab.txt"
    tokenizer = load_tokenizer(nearest(folder, "vocab.txt"))
    pairs = [
        (number, token) for row in recorded.values() for number, token in zip(row["ids"], row["tokens"], strict=True)
    ]
    fits = all(number < len(tokenizer) and tokenizer.entries[number] == token for number, token in pairs)
    return tokenizer if fits else load_tokenizer(public)


def _caption(text: str, max_words: int) -> str | None:
    try:
        return pre_caption(text, max_words, parity="reference")
    except InvalidSample:
        return None


def _pieces(text: str, recorded: dict[str, Any], tokenizer: WordPieceTokenizer) -> list[Difference]:
    found = []
    cleaned = _caption(text, MAX_CAPTION_WORDS)
    if "ids" in recorded and cleaned is not None:
        ids = tokenizer.encode(cleaned, 10**6)[1:-1]
        found += [equal(repr(text), ids, recorded["ids"])]
        found += [equal(repr(text), tokenizer.tokens(ids), recorded["tokens"])]
    if "raw_tokens" in recorded:
        raw = tokenizer.tokens(tokenizer.encode(text, 10**6)[1:-1])
        found.append(equal(f"raw {text!r}", raw, recorded["raw_tokens"]))
    return found
