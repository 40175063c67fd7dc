"""The arithmetic of classifiers and of the decoder of answers once more, naively, and golden cases made by it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear

from tests.golden.naive import Naive, affine, fuse, head, image_tokens, normed, text_layer, text_states, video_tokens
from tests.golden.procedural import recipe_values
from tests.golden.synthetic import SIZES, Batches, describe, drawn_state, learnt, write_case
from tests.support.models.reference_shapes import TIED, Shapes, mlp, pretrained, question_answering

Arrays = dict[str, Tensor]


def write_answer_cases(root: Path) -> None:
    """`nlvr`, `video_qa`, `vqa_classes` and `vqa`, with the model that they share in the folder above."""
    cfg = describe(SIZES, text_heads=6, temperature=0.05)
    m = Naive(drawn_state(pretrained(SIZES), SIZES, seed=2, temperature=0.05), cfg)
    root.mkdir(parents=True, exist_ok=True)
    save_file(m.state, root / "model.safetensors")
    draw = Batches(SIZES, torch.Generator().manual_seed(21), length=9)
    write_classifier(root / "downstream" / "nlvr", m, draw, draw.pixels(8), classes=2, images=2)
    write_classifier(root / "downstream" / "video_qa", m, draw, draw.pixels(3, SIZES.frames or 1), classes=11)
    write_classifier(root / "downstream" / "vqa_classes", m, draw, draw.pixels(3), classes=11, counts=[2, 1, 2])
    write_vqa(root / "downstream" / "vqa", m, draw)


def write_classifier(
    folder: Path, m: Naive, draw: Batches, pixels: Tensor, classes: int, images: int = 1, counts: Any = None
) -> None:
    """Token 0 of every image's fusion side by side, into a perceptron."""
    rows = len(pixels) // images
    texts = draw.texts(rows)
    shapes: Shapes = mlp("cls_head", images * SIZES.text, classes)
    weights = {name: recipe_values(name, shape, 31) for name, shape in shapes.items()}
    states = []
    for number in range(images):
        shown = pixels[number * rows : (number + 1) * rows]
        states.append(fused(m, shown, texts["text_ids"], texts["text_atts"])[:, 0])
    logits = head(Naive(weights, m.cfg), "cls_head", torch.cat(states, dim=1))
    targets = draw.whole(sum(counts) if counts else rows, low=0, high=classes)
    info: dict[str, Any] = {"config": m.cfg}
    arrays = {"in.image": pixels, "in.text_ids": texts["text_ids"], "in.text_atts": texts["text_atts"]}
    arrays |= {"in.targets": targets, "out.logits": logits} | {f"w.{name}": value for name, value in weights.items()}
    if counts is None:
        info["loss"] = cross_entropy(logits, targets).item()
    else:
        arrays["in.weights"] = torch.rand(len(targets), generator=draw.generator)
        rows_of = [row for row, count in enumerate(counts) for _ in range(count)]
        each = [-logits[row].log_softmax(0)[target] for row, target in zip(rows_of, targets, strict=True)]
        info |= {"loss": float(torch.stack(each) @ arrays["in.weights"]) / rows, "answers_per_question": counts}
    write_case(folder, info, arrays)


def fused(m: Naive, pixels: Tensor, ids: Tensor, atts: Tensor) -> Tensor:
    """All tokens after text and fusion layers."""
    tokens = video_tokens(m, pixels) if pixels.ndim == 5 else image_tokens(m, pixels)
    return fuse(m, text_states(m, ids, atts), atts, (tokens, torch.ones(tokens.shape[:2])))


def decoder_logits(m: Naive, depth: int, ids: Tensor, atts: Tensor, question: tuple[Tensor, Tensor]) -> Tensor:
    """(A, L, V): what follows each token, seeing it, those before it and the question."""
    table, words = "text_decoder.bert.embeddings", "text_decoder.cls.predictions"
    eps = m.cfg["text_layernorm_eps"]
    x = m[f"{table}.word_embeddings.weight"][ids] + m[f"{table}.token_type_embeddings.weight"][0]
    x = normed(m, f"{table}.LayerNorm", x + m[f"{table}.position_embeddings.weight"][: ids.shape[1]], eps)
    seen = torch.ones(ids.shape[1], ids.shape[1]).tril() * atts[:, None, None]
    for number in range(depth):
        x = text_layer(m, f"text_decoder.bert.encoder.layer.{number}", x, (1 - seen) * -10000.0, question)
    x = normed(m, f"{words}.transform.LayerNorm", gelu(affine(m, f"{words}.transform.dense", x)), eps)
    return linear(x, m[f"{table}.word_embeddings.weight"], m[f"{words}.bias"])


def sequence_losses(
    m: Naive, depth: int, ids: Tensor, atts: Tensor, states: Tensor, question_atts: Tensor, rows: list[int]
) -> Tensor:
    """Summed loss of each answer to the question of its row, one answer at a time."""
    found = []
    for answer, row in zip(range(len(ids)), rows, strict=True):
        one = slice(answer, answer + 1)
        logits = decoder_logits(m, depth, ids[one], atts[one], (states[row : row + 1], question_atts[row : row + 1]))
        length = int(atts[answer].sum())
        found.append(cross_entropy(logits[0, : length - 1], ids[answer, 1:length], reduction="sum"))
    return torch.stack(found)


def write_vqa(folder: Path, m: Naive, draw: Batches, k: int = 6) -> None:
    """A list of 18 answers of one to three tokens, ranked for three questions; and the loss of six weighted answers."""
    depth, origin = SIZES.fusion_layers, decoder_origin(SIZES.fusion_layers, lambda number: number)
    fresh = {
        name: recipe_values(name, question_answering(SIZES)[name], 8) for name, source in origin.items() if not source
    }
    decoder = {name: fresh.get(name, m.state.get(source or "")) for name, source in origin.items()}
    whole = Naive(m.state | decoder, m.cfg)
    questions, pixels = draw.texts(3), draw.pixels(3)
    states = fused(m, pixels, questions["text_ids"], questions["text_atts"])
    ids, atts = drawn_answers(draw, 18)
    start = ids[:1, :1].repeat(3, 1)
    first = decoder_logits(whole, depth, start, torch.ones_like(start), (states, questions["text_atts"]))[:, 0]
    first = first.softmax(-1)
    chances, chosen = first[:, ids[:, 1]].topk(k, dim=1)
    scores = []
    for row in range(3):
        losses = sequence_losses(
            whole, depth, ids[chosen[row]], atts[chosen[row]], states, questions["text_atts"], [row] * k
        )
        scores.append(chances[row].log() - losses)
    probs, order = torch.stack(scores).softmax(-1).sort(dim=1, descending=True)
    train_ids, train_atts = drawn_answers(draw, 6)
    weights, counts = torch.rand(6, generator=draw.generator), [3, 1, 2]
    losses = sequence_losses(
        whole, depth, train_ids, train_atts, states, questions["text_atts"], [0, 0, 0, 1, 2, 2]
    )  # fmt: skip
    info = {"k_test": k, "answers": [str(number) for number in range(18)], "answers_per_question": counts}
    info |= {"train_loss": float(weights @ losses) / 3, "num_dec_layers": depth, "config": m.cfg}
    write_case(folder, info, {
        "in.image": pixels, "in.question_ids": questions["text_ids"], "in.question_atts": questions["text_atts"],
        "in.answer_ids": ids, "in.answer_atts": atts, "out.topk_ids": chosen.gather(1, order), "out.topk_probs": probs,
        "out.first_token_probs": first, "train.answer_ids": train_ids, "train.answer_atts": train_atts,
        "train.weights": weights,
    })  # fmt: skip
    save_file(fresh, folder / "fresh_weights.safetensors")
    (folder / "weight_origin.json").write_text(json.dumps(encoder_origin() | origin))
    half = encoder_origin() | decoder_origin(1, lambda _: 0)  # of the layers 3 and 4 of the stack, 3 is odd
    (folder / "weight_origin_half_depth.json").write_text(json.dumps(half))


def drawn_answers(draw: Batches, count: int) -> tuple[Tensor, Tensor]:
    """Answers [CLS] 1 to 3 tokens [SEP] padded; first tokens from all of the vocabulary, so that none is equal."""
    ids, atts = torch.zeros(count, 5).long(), torch.zeros(count, 5).long()
    firsts = 5 + torch.randperm(SIZES.vocab - 5, generator=draw.generator)[:count]
    for row in range(count):
        length = 3 + row % 3
        ids[row, 1 : length - 1] = draw.whole(length - 2, low=5, high=SIZES.vocab)
        ids[row, 0], ids[row, 1], ids[row, length - 1] = 2, firsts[row], 3
        atts[row, :length] = 1
    return ids, atts


def encoder_origin() -> dict[str, str | None]:
    """Parameters of the model below the decoder: their own entries, without `bert.` in their names."""
    names = [name for name in learnt(drawn_state(pretrained(SIZES), SIZES, 2, 0.05)) if "_proj" not in name]
    kept = [name for name in names if name.startswith(("vision_encoder.", "text_encoder.bert."))]
    return {name.replace("text_encoder.bert.", "text_encoder.", 1): name for name in kept}


def decoder_origin(depth: int, source_of: Any) -> dict[str, str | None]:
    """By the description: fusion layers in order, keys and values of cross-attention new as the widths differ."""
    found: dict[str, str | None] = {}
    for name in question_answering(SIZES):
        if not name.startswith("text_decoder.") or name in TIED or name.endswith("position_ids"):
            continue
        source = name.replace("text_decoder.", "text_encoder.", 1)
        if ".layer." in name:
            number = int(name.split(".")[4])
            if number >= depth:
                continue
            source = source.replace(f".layer.{number}.", f".layer.{SIZES.text_layers + source_of(number)}.")
        is_new = "crossattention.self.key" in name or "crossattention.self.value" in name
        found[name] = None if is_new else source
    return found
