"""A fine-tuned model as a folder: a model folder, with `task.json` and, for a task with a head, `head.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from x2vlm.config import FrozenConfig, parse_config
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.inference.card import CardFacts
from x2vlm.inference.pretrained import load_pretrained, save_pretrained
from x2vlm.inference.processor import Processor, check_fit, load_processor
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors
from x2vlm.models.downstream.config import ClassifierConfig, HeadConfig
from x2vlm.models.files import CONFIG_FILE, HEAD_FILE, PROCESSOR_FILE, TASK_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from x2vlm.models.downstream.task_model import TaskModel


@dataclass(frozen=True)
class TaskFolder:
    """What a folder holds; `task` "" and no labels for a model that was not fine-tuned."""

    model: TaskModel
    processor: Processor
    task: str = ""
    options: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()


class TaskDescription(FrozenConfig):
    """The content of `task.json`. `head_sha256`: of `head.safetensors`, so that no two heads are mixed up."""

    task: str
    options: dict[str, Any]
    labels: tuple[str, ...]
    head: HeadConfig | None = pydantic.Field(default=None)
    head_sha256: str | None = None


def save_task_model(
    model: TaskModel,
    folder: Path,
    task: str,
    options: Mapping[str, Any],
    labels: Sequence[str],
    processor: Processor,
    training: Mapping[str, Any] | None = None,
    card: CardFacts | None = None,
) -> None:
    """Write the folder. An imported model may have no `labels`: its file does not name its classes.

    ConfigError, before anything is written, if a classifier has another number of classes than there are labels, or a
    label occurs twice.
    """
    head = model.head_config
    _check_labels(head, labels, str(folder))
    save_pretrained(model.base, folder, training, processor, card)
    digest = None
    if model.head is not None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_tensors(model.head).items()}
        save_file(tensors, folder / HEAD_FILE, metadata={"format": "pt"})
        digest = hashlib.sha256((folder / HEAD_FILE).read_bytes()).hexdigest()
    described = TaskDescription(
        task=task, options=dict(options), labels=tuple(labels), head=head, head_sha256=digest
    ).model_dump(mode="json")
    (folder / TASK_FILE).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_task_model(folder: Path) -> TaskFolder:
    """The model of a folder, in evaluation mode on the CPU; of one without `task.json` a model without a head.

    ConfigError for a description that is none, or labels that do not fit the head; CorruptArtifact for a head that is
    missing, unreadable, or not the one that the description was written with; and as `load_pretrained` and
    `load_processor`.
    """
    from x2vlm.models.downstream.task_model import TaskModel

    base = load_pretrained(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    processor = load_processor(folder)
    check_fit(base.config, processor, str(folder / PROCESSOR_FILE))
    path = folder / TASK_FILE
    if not path.is_file():
        return TaskFolder(TaskModel(base).eval(), processor)
    described = read_description(path)
    model = TaskModel(base, described.head)
    if model.head is not None:
        load_own_tensors(model.head, _read_head(folder / HEAD_FILE, described.head_sha256), str(folder / HEAD_FILE))
    return TaskFolder(model.eval(), processor, described.task, described.options, described.labels)


def read_description(path: Path) -> TaskDescription:
    """The content of a `task.json`; ConfigError as in `load_task_model`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable JSON: {error}; copy the folder again") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not the description of a task")
    described = parse_config(TaskDescription, values, str(path))
    _check_labels(described.head, described.labels, str(path))
    return described


def _check_labels(head: HeadConfig | None, labels: Sequence[str], origin: str) -> None:
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise ConfigError(f"{origin}: the label {twice!r} occurs twice")
    if isinstance(head, ClassifierConfig) and labels and len(labels) != head.num_labels:
        raise ConfigError(
            f"{origin}: the classifier has {head.num_labels} classes, and there are {len(labels)} labels: they are of "
            "two models; take the labels that it was fine-tuned with"
        )


def _read_head(path: Path, recorded_sha256: str | None) -> dict[str, Any]:
    if not path.is_file():
        raise CorruptArtifact(f"{path}: missing; copy the folder again")
    if recorded_sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != recorded_sha256:
            raise CorruptArtifact(
                f"{path}: sha256 is {found[:12]}…, {TASK_FILE} records {recorded_sha256[:12]}…: the head of another "
                "model, or damaged; copy both files from one folder"
            )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptArtifact(f"{path}: {error}; copy the folder again") from error
