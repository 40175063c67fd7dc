"""Golden cases of training: optimizer steps on a batch or a weighted mix, and the learning rate of each parameter."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.differences import EXACT, Difference, directions, equal, norms, numbers, worst
from tests.golden.folders import case_model, nearest
from tests.golden.model_cases import case_negatives
from tests.golden.siblings import part_case
from tests.support.models.golden_cases import LOSS_NAMES, Case, read_case, to_batch
from x2vlm.data.loading.batch import Batch
from x2vlm.models.checkpoints.reference import export_reference_state, reference_names
from x2vlm.models.x2vlm import X2VLM
from x2vlm.objectives.step import pretrain_losses
from x2vlm.train.optim import OptimizerConfig, build_optimizer, new_parameter_names, parameter_groups


def check_trajectory(folder: Path) -> list[Difference]:
    """Losses, gradient norm and parameters over the recorded steps.

    Where a part's negatives are neither recorded nor told by its arrays, only what does not depend on them is compared:
    the other losses of the first step.
    """
    case = read_case(folder)
    info = case.info
    weights = info.get("loss_weights") or {"image": 1.0}
    model = case_model(folder, case)
    parts = {name: _Part.of(model, part_case(folder, case, name)) for name in weights}
    if unknown := {name for name, part in parts.items() if part.negatives is None and part.batch.kind != "text"}:
        return [worst("step 0: losses without matching", _losses_without_matching(model, parts, info, unknown))]
    new = _new_parameters(folder, model)
    config = OptimizerConfig(
        lr=info["lr"], lr_multiplier=info["lr_mult"], weight_decay=info["weight_decay"], betas=tuple(info["betas"]),
        eps=info["eps"],
    )  # fmt: skip
    optimizer = build_optimizer(model, config, new)
    start = {name: value.clone() for name, value in export_reference_state(model).items()}
    found = [equal("steps", len(info["history"]), info["steps"])]
    for step, recorded in enumerate(info["history"]):
        losses = {name: part.losses(model) for name, part in parts.items()}
        total = torch.stack([weights[name] * sum(part.values()) for name, part in losses.items()]).sum()
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), info["clip_grad_norm"]).item()
        optimizer.step()
        ours = {f"{part}.{name}": value.item() for part, values in losses.items() for name, value in values.items()}
        ours["total"] = total.item()
        found.append(worst(f"step {step}: losses", _step_losses(ours, recorded)))
        found.append(norms(f"step {step}: gradient norm", norm, recorded["grad_norm_before_clip"]))
    state = export_reference_state(model)
    for name, value in case.tensors.items():
        key = name.removeprefix("after.")
        found.append(_moved(f"way of {key}", start[key], state[key], value))
    return found


def _moved(name: str, start: Tensor, ours: Tensor, recorded: Tensor) -> Difference:
    """The way a parameter went, judged like the gradients that moved it.

    Adam divides by the gradient's size, so an element whose gradient is mere rounding goes either way: in a mixed case
    two float32 implementations differ by 4.1e-5 in one of 1,920 elements, and by 2.4e-4 of the whole way.
    """
    return directions(name, ours - start, recorded - start)


@dataclass(frozen=True)
class _Part:
    """The batch of one part of a mix, and the negatives of its matching loss (None: none, or not known)."""

    batch: Batch
    negatives: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, model: X2VLM, case: Case) -> "_Part":
        batch = to_batch(case)
        return cls(batch, case_negatives(model, batch, case))

    def losses(self, model: X2VLM) -> dict[str, Tensor]:
        found = pretrain_losses(model, self.batch, self.negatives)
        return {LOSS_NAMES[key]: value for key, value in found.items()}


def _losses_without_matching(
    model: X2VLM, parts: dict[str, _Part], info: dict[str, Any], unknown: set[str]
) -> list[Difference]:
    with torch.no_grad():
        ours = {f"{n}.{key}": v.item() for n, part in parts.items() for key, v in part.losses(model).items()}
    skipped = {f"{name}.{LOSS_NAMES['matching']}" for name in unknown}
    return [numbers(key, ours[key], value) for key, value in info["history"][0].items() if key in set(ours) - skipped]


def _new_parameters(folder: Path, model: X2VLM) -> list[str]:
    """The parameters with the larger learning rate: as recorded, or without a record those that no backbone has."""
    try:
        path = nearest(folder, "param_groups.json")
    except FileNotFoundError:
        return new_parameter_names(model)
    recorded: list[str] = json.loads(path.read_text())["new_parameters"]
    return recorded


def _step_losses(ours: dict[str, float], recorded: dict[str, float]) -> list[Difference]:
    names = set(recorded) - {"grad_norm_before_clip"}
    found = [numbers(name, ours[name], recorded[name]) for name in sorted(names & set(ours))]
    return [*found, equal("losses only one side has", sorted(names ^ set(ours)), [])]


def check_parameter_groups(path: Path) -> list[Difference]:
    """Rate, decay and grouping of every parameter, in each recorded version."""
    recorded = json.loads(path.read_text())
    model = case_model(path.parent, Case({}, {}))
    found = []
    for name, groups, beside in _versions("param_groups", recorded):
        config = _optimizer_config(recorded["new_parameters"], beside, groups)
        ours = _groups(model, config, recorded["new_parameters"])
        found.append(equal(f"{name}: parameters", sorted(set(ours) ^ set(groups)), []))
        wrong = [key for key in set(ours) & set(groups) if not _same(ours[key], groups[key])]
        found.append(Difference(f"{name}: wrong rates or decays {sorted(wrong)[:3]}", len(wrong), EXACT))
        found.append(equal(f"{name}: partition", _partition(ours), _partition(groups)))
        if not config.vision_lr:
            numbered = [key for key in set(ours) & set(groups) if ours[key]["group"] != groups[key]["group"]]
            found.append(Difference(f"{name}: other group numbers {sorted(numbered)[:3]}", len(numbered), EXACT))
    return found


def _is_version(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, dict) and "lr" in v for v in value.values())


def _versions(name: str, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every mapping of parameters to groups in the file, however deep, with its name and what stands beside it."""
    for key, value in values.items():
        if _is_version(value):
            yield key, value, values
        elif isinstance(value, dict):
            yield from _versions(key, value)


def _optimizer_config(new: list[str], beside: dict[str, Any], groups: dict[str, Any]) -> OptimizerConfig:
    """The learning rates of a recorded version, read off its own parameters.

    Rates by tower show in that the image tower has another one than the text tower; the base learning rate then moves
    no parameter unless one is neither new nor in an encoder, so it is taken from the version's settings or from the
    heads.
    """
    decay = max(group["weight_decay"] for group in groups.values())

    def least_lr(part: str) -> float | None:
        return min((group["lr"] for key, group in groups.items() if f"{part}_encoder." in key), default=None)

    image, text = least_lr("vision"), least_lr("text")
    head = max(groups[key]["lr"] for key in new)
    if image == text:
        assert image is not None
        return OptimizerConfig(lr=image, lr_multiplier=head / image, weight_decay=decay)
    settings = [value for value in beside.values() if isinstance(value, dict) and {"vision_lr", "lr"} <= value.keys()]
    lr = settings[0]["lr"] if settings else head / 2
    return OptimizerConfig(
        lr=lr, lr_multiplier=head / lr, vision_lr=image, text_lr=text, cross_lr=least_lr("cross"), weight_decay=decay
    )


def _groups(model: X2VLM, config: OptimizerConfig, new: list[str]) -> dict[str, dict[str, Any]]:
    names = reference_names(model)
    return {
        names[name]: {"group": index, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        for index, group in enumerate(parameter_groups(model, config, new))
        for name, _ in group["params"]
    }


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return abs(ours["lr"] - theirs["lr"]) <= 1e-12 and ours["weight_decay"] == theirs["weight_decay"]


def _partition(groups: dict[str, dict[str, Any]]) -> set[frozenset[str]]:
    by_group: dict[Any, set[str]] = {}
    for name, group in groups.items():
        by_group.setdefault(group.get("group", (group["lr"], group["weight_decay"])), set()).add(name)
    return {frozenset(names) for names in by_group.values()}
