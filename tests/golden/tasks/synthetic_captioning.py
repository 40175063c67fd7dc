"""A golden case of captioning in the layout of the held-back one, made by the naive version."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden.naive import Naive
from tests.golden.synthetic import SIZES, describe, drawn_state, write_case
from tests.golden.tasks.naive_captioning import search, words_loss
from tests.support.models.reference_shapes import pretrained

CLS, SEP, MASK, PAD = 2, 3, 4, 0
PROMPT = [CLS, 17, 9, 23]
MAX_LENGTH = 13  # of the reference's `generate`: the whole text may have batch size + MAX_LENGTH tokens
LENGTH, MASKS = 12, 5
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy_min5": {"min_words": 5},
    "beam3": {"beams": 3},
    "beam3_penalty": {"beams": 3, "penalty": 1.0},
    "beam3_repeats_allowed": {"beams": 3, "size": 0},
}
BIAS = "text_encoder.cls.predictions.bias"


def write_captioning_case(root: Path, raised: float = 0.8, names_settings: bool = False) -> Path:
    """The case's folder below `root`, beside its model; with `names_settings` alone texts are told per setting."""
    cfg = describe(SIZES, text_heads=6, temperature=0.05)
    m = Naive(drawn_state(pretrained(SIZES), SIZES, seed=9, temperature=0.05), cfg)
    root.mkdir(parents=True, exist_ok=True)
    save_file(m.state, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(cfg))
    bias = m[BIAS].clone()
    bias[SEP] += raised
    m = Naive(m.state | {BIAS: bias}, cfg)
    generator = torch.Generator().manual_seed(21)
    side = SIZES.grid * SIZES.patch
    pixels = torch.randn(3, 3, side, side, generator=generator)
    steps = len(pixels) + MAX_LENGTH - len(PROMPT)
    captions: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        rows = [search(m, image, PROMPT, steps, MASK, SEP, **setting) for image in pixels]
        alone = search(m, pixels[0], PROMPT, 1 + MAX_LENGTH - len(PROMPT), MASK, SEP, **setting)
        width = len(pixels) + MAX_LENGTH
        padded = [[*row, *[PAD] * (width - len(row))] for row in rows]
        captions[name] = padded if not names_settings else {"ids": padded, "first_image_alone": [alone]}
    inputs = {"causal": _causal(generator), "fg_free": _inserted(generator)}
    losses = {name: words_loss(m, pixels, value, CLS).item() for name, value in inputs.items()}
    tensors = {"in.image": pixels, "w.mlm_bias": bias}
    for name, value in inputs.items():
        tensors |= {f"train.{name}.{key}": array for key, array in value.items()}
    info = {
        "config": cfg, "prompt_ids": PROMPT, "captions": captions, "train_losses": losses, "cls": CLS, "sep": SEP,
        "mask": MASK, "pad": PAD, "train_texts": [],
    }  # fmt: skip
    folder = root / "downstream" / "captioning"
    write_case(folder, info, tensors)
    return folder


def _texts(generator: torch.Generator) -> tuple[list[list[int]], list[list[int]]]:
    texts, masked = [], []
    for length in (LENGTH, LENGTH - 3, LENGTH - 5):
        words = torch.randint(5, SIZES.vocab, (length - len(PROMPT) - 1,), generator=generator).tolist()
        texts.append([*PROMPT, *words, SEP])
        places = len(PROMPT) + torch.randperm(len(words) + 1, generator=generator)[: 1 + len(words) // 2]
        masked.append(sorted(places.tolist())[:MASKS])
    return texts, masked


def _causal(generator: torch.Generator) -> dict[str, Tensor]:
    texts, masked = _texts(generator)
    ids = torch.zeros(3, LENGTH).long()
    for row, (text, places) in enumerate(zip(texts, masked, strict=True)):
        ids[row, : len(text)] = torch.tensor([MASK if place in places else t for place, t in enumerate(text)])
    mask = torch.ones(3, LENGTH, LENGTH).long().tril()
    return _inputs(ids, mask, torch.arange(LENGTH).expand(3, -1).contiguous(), masked, texts, masked)


def _inserted(generator: torch.Generator) -> dict[str, Tensor]:
    texts, masked = _texts(generator)
    length = LENGTH + MASKS
    ids, places = torch.zeros(3, length).long(), torch.zeros(3, length).long()
    mask, spots = torch.ones(3, length, length).long().tril(), []
    for row, (text, chosen) in enumerate(zip(texts, masked, strict=True)):
        column, own = 0, []
        for place, token in enumerate(text):
            if place in chosen:
                ids[row, column], places[row, column] = MASK, place
                mask[row, :, column] = 0
                mask[row, column, column] = 1
                own.append(column)
                column += 1
            ids[row, column], places[row, column] = token, place
            column += 1
        places[row, column:] = torch.arange(length - column) + len(text)
        spots.append(own)
    return _inputs(ids, mask, places, spots, texts, masked)


def _inputs(
    ids: Tensor, mask: Tensor, places: Tensor, spots: list[list[int]], texts: list[list[int]], masked: list[list[int]]
) -> dict[str, Tensor]:
    position, labels = torch.zeros(3, MASKS).long(), torch.full((3, MASKS), CLS)
    weight = torch.zeros(3, MASKS).long()
    for row in range(3):
        count = len(spots[row])
        position[row, :count] = torch.tensor(spots[row])
        labels[row, :count] = torch.tensor([texts[row][place] for place in masked[row]])
        weight[row, :count] = 1
    return {
        "input_ids": ids, "attention_mask": mask, "position_ids": places, "masked_pos": position,
        "masked_ids": labels, "masked_weight": weight,
    }  # fmt: skip
