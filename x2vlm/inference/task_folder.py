"""A fine-tuned model as a folder: a model folder, with `task.json` and, for a task with a head, `head.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.inference.card import CardFacts
from x2vlm.inference.pretrained import load_pretrained, save_pretrained
from x2vlm.inference.processor import Processor, check_fit, load_processor
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors
from x2vlm.models.downstream.config import HeadConfig
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
    """Write the folder."""
    save_pretrained(model.base, folder, training, processor, card)
    head = model.head_config
    values = {
        "task": task,
        "options": dict(options),
        "labels": list(labels),
        "head": None if head is None else head.model_dump(mode="json"),
    }
    (folder / TASK_FILE).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if model.head is not None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_tensors(model.head).items()}
        save_file(tensors, folder / HEAD_FILE, metadata={"format": "pt"})


def load_task_model(folder: Path) -> TaskFolder:
    """The model of a folder, in evaluation mode on the CPU; of one without `task.json` a model without a head."""
    from x2vlm.models.downstream.task_model import TaskModel

    base = load_pretrained(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    processor = load_processor(folder)
    check_fit(base.config, processor, str(folder / PROCESSOR_FILE))
    if not (folder / TASK_FILE).is_file():
        return TaskFolder(TaskModel(base).eval(), processor)
    try:
        values = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
        head = values["head"] and TypeAdapter(HeadConfig).validate_python(values["head"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / TASK_FILE}: not the description of a task: {error}") from None
    model = TaskModel(base, head)
    if model.head is not None:
        if not (folder / HEAD_FILE).is_file():
            raise CorruptArtifact(f"{folder / HEAD_FILE}: missing; copy the folder again")
        load_own_tensors(model.head, load_file(folder / HEAD_FILE), str(folder / HEAD_FILE))
    return TaskFolder(model.eval(), processor, values["task"], values["options"], tuple(values["labels"]))
