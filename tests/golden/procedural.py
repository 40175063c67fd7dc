"""Golden cases without stored weights: the real base model, filled by recipe, and its names and shapes."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.differences import Difference, equal, norms, worst
from tests.golden.folders import case_config, nearest
from tests.golden.model_cases import activations, case_negatives, compare_activations, losses_and_gradients
from tests.support.models.golden_cases import LOSS_NAMES, Case, read_case, to_batch
from x2vlm.models.checkpoints.reference import export_reference_state, load_reference_state, reference_names
from x2vlm.models.config import model_config_from_reference
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.objectives.step import pretrain_losses

# Sums and norms of millions of float32 numbers, the recorded ones perhaps added up in float32.
WEIGHT_CHECK = 1e-4


def recipe_state(model: X2VLM, seed: int) -> dict[str, Tensor]:
    """Values for every parameter of `model`, under reference names, as the golden weights were drawn."""
    shapes = {theirs: model.get_parameter(ours).shape for ours, theirs in reference_names(model).items()}
    return {name: recipe_values(name, tuple(shape), seed) for name, shape in shapes.items() if name != "temp"}


def recipe_values(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers from numpy's RandomState(crc32(name) + seed), scaled by the kind of parameter."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    z = torch.from_numpy(generator.standard_normal(shape).astype(np.float32))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "relative_position_bias_table" or leaf == "cls_token":
        return 0.5 * z
    if leaf in ("gamma_1", "gamma_2"):
        return 0.3 + 0.1 * z
    if leaf == "absolute_frame_pos_embed":
        return 0.3 * z
    if "embeddings." in name and z.ndim == 2:
        return 0.1 * z
    if z.ndim == 1:
        return 0.1 * z if leaf.endswith("bias") else 1 + 0.1 * z
    return z * np.float32(1 / math.sqrt(math.prod(shape[1:])))


def recipe_image(seed: int, n: int, res: int) -> Tensor:
    """`n` images (n, 3, res, res): fine noise at half strength on a noise of 16-pixel blocks."""
    generator = np.random.RandomState(seed)
    fine = torch.from_numpy(generator.standard_normal((n, 3, res, res)).astype(np.float32))
    coarse = torch.from_numpy(generator.standard_normal((n, 3, res // 16, res // 16)).astype(np.float32))
    return 0.5 * fine + coarse.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)


def check_base(folder: Path) -> list[Difference]:
    """A batch through the model of the case's sizes with weights and pixels by recipe: slices of outputs, losses."""
    case = read_case(folder)
    values = case_config(folder, case.info)
    model = build_model(model_config_from_reference(values)).eval()
    state = recipe_state(model, case.info["weight_seed"])
    report = load_reference_state(model, state)
    found = [equal("parameters the recipe does not fill", report.missing, ["temp"])]
    checks = nearest(folder, "weight_checks.json")
    found.append(worst("weight_checks", _weight_checks(state, json.loads(checks.read_text()))))
    pixels = recipe_image(**case.info["image_recipe"])
    batch = to_batch(Case(case.info, case.tensors | {"in.image": pixels}))
    negatives = case_negatives(model, batch, case)
    with torch.no_grad():
        found += compare_activations(_slices(activations(model, batch, negatives)), case.tensors)

    def compute(model: X2VLM) -> dict[str, Tensor]:
        return pretrain_losses(model, batch, negatives)

    return found + losses_and_gradients(model, case, compute, LOSS_NAMES, negatives is not None)


def _slices(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return ours | {
        "vision_embeds_first4": ours["vision_embeds"][:, :4],
        "vision_embeds_mean": ours["vision_embeds"].mean(dim=1),
        "text_embeds_first2": ours["text_embeds"][:, :2],
        "mlm_logits_first64": ours["mlm_logits"][..., :64],
    }


def _weight_checks(state: dict[str, Tensor], recorded: dict[str, Any]) -> list[Difference]:
    found = []
    for name, (total, norm) in recorded.items():
        if name not in state:
            found.append(equal(f"{name} is filled by the recipe", name, "temp"))
            continue
        value = state[name].double()
        found.append(Difference(f"sum of {name}", abs(value.sum().item() - total) / norm, WEIGHT_CHECK))
        found.append(norms(f"norm of {name}", value.norm().item(), norm, WEIGHT_CHECK))
    return found


def check_base_state_dict(path: Path) -> list[Difference]:
    """Names, shapes and types of the whole state, and the number of parameters, without allocating any."""
    recorded = json.loads(path.read_text())
    with torch.device("meta"):
        model = build_model(model_config_from_reference(recorded["config"]))
    state = export_reference_state(model)
    ours = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()}
    theirs = recorded["state_dict"]
    wrong = sorted(name for name in set(ours) | set(theirs) if ours.get(name) != theirs.get(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    return [equal("entries that differ", wrong, []), equal("parameters", count, recorded["n_trainable"])]
