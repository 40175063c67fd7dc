"""Golden cases of retrieval and grounding by the naive version of the reference: pairs one by one, losses by loops."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tests.golden.naive import Naive, affine, boxes, fuse, head, image_tokens, text_states
from tests.golden.synthetic import SIZES, Arrays, Batches, write_case

NUM_IMAGES, NUM_TEXTS, SHORTLIST = 6, 12, 3


def _features(m: Naive, pixels: Tensor, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, states = image_tokens(m, pixels), text_states(m, ids, atts)
    image = normalize(affine(m, "vision_proj", tokens[:, 0]), dim=-1)
    return tokens, states, image, normalize(affine(m, "text_proj", states[:, 0]), dim=-1)


def _pair(m: Naive, states: Tensor, atts: Tensor, tokens: Tensor) -> Tensor:
    """Both logits of one text with one image."""
    shown = tokens[None], torch.ones(1, len(tokens)).long()
    return head(m, "itm_head", fuse(m, states[None], atts[None], shown)[:, 0])[0]


@torch.no_grad()
def write_retrieval(folder: Path, m: Naive, seed: int = 5) -> None:
    """Six images with two captions each, evaluated; then six captions of four images, trained."""
    draw = Batches(SIZES, torch.Generator().manual_seed(seed), length=9)
    pixels, texts = draw.pixels(NUM_IMAGES), draw.texts(NUM_TEXTS)
    ids, atts = texts["text_ids"], texts["text_atts"]
    tokens, states, image, text = _features(m, pixels, ids, atts)
    sims = image @ text.T
    i2t, t2i = torch.full((NUM_IMAGES, NUM_TEXTS), -100.0), torch.full((NUM_TEXTS, NUM_IMAGES), -100.0)
    for i in range(NUM_IMAGES):
        for t in sorted(range(NUM_TEXTS), key=lambda t: -sims[i, t].item())[:SHORTLIST]:
            i2t[i, t] = _pair(m, states[t], atts[t], tokens[i])[1]
    for t in range(NUM_TEXTS):
        for i in sorted(range(NUM_IMAGES), key=lambda i: -sims[i, t].item())[:SHORTLIST]:
            t2i[t, i] = _pair(m, states[t], atts[t], tokens[i])[1]
    img2txt = {i: [2 * i, 2 * i + 1] for i in range(NUM_IMAGES)}
    txt2img = {t: t // 2 for t in range(NUM_TEXTS)}
    train, losses = _training(m, draw, tokens, image)
    write_case(
        folder,
        {
            "k_test": SHORTLIST, "texts": [""] * NUM_TEXTS, "img2txt": img2txt, "txt2img": txt2img,
            "metrics": _recalls(i2t.tolist(), t2i.tolist(), img2txt, txt2img), "train_losses": losses,
            "config": m.cfg, "model_keys": [name.replace(".bert.", ".") for name in m.state if "cls.pred" not in name],
        },
        {"in.image": pixels, "in.text_ids": ids, "in.text_atts": atts, "out.image_feat": image, "out.text_feat": text,
         "out.sims": sims, "out.score_i2t": i2t, "out.score_t2i": t2i, **train},
    )  # fmt: skip


def _recalls(i2t: list, t2i: list, img2txt: dict, txt2img: dict) -> dict[str, float]:
    """Ties go to the last, as where a sorted order is reversed."""
    found: dict[str, float] = {}
    for name, table, right in (("txt", i2t, img2txt), ("img", t2i, {t: [i] for t, i in txt2img.items()})):
        best = []
        for row, scores in enumerate(table):
            order = sorted(range(len(scores)), key=lambda place: (scores[place], place), reverse=True)
            best.append(min(order.index(place) for place in right[row]))
        found |= {f"{name}_r{k}": 100.0 * sum(rank < k for rank in best) / len(best) for k in (1, 5, 10)}
        found[f"{name}_r_mean"] = sum(found[f"{name}_r{k}"] for k in (1, 5, 10)) / 3
    return found | {"r_mean": (found["txt_r_mean"] + found["img_r_mean"]) / 2}


def _training(m: Naive, draw: Batches, tokens: Tensor, image: Tensor) -> tuple[Arrays, dict[str, float]]:
    rows = NUM_IMAGES
    texts, idx = draw.texts(rows), torch.tensor([7, 3, 7, 1, 3, 0])
    ids, atts = texts["text_ids"], texts["text_atts"]
    states = text_states(m, ids, atts)
    text = normalize(affine(m, "text_proj", states[:, 0]), dim=-1)
    logits = image @ text.T / m["temp"]
    itc = torch.zeros(())
    for i in range(rows):
        same = [j for j in range(rows) if idx[j] == idx[i]]
        for j in same:
            itc = itc - (logits.log_softmax(1)[i, j] + logits.T.log_softmax(1)[i, j]) / len(same)
    weights = {}
    for name, table in (("text", logits), ("image", logits.T)):
        weights[name] = table.softmax(1) + 1e-5
        for i in range(rows):
            for j in range(rows):
                if idx[i] == idx[j]:
                    weights[name][i, j] = 0
    negative = {name: torch.multinomial(table, 1, generator=draw.generator)[:, 0] for name, table in weights.items()}
    pairs = [(r, r) for r in range(rows)]
    pairs += [(r, int(negative["image"][r])) for r in range(rows)] + [
        (int(negative["text"][r]), r) for r in range(rows)
    ]
    itm = torch.stack([_pair(m, states[t], atts[t], tokens[i]) for t, i in pairs])
    labels = torch.tensor([1] * rows + [0] * 2 * rows)
    arrays = {
        "train.text_ids": ids, "train.text_atts": atts, "train.idx": idx, "train.itm_logits": itm,
        "train.image_neg_idx": negative["image"], "train.text_neg_idx": negative["text"],
        "train.image_negative_weights": weights["image"], "train.text_negative_weights": weights["text"],
    }  # fmt: skip
    return arrays, {"loss_itc": (itc / rows / 2).item(), "loss_itm": cross_entropy(itm, labels).item()}


@torch.no_grad()
def write_grounding(folder: Path, m: Naive, seed: int = 6) -> None:
    """Five texts with an image and a box each."""
    draw = Batches(SIZES, torch.Generator().manual_seed(seed), length=8)
    pixels, texts = draw.pixels(5), draw.texts(5)
    ids, atts = texts["text_ids"], texts["text_atts"]
    target = torch.rand(5, 4, generator=draw.generator) * 0.5 + 0.2
    tokens, states = image_tokens(m, pixels), text_states(m, ids, atts)
    fused = fuse(m, states, atts, (tokens, torch.ones(tokens.shape[:2]).long()))
    predicted = head(m, "bbox_head", fused[:, 0]).sigmoid()
    losses = {name: value.item() for name, value in boxes(predicted, target, None).items()}
    write_case(
        folder,
        {"losses": losses, "config": m.cfg},
        {"in.image": pixels, "in.text_ids": ids, "in.text_atts": atts, "in.target_bbox": target,
         "out.pred_bbox_cxcywh": predicted},
    )  # fmt: skip
