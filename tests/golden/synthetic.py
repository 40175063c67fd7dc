"""Golden cases of the kinds and sizes that have no public example, made by the naive version of the reference.

Layout, keys and arrays are those of the held-back set, so that every branch of the runner meets numbers that none of
the project's model code had a part in. ImageTokens are noise, captions random numbers: parity needs no sense.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from tests.golden.naive import Naive, run, run_parallel, run_text_only
from tests.golden.procedural import recipe_image, recipe_values
from tests.support.models.reference_shapes import (
    TIED,
    Shapes,
    Sizes,
    multilingual,
    pretrained,
    relative_position_index,
    vision_encoder,
)

# Nothing equal that could be mixed up: widths of image and text, heads, grid, frames, positions.
SIZES = Sizes(
    vision=48, depth=2, vision_heads=6, grid=5, vision_inner=192, text=36, text_layers=3, fusion_layers=2, inner=100,
    vocab=61, positions=48, embed=40, frames=4,
)  # fmt: skip
SEPARATE = Sizes(
    vision=24, depth=2, vision_heads=4, grid=4, vision_inner=96, text=24, text_layers=2, fusion_layers=2, inner=50,
    vocab=60, positions=32, embed=16,
)  # fmt: skip
Arrays = dict[str, Tensor]
Run = Callable[[Naive, Arrays, tuple[Tensor, Tensor] | None], tuple[Arrays, Arrays]]


def describe(s: Sizes, text_heads: int, temperature: float) -> dict[str, Any]:
    """The reference's config.json of a model of these sizes."""
    values = {
        "vision_embed": s.vision, "vision_depth": s.depth, "vision_heads": s.vision_heads,
        "vision_mlp_ratio": s.vision_inner // s.vision, "vision_layernorm_eps": 1e-6, "vision_layer_scale": True,
        "vision_rel_pos_bias": "per block", "vision_abs_pos": False, "vision_qkv_bias": "q and v only",
        "image_res": s.grid * s.patch, "patch_size": s.patch, "text_hidden": s.text, "text_heads": text_heads,
        "text_intermediate": s.inner, "text_layers_total": s.text_layers + s.fusion_layers,
        "text_fusion_starts_at": s.text_layers, "text_only_layers": s.text_layers, "fusion_layers": s.fusion_layers,
        "text_layernorm_eps": 1e-12, "text_act": "gelu (erf)", "vocab_size": s.vocab,
        "max_position_embeddings": s.positions, "type_vocab_size": s.types, "embed_dim": s.embed, "temp": temperature,
    }  # fmt: skip
    return values | ({} if s.frames is None else {"frame_len": s.frames, "add_frame_pos": True})


def drawn_state(shapes: Shapes, s: Sizes, seed: int, temperature: float) -> Arrays:
    """A state by the golden recipe, tied entries written twice, constants included."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
        elif name.endswith("relative_position_index"):
            state[name] = relative_position_index(s.grid)
        else:
            state[name] = torch.tensor(temperature) if name == "temp" else recipe_values(name, shape, seed)
    return {name: state[TIED.get(name, name)].clone() for name in state}


def learnt(state: Arrays) -> Arrays:
    """The parameters of a state: floating point, tied ones under their first name only."""
    return {name: value for name, value in state.items() if value.is_floating_point() and name not in TIED}


@dataclass(frozen=True)
class Batches:
    """Draws inputs of every kind for models of some sizes."""

    s: Sizes
    generator: torch.Generator
    length: int = 11
    masks: int = 4

    def whole(self, *shape: int, low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def texts(self, rows: int) -> Arrays:
        """Captions of different lengths, with some words replaced and at least one to guess in each."""
        ids = self.whole(rows, self.length, low=5, high=self.s.vocab)
        atts = (torch.arange(self.length)[None] < self.whole(rows, 1, low=5, high=self.length + 1)).long()
        ids = ids * atts
        ids[:, 0] = 2
        positions, labels, masked = (
            torch.zeros(rows, self.masks).long(),
            torch.full((rows, self.masks), -100),
            ids.clone(),
        )
        for row in range(rows):
            spots = 1 + torch.randperm(int(atts[row].sum()) - 1, generator=self.generator)[: 1 + row % self.masks]
            positions[row, : len(spots)], labels[row, : len(spots)] = spots, ids[row, spots]
            masked[row, spots] = 4
        return {
            "text_ids": ids, "text_atts": atts, "text_ids_masked": masked, "masked_pos": positions, "masked_ids": labels
        }  # fmt: skip

    def pixels(self, *shape: int, side: int | None = None) -> Tensor:
        side = side or self.s.grid * self.s.patch
        return torch.randn(*shape, 3, side, side, generator=self.generator)

    def pairs(self, rows: int, side: int | None = None) -> Arrays:
        return {"image": self.pixels(rows, side=side), **self.texts(rows)}

    def clips(self, rows: int) -> Arrays:
        return {"image": self.pixels(rows, self.s.frames or 1), **self.texts(rows)}

    def regions(self, image_of: list[int], whole_rows: list[int]) -> Arrays:
        rows = len(image_of)
        cover = (torch.rand(rows, self.s.grid**2, generator=self.generator) < 0.4).long()
        cover[:, 3] = 1
        boxes = torch.rand(rows, 4, generator=self.generator) * 0.5 + 0.2
        is_image = torch.zeros(rows).long()
        for row in whole_rows:
            cover[row], boxes[row], is_image[row] = 1, torch.tensor([0.5, 0.5, 1.0, 1.0]), 1
        return {
            "image": self.pixels(max(image_of) + 1), **self.texts(rows),
            "image_atts": torch.cat([torch.ones(rows, 1).long(), cover], dim=1),
            "idx_to_group_img": torch.tensor(image_of), "target_bbox": boxes, "is_image": is_image,
        }  # fmt: skip

    def negatives(self, rows: int) -> tuple[Tensor, Tensor]:
        shift = [(torch.arange(rows) + self.whole(rows, low=1, high=rows)) % rows for _ in range(2)]
        return shift[0], shift[1]


def write_case(folder: Path, info: dict[str, Any], tensors: Arrays) -> None:
    """case.json and, if there are any, tensors.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps({"note": "made by the naive version"} | info))
    if tensors:
        save_file(
            {name: value.detach().contiguous().clone() for name, value in tensors.items()},
            folder / "tensors.safetensors",
        )


def write_batch_case(
    folder: Path,
    m: Naive,
    inputs: Arrays,
    negatives: tuple[Tensor, Tensor] | None,
    compute: Run,
    options: dict[str, Any],
) -> None:
    """One batch with its arrays, losses in both precisions, and gradients."""
    parameters = {name: value.clone().requires_grad_() for name, value in learnt(m.state).items()}
    out, losses = compute(Naive(parameters, m.cfg), inputs, negatives)
    total = torch.stack(list(losses.values())).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    norms = {n: None if g is None else g.norm().item() for n, g in zip(parameters, gradients, strict=True)}
    exact = {name: value.double() for name, value in learnt(m.state).items()}
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        _, losses_f64 = compute(Naive(exact, m.cfg), doubled, negatives)
    kept = [name for name in parameters if norms[name]][::17]
    by_name = dict(zip(parameters, gradients, strict=True))
    write_case(
        folder,
        {
            "config": m.cfg, "seed": 0, "options": options, "grad_norms": norms, "loss_total": total.item(),
            "losses": {name: value.item() for name, value in losses.items()},
            "losses_f64": {name: value.item() for name, value in losses_f64.items()},
            "grad_global_norm": sum(norm**2 for norm in norms.values() if norm) ** 0.5,
        },
        {f"in.{name}": value for name, value in inputs.items()}
        | {f"out.{name}": value for name, value in out.items()}
        | {f"grad.{name}": by_name[name] for name in kept},
    )  # fmt: skip


def text_only(m: Naive, inputs: Arrays, negatives: tuple[Tensor, Tensor] | None) -> tuple[Arrays, Arrays]:
    return run_text_only(m, inputs)


def write_model_cases(root: Path) -> None:
    """The folder's model and every kind of batch of it."""
    cfg = describe(SIZES, text_heads=6, temperature=0.05)
    m = Naive(drawn_state(pretrained(SIZES), SIZES, seed=2, temperature=0.05), cfg)
    root.mkdir(parents=True, exist_ok=True)
    save_file(m.state, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(cfg))
    draw = Batches(SIZES, torch.Generator().manual_seed(11))
    pairs, clips, texts = draw.pairs(5), draw.clips(3), draw.texts(4)
    regions = draw.regions([0, 0, 2, 1, 2, 0], whole_rows=[3, 5])
    negatives = {"image": draw.negatives(5), "video": draw.negatives(3), "regions": draw.negatives(6)}
    write_batch_case(root / "image", m, pairs, negatives["image"], run, {})
    write_batch_case(root / "image_no_matching", m, draw.pairs(5), None, run, {"ret_match_loss": False})
    write_batch_case(root / "video", m, clips, negatives["video"], run, {})
    write_batch_case(root / "text_only", m, draw.texts(4), None, text_only, {})
    write_batch_case(root / "regions", m, regions, negatives["regions"], run, {"ret_bbox_loss": True})
    everything = {name: value for name, value in regions.items() if name != "is_image"}
    folder = root / "regions_box_loss_on_images"
    write_batch_case(folder, m, everything, negatives["regions"], run, {"ret_bbox_loss": True})
    nothing = {"losses": {"loss_bbox": float("nan"), "loss_giou": float("nan"), "loss_itc": 1.0}}
    (root / "regions" / "all_image_rows.json").write_text(json.dumps(nothing))
    write_case(root / "mixed_text_batch", {"texts": []}, {f"in.{name}": value for name, value in texts.items()})
    new = [
        n
        for n in learnt(m.state)
        if n.startswith(("vision_proj", "text_proj", "temp", "itm_head", "bbox_head", "absol"))
    ]
    write_groups(root / "param_groups.json", m, new)
    parts = {
        "video": (clips, negatives["video"], run), "image": (pairs, negatives["image"], run),
        "regions": (regions, negatives["regions"], run), "text": (texts, None, text_only),
    }  # fmt: skip
    weights = {"video": 0.5, "image": 1.0, "regions": 2.0, "text": 0.25}
    write_steps(root / "mixed", m, parts, weights, new, 3)
    write_steps(root / "trajectory_image", m, {"image": parts["image"]}, None, new, 3)
    write_resolutions(root / "resolution", m, draw)


def write_groups(path: Path, m: Naive, new: list[str]) -> None:
    """Rate and decay of every parameter by the substring rules, plain and with rates of their own for both sides."""
    bare = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
    versions: dict[str, Any] = {"new_parameters": sorted(new)}
    for version, lrs in (("groups", {}), ("groups_separate_lr", {"vision": 2e-5, "text": 8e-5})):
        groups = {}
        for name in learnt(m.state):
            decayed = not any(part in name for part in bare)
            part = next((part for part in lrs if f"{part}_encoder" in name), None)
            number = (2 if name in new else 0) if part is None else 4 + 2 * list(lrs).index(part)
            lr = lrs[part] if part else (2e-4 if name in new else 1e-4)
            groups[name] = {"group": number + (not decayed), "lr": lr, "weight_decay": 0.01 if decayed else 0.0}
        versions[version] = groups
    path.write_text(json.dumps(versions))


def write_steps(
    folder: Path, m: Naive, parts: dict[str, Any], weights: dict[str, float] | None, new: list[str], steps: int
) -> None:
    """Optimizer steps on the weighted sum of the parts' losses, by the published formula, one parameter at a time."""
    lr, multiplier, decay, (beta1, beta2), eps, clip = 1e-3, 2, 0.01, (0.9, 0.98), 1e-8, 1.0
    groups = json.loads((folder.parent / "param_groups.json").read_text())["groups"]
    values = {name: value.clone() for name, value in learnt(m.state).items()}
    first, second = ({name: torch.zeros_like(v) for name, v in values.items()} for _ in range(2))
    history = []
    for step in range(1, steps + 1):
        live = {name: value.clone().requires_grad_() for name, value in values.items()}
        record, total = {}, torch.zeros(())
        for part, (inputs, negatives, compute) in parts.items():
            _, losses = compute(Naive(live, m.cfg), inputs, negatives)
            record |= {f"{part}.{name}": loss.item() for name, loss in losses.items()}
            total = total + (weights or {}).get(part, 1.0) * torch.stack(list(losses.values())).sum()
        gradients = dict(zip(live, torch.autograd.grad(total, list(live.values()), allow_unused=True), strict=True))
        norm = sum(g.norm().item() ** 2 for g in gradients.values() if g is not None) ** 0.5
        history.append(record | {"total": total.item(), "grad_norm_before_clip": norm})
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            g = gradient * min(1.0, clip / (norm + 1e-6))
            first[name] = beta1 * first[name] + (1 - beta1) * g
            second[name] = beta2 * second[name] + (1 - beta2) * g * g
            rate = lr * multiplier if name in new else lr
            scale = rate * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
            values[name] = values[name] - scale * first[name] / (second[name].sqrt() + eps)
            if groups[name]["weight_decay"]:
                values[name] = values[name] - rate * decay * values[name]
    after = ["temp", "vision_proj.weight", "itm_head.0.weight", "itm_head.1.weight", "vision_encoder.cls_token"]
    info = {
        "config": m.cfg, "steps": steps, "lr": lr, "lr_mult": multiplier, "weight_decay": decay,
        "betas": [beta1, beta2],
        "eps": eps, "clip_grad_norm": clip, "history": history, "loss_weights": weights,
    }  # fmt: skip
    write_case(folder, info, {f"after.{name}": values[name] for name in after})


def resized(table: Tensor, grid: int) -> Tensor:
    """A position table for another grid, by SciPy."""
    side, wanted = round((len(table) - 3) ** 0.5), 2 * grid - 1
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        total = sum(q**k for k in range(side // 2))
        left, right = (left, q) if total > wanted // 2 else (q, right)
    distances = np.cumsum([q**k for k in range(side // 2)])
    offsets = np.concatenate([-distances[::-1], [0], distances])
    points = np.arange(wanted) - wanted // 2
    columns = []
    for head in range(table.shape[1]):
        z = table[:-3, head].double().reshape(side, side).numpy()
        columns.append(
            torch.from_numpy(RectBivariateSpline(offsets, offsets, z, kx=3, ky=3, s=0)(points, points)).flatten()
        )
    return torch.cat([torch.stack(columns, dim=1).float(), table[-3:]])


def write_resolutions(root: Path, m: Naive, draw: Batches) -> None:
    """The same weights at other resolutions, built without frame positions; and tables alone."""
    tables = [name for name in m.state if name.endswith("relative_position_bias_table")]
    for side in (48, 128):
        grid = side // SIZES.patch
        state = {n: v for n, v in m.state.items() if n != "absolute_frame_pos_embed"}
        state |= {name: resized(m.state[name], grid) for name in tables}
        cfg = {k: v for k, v in m.cfg.items() if k not in ("frame_len", "add_frame_pos")} | {"image_res": side}
        pairs = draw.pairs(3, side=side)
        write_batch_case(root / f"res{side}", Naive(state, cfg), pairs, draw.negatives(3), run, {})
        save_file({name: state[name] for name in tables}, root / f"res{side}" / "tables.safetensors")
    alone = {}
    for name, before, after in (("5_to_8", 5, 8), ("14_to_24", 14, 24), ("smooth_14_to_12", 14, 12), ("5_to_5", 5, 5)):
        table = torch.randn((2 * before - 1) ** 2 + 3, 2, generator=draw.generator)
        alone |= {f"in.{name}": table, f"out.{name}": table.clone() if before == after else resized(table, after)}
    write_case(root / "table_resize", {}, alone)


def write_starting_weights(root: Path) -> None:
    """Raw image backbones and what becomes of them on a larger grid; where text parameters come from."""
    before = Sizes(vision=24, depth=2, vision_heads=3, grid=5, vision_inner=96)
    after = Sizes(vision=24, depth=2, vision_heads=3, grid=8, vision_inner=96)
    raw = drawn_state(vision_encoder(before), before, seed=3, temperature=0.07)
    raw = {name.removeprefix("vision_encoder."): value for name, value in raw.items()}
    table = "attn.relative_position_bias_table"
    raw |= {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}
    constant = {f"blocks.{i}.attn.relative_position_index": relative_position_index(after.grid) for i in range(2)}
    loaded = {name: value for name, value in raw.items() if not name.startswith("head.")} | constant
    loaded |= {f"blocks.{i}.{table}": resized(raw[f"blocks.{i}.{table}"], after.grid) for i in range(2)}
    save_case(root / "per_block_tables", raw, loaded)
    shared = {name: value for name, value in raw.items() if "relative_position" not in name}
    shared["rel_pos_bias.relative_position_bias_table"] = raw[f"blocks.1.{table}"].clone()
    shared["rel_pos_bias.relative_position_index"] = relative_position_index(before.grid)
    both = {f"blocks.{i}.{table}": resized(raw[f"blocks.1.{table}"], after.grid) for i in range(2)}
    save_case(root / "shared_table", shared, loaded | both)
    (root / "bert_origin.json").write_text(
        json.dumps(
            {
                "12_to_12_and_6": origins(12, 6, lambda layer: layer if layer < 12 else layer - 6),
                "6_to_6_and_3": origins(6, 3, lambda layer: layer if layer < 6 else layer - 3),
                "24_to_8_and_4": origins(8, 4, lambda layer: 2 * layer + 1),
                "24_to_12_and_6": origins(12, 6, lambda layer: 2 * (layer if layer < 12 else layer - 6) + 1),
            }
        )
    )


def save_case(folder: Path, raw: Arrays, loaded: Arrays) -> None:
    write_case(folder, {"reference_log": []}, {})
    save_file(raw, folder / "raw.safetensors")
    save_file({name: value.clone() for name, value in loaded.items()}, folder / "loaded.safetensors")


def origins(num_text: int, num_fusion: int, source_of: Callable[[int], int]) -> dict[str, str | None]:
    """Raw BERT entry of every text parameter, its layer by `source_of`; cross-attention is new."""
    s = Sizes(text_layers=num_text, fusion_layers=num_fusion)
    found: dict[str, str | None] = {}
    for name in pretrained(s):
        if not name.startswith("text_encoder.") or name.endswith("position_ids") or name in TIED:
            continue
        raw = name.removeprefix("text_encoder.")
        if ".layer." in raw:
            number = int(raw.split(".")[3])
            raw = raw.replace(f".layer.{number}.", f".layer.{source_of(number)}.")
        found[name] = None if "crossattention" in name else raw
    return found


def write_separate_encoders(root: Path) -> None:
    """A model of its own whose fusion layers stand apart: pairs, regions, and sentences of two languages."""
    cfg = describe(SEPARATE, text_heads=4, temperature=0.07)
    m = Naive(drawn_state(multilingual(SEPARATE), SEPARATE, seed=6, temperature=0.07), cfg)
    root.mkdir(parents=True)
    save_file(m.state, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(cfg))
    draw = Batches(SEPARATE, torch.Generator().manual_seed(12))
    write_batch_case(root / "image", m, draw.pairs(4), draw.negatives(4), run, {})
    regions = draw.regions([0, 0, 1, 1, 0], whole_rows=[2])
    write_batch_case(root / "regions", m, regions, draw.negatives(5), run, {"ret_bbox_loss": True})
    second = draw.texts(4)
    sentences = draw.texts(4) | {"text_ids_2": second["text_ids"], "text_atts_2": second["text_atts"]}
    write_batch_case(root / "parallel_text", m, sentences, draw.negatives(4), run_parallel, {})


def write_base_procedural(root: Path, s: Sizes, text_heads: int) -> None:
    """Pairs and regions of a model whose weights and pixels are not stored, at any sizes."""
    cfg = describe(s, text_heads=text_heads, temperature=0.07)
    m = Naive(drawn_state(pretrained(s), s, seed=5, temperature=0.07), cfg)
    draw = Batches(s, torch.Generator().manual_seed(13))
    checks = {n: [v.double().sum().item(), v.double().norm().item()] for n, v in list(learnt(m.state).items())[::25]}
    root.mkdir(parents=True)
    (root / "weight_checks.json").write_text(json.dumps({n: c for n, c in checks.items() if n != "temp"}))
    for name, inputs in (("image", draw.pairs(3)), ("regions", draw.regions([0, 0, 1, 1, 1], whole_rows=[2]))):
        recipe = {"seed": 77, "n": len(inputs["image"]), "res": s.grid * s.patch}
        inputs["image"], negatives = recipe_image(**recipe), draw.negatives(len(inputs["text_ids"]))
        with torch.no_grad():
            out, losses = run(m, inputs, negatives)
        kept = {name: out[name] for name in ("image_feat", "text_feat", "itm_logits", "image_neg_idx", "text_neg_idx")}
        kept |= {"vision_embeds_first4": out["vision_embeds"][:, :4], "text_embeds_first2": out["text_embeds"][:, :2]}
        kept |= {"vision_embeds_mean": out["vision_embeds"].mean(1), "mlm_logits_first64": out["mlm_logits"][..., :64]}
        kept |= {name: value for name, value in out.items() if name == "pred_bbox_cxcywh"}
        info = {"config": cfg, "weight_seed": 5, "image_recipe": recipe, "texts": []}
        info["losses"] = {name: value.item() for name, value in losses.items()}
        stored = {f"in.{name}": value for name, value in inputs.items() if name != "image"}
        write_case(root / name, info, stored | {f"out.{name}": value for name, value in kept.items()})
