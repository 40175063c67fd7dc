"""Checkpoint files of the reference: detecting their kind, loading the model, and exporting the same file again.

Ten kinds are supported, identified by the names of the text layers and by the heads present: pre-training, retrieval,
grounding, captioning, question answering (a decoder), classification (also of two images), and the multilingual ones
with their separate encoders. Sizes are read from the shapes and checked against the training config in the file. Every
entry must be accounted for: an unexpected or missing one, or one of another shape, is an error that names it. No code
in a file is executed. What each downstream task adds is in `task_parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor

from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.models.checkpoints.reference import LoadReport, export_reference_state, load_reference_state
from x2vlm.models.checkpoints.released_sizes import read_sizes
from x2vlm.models.checkpoints.task_parts import (
    DECODER,
    SMOOTHED_TARGETS,
    classifier_shapes,
    decoder_shapes,
    is_smoothed_targets,
    smoothed_targets,
)
from x2vlm.models.checkpoints.weights import read_tensors
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import X2VLM, build_model

# "bert": one stack below text_encoder.bert.; "plain": one stack below text_encoder.; "separate": cross_encoder apart.
Layout = Literal["bert", "plain", "separate"]

HEADS = {
    "contrast": ("vision_proj.", "text_proj.", "temp"),
    "match": ("itm_head.",),
    "box": ("bbox_head.",),
    "words": ("text_encoder.cls.", "mlm_head."),
}
TASK_PARTS = (DECODER, "cls_head.")
_CONSTANT_SUFFIXES = ("relative_position_index", "position_ids", SMOOTHED_TARGETS)


@dataclass(frozen=True)
class Kind:
    """The contents of a file of one kind besides the image tower and the text and fusion layers."""

    layout: Layout
    heads: frozenset[str]
    task_part: str | None = None
    has_smoothed_targets: bool = False


KINDS = {
    "pretraining": Kind("bert", frozenset(HEADS)),
    "captioning": Kind("bert", frozenset({"words"}), has_smoothed_targets=True),
    "retrieval": Kind("plain", frozenset({"contrast", "match"})),
    "grounding": Kind("plain", frozenset({"box"})),
    "classification": Kind("plain", frozenset(), "cls_head."),
    "question_answering": Kind("plain", frozenset(), DECODER),
    "multilingual_pretraining": Kind("separate", frozenset(HEADS)),
    "multilingual_retrieval": Kind("separate", frozenset({"contrast", "match"})),
    "multilingual_classification": Kind("separate", frozenset(), "cls_head."),
    "multilingual_question_answering": Kind("separate", frozenset(), DECODER),
}


@dataclass(frozen=True)
class CheckpointFile:
    """A file as read: its state under reference names, and the training config in it (empty: none)."""

    state: dict[str, Tensor]
    config: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model filled from a file; `task_state` holds the parts of a downstream task that the model does not have.

    `report` is about the model's own parameters; heads the file lacks are missing there and randomly initialised.
    `absent` are entries that the file omits because others imply them.
    """

    kind: str
    model: X2VLM
    task_state: dict[str, Tensor]
    report: LoadReport
    absent: frozenset[str] = field(default_factory=frozenset)


def read_checkpoint(path: Path) -> CheckpointFile:
    """The content of a `.th`, `.pth`, `.bin` or `.safetensors` file; tensors and plain values only.

    SourceUnavailable if there is no such file, CorruptArtifact if it is damaged, holds anything but tensors, or
    requires code to be executed.
    """
    if not path.is_file():
        raise SourceUnavailable(f"{path}: no such checkpoint file")
    state, config = read_tensors(path)
    return CheckpointFile(state, config, str(path))


def load_checkpoint(
    source: Path | CheckpointFile,
    *,
    expect: ModelConfig | None = None,
    image_res: int | None = None,
    text_heads: int | None = None,
) -> LoadedCheckpoint:
    """The model in a reference checkpoint, in evaluation mode on the CPU.

    `expect` refuses any other sizes, `image_res` resizes position tables. The number of heads of the text layers is not
    in the shapes: `text_heads`, by default one per 64 of the width, as in all released models. ConfigError, naming the
    entries, if the file is of no known kind, contradicts itself or its config, or is not what was expected; else as
    `read_checkpoint`.
    """
    file = source if isinstance(source, CheckpointFile) else read_checkpoint(source)
    kind_name = kind_of(file)
    kind = KINDS[kind_name]
    config, read_from = read_sizes(file.state, kind.layout, file.config, text_heads, file.origin)
    with torch.device("meta"):
        bare = build_model(config)
    expected = _expected_shapes(bare, kind, file.state)
    if kind.task_part == "cls_head.":
        read_from |= {"classifier width": "cls_head.0.weight", "number of labels": "cls_head.3.bias"}
    absent = _check_entries(file, expected, kind, read_from)
    _check_values(file, bare)
    if expect is not None and _sizes(expect) != _sizes(config):
        raise ConfigError(f"{file.origin}: holds another model than expected: {_contrast(config, expect)}")
    if image_res is not None:
        vision = config.vision.model_copy(update={"image_res": image_res})
        config = ModelConfig(**(config.model_dump() | {"vision": vision.model_dump()}))
    with torch.random.fork_rng(
        devices=[]
    ):  # heads the file lacks are initialised without advancing the caller's generator
        model = build_model(config)
    task_state = {name: value for name, value in file.state.items() if name.startswith((*TASK_PARTS, SMOOTHED_TARGETS))}
    report = load_reference_state(model, {n: v for n, v in file.state.items() if n not in task_state})
    return LoadedCheckpoint(kind_name, model.eval(), task_state, report, absent)


def export_checkpoint(loaded: LoadedCheckpoint) -> dict[str, Tensor]:
    """The state as in a file of the same kind: same names and entries, loaded values bit for bit.

    A captioning file without smoothed targets of its own gets those of the released label smoothing.
    """
    kind = KINDS[loaded.kind]
    state = _named_as(export_reference_state(loaded.model), kind)
    state |= loaded.task_state
    if kind.has_smoothed_targets and not {SMOOTHED_TARGETS} & (loaded.absent | loaded.task_state.keys()):
        state[SMOOTHED_TARGETS] = smoothed_targets(loaded.model.config.text.vocab_size)
    return {name: value for name, value in state.items() if name not in loaded.absent}


def kind_of(file: CheckpointFile) -> str:
    """The key of KINDS for a file; ConfigError, listing what was found, for any other combination of parts."""
    names = file.state.keys()
    layout: Layout
    if any(name.startswith("cross_encoder.") for name in names):
        layout = "separate"
    else:
        layout = "bert" if any(name.startswith("text_encoder.bert.") for name in names) else "plain"
    heads = frozenset(head for head, parts in HEADS.items() if any(name.startswith(parts) for name in names))
    task_parts = [part for part in TASK_PARTS if any(name.startswith(part) for name in names)]
    for name, kind in KINDS.items():
        if (layout, heads, task_parts) == (kind.layout, kind.heads, [kind.task_part] if kind.task_part else []):
            return name
    known = {name.split(".")[0] for name in names}
    raise ConfigError(
        f"{file.origin}: no known kind of checkpoint has text layers named as in {layout!r} with the heads "
        f"{sorted(heads)} and the task parts {task_parts}; top-level names are {sorted(known)[:20]}"
    )


def _named_as(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Our export under the names of a kind, without the heads it lacks."""
    lacking = tuple(part for head, parts in HEADS.items() if head not in kind.heads for part in parts)
    kept = {name: value for name, value in state.items() if not name.startswith(lacking)}
    if kind.layout == "plain":
        kept = {name.replace("text_encoder.bert.", "text_encoder.", 1): value for name, value in kept.items()}
    return kept


def _expected_shapes(bare: X2VLM, kind: Kind, state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shape of every entry that a file of this kind and these sizes must hold."""
    whole = export_reference_state(bare)
    shapes = {name: value.shape for name, value in _named_as(whole, kind).items()}
    width = bare.config.text.width
    if kind.task_part == "cls_head.":
        shapes |= classifier_shapes(width, state)
    if kind.task_part == DECODER:
        shapes |= decoder_shapes(bare, whole, state)
    if kind.has_smoothed_targets:
        shapes[SMOOTHED_TARGETS] = torch.Size((1, bare.config.text.vocab_size))
    return shapes


def _check_entries(
    file: CheckpointFile, expected: Mapping[str, torch.Size], kind: Kind, read_from: Mapping[str, str]
) -> frozenset[str]:
    """The entries that are missing but implied; ConfigError for any that is missing, unexpected or of another shape."""
    missing = {name for name in expected if name not in file.state}
    implied = {name for name in missing if _is_implied(name, file, missing)}
    problems = [f"missing {name}" for name in sorted(missing - implied)]
    problems += [f"unexpected {name}" for name in sorted(set(file.state) - set(expected))]
    for name, value in file.state.items():
        if name in expected and value.shape != expected[name]:
            problems.append(f"{name} has shape {tuple(value.shape)} instead of {tuple(expected[name])}")
    if problems:
        sizes = "; ".join(f"{size} from {origin}" for size, origin in read_from.items())
        raise ConfigError(
            f"{file.origin}: {len(problems)} entries do not fit: {'; '.join(problems[:40])}. "
            f"Sizes were read as follows: {sizes}"
        )
    return frozenset(implied)


def _is_implied(name: str, file: CheckpointFile, missing: set[str]) -> bool:
    """Constants are computed; of tied entries one is enough; a fixed temperature is in the config."""
    if name.endswith(_CONSTANT_SUFFIXES):
        return True
    if name == "temp":
        return bool(file.config.get("fix_temp")) and "temp" in file.config
    tied = _tied_name(name)
    return tied is not None and tied not in missing and tied in file.state


def _tied_name(name: str) -> str | None:
    """The entry that `name` is a tied copy of, if any."""
    for part in ("text_encoder.cls.", "text_decoder.cls.", "mlm_head."):
        if name == f"{part}predictions.decoder.bias":
            return f"{part}predictions.bias"
    for part in ("text_encoder.", "text_decoder."):
        if name == f"{part}cls.predictions.decoder.weight":
            return f"{part}bert.embeddings.word_embeddings.weight"
    return None


def _check_values(file: CheckpointFile, bare: X2VLM) -> None:
    """ConfigError for integer weights, constants of another model, and non-finite values."""
    for name, value in file.state.items():
        if name.endswith("position_ids"):
            sound = torch.equal(value.long().flatten(), torch.arange(value.numel()))
        elif name.endswith("relative_position_index"):
            sound = value.dtype == torch.long and torch.equal(value, _index_of(bare.config.vision.grid))
        elif name == SMOOTHED_TARGETS:
            sound = is_smoothed_targets(value)
        else:
            sound = value.is_floating_point() and bool(value.isfinite().all())
        if not sound:
            raise ConfigError(f"{file.origin}: {name} does not hold what it must: finite weights or the known constant")


def _index_of(grid: int) -> Tensor:
    index: Tensor = gen_relative_position_index((grid, grid))
    return index


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """The values that shapes determine: everything but dropout and initial values."""
    values = config.model_dump(exclude={"temperature"})
    for part in ("vision", "text", "fusion"):
        for key in ("dropout", "attention_dropout", "drop_path", "init_std", "layer_scale_init"):
            values[part].pop(key, None)
    return values


def _contrast(found: ModelConfig, expected: ModelConfig) -> str:
    pairs = []
    for part, value in _sizes(found).items():
        wanted = _sizes(expected)[part]
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in inner:
            other = wanted[key] if key else wanted
            if item != other:
                pairs.append(f"{part}{'.' if key else ''}{key} is {item}, expected {other}")
    return "; ".join(pairs)
