"""The initial weights of a fine-tuning, written once, where every process finds them; and the checks before it."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load, save

from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from x2vlm.data.randomness import derive_seed
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.inference.processor import Processor, ProcessorConfig, check_fit, load_processor, save_processor
from x2vlm.inference.task_folder import TaskFolder, load_task_model
from x2vlm.models.checkpoints.reference import load_reference_state, named_state, trained_names
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors
from x2vlm.models.config import ModelConfig
from x2vlm.models.downstream.config import DecoderConfig, HeadConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import build_model
from x2vlm.stores.calls import StoreFiles
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.task import Task, TaskTraining
from x2vlm.tasks.training.config import FinetuneConfig
from x2vlm.tasks.training.lora import add_adapters
from x2vlm.tasks.training.splits import Split, check_labels

log = logging.getLogger(__name__)

START, WEIGHTS = "start.json", "start.safetensors"


def trained_by(task: Task, name: str) -> TaskTraining:
    """How the task is learned; ConfigError for one that is zero-shot only."""
    if task.training is None:
        raise ConfigError(f"{name}: is measured without training only; take `finetune` out")
    return task.training


def check_splits(config: FinetuneNodeConfig, splits: Mapping[str, Split]) -> int:
    """ConfigError for splits that do not fit the task or each other; the number of training rows."""
    task = task_spec(config.task).load()
    training = trained_by(task, config.task)
    labels = splits["train"].labels
    has_head = training.head(len(labels) or 1, config.options) is not None
    for name, split in splits.items():
        try:
            if has_head:
                check_labels(split.labels, labels)
            task.check(split.examples, labels if has_head else split.labels or labels, config.options)
        except ConfigError as error:
            raise ConfigError(f"{config.task}, split {name}: {error}") from None
        if name != "train" and _seen(split) <= _seen(splits["train"]):
            raise ConfigError(
                f"{config.task}: every example of split {name} is one of split train; give the files of {name}"
            )
    rows = len(training.rows(splits["train"].examples, config.options))
    if not rows:
        raise ConfigError(f"{config.task}: none of the examples of split train has a row to learn from")
    return rows


def lay_down_start(
    config: FinetuneNodeConfig, files: Mapping[str, Path], labels: tuple[str, ...], state_uri: str
) -> dict[str, Any]:
    """Write initial weights and what they are of below `state_uri` unless they exist; the facts for workers as JSON.

    ConfigError where the model does not fit task or settings. The facts are written last.
    """
    state = StoreFiles(state_uri)
    found = state.read(START)
    if found is None:
        with TemporaryDirectory(prefix="x2vlm-model-") as folder:
            for name, path in files.items():
                Path(folder, name).symlink_to(path.resolve())
            trained = load_task_model(Path(folder))
        model, new = started_model(config, trained, labels)
        processor = processor_of(config.finetune, trained.processor, model.config)
        content = save({name: tensor.detach().contiguous() for name, tensor in own_tensors(model).items()})
        state.write(WEIGHTS, content)
        head = model.head_config
        facts = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "new": new,
            "model": model.config.model_dump(mode="json"),
            "head": None if head is None else head.model_dump(mode="json"),
            "labels": list(labels),
            "processor": _files_of(processor),
        }
        found = json.dumps(facts, indent=1).encode()
        state.write(START, found)
    return {**json.loads(found), "weights": WEIGHTS}


def started_model(
    config: FinetuneNodeConfig, trained: TaskFolder, labels: tuple[str, ...]
) -> tuple[TaskModel, list[str]]:
    """The model to train: the given one at the size asked for, with the task's head; and its new parameters.

    A head of the same task, sizes and labels is kept, any other is new. New parameters are in reference names: those of
    a new head, and what the given model has no values for.
    """
    training = trained_by(task_spec(config.task).load(), config.task)
    torch.manual_seed(derive_seed(config.finetune.seed, "initial weights"))
    base = build_model(resized(trained.model.config, config.finetune))
    report = load_reference_state(base, named_state(trained.model.base))
    head = training.head(len(labels), config.options)
    is_kept = _keeps_head(config, trained, head, labels)
    model = TaskModel(base, trained.model.head_config if is_kept else head)
    if report.resized:
        log.info("event=resized parameters=%d image_res=%d", len(report.resized), base.config.vision.image_res)
    if model.head is None:
        return model, list(report.missing)
    if is_kept:
        assert trained.model.head is not None
        load_own_tensors(model.head, own_tensors(trained.model.head), "the head of the model that is trained on")
        return model, list(report.missing)
    if training.start_head is not None:
        training.start_head(model)
    names = trained_names(model)
    return model, [*report.missing, *(names[name] for name, _ in model.named_parameters() if name.startswith("head."))]


def _keeps_head(
    config: FinetuneNodeConfig, trained: TaskFolder, head: HeadConfig | None, labels: tuple[str, ...]
) -> bool:
    """Whether training goes on with the given model's head. One imported from the reference names no task or labels.

    A decoder of the depth asked for serves any list of answers, a classifier its own labels.
    """
    old = trained.model.head_config
    if old is None or head is None or trained.task not in ("", config.task):
        return False
    if isinstance(old, DecoderConfig):
        return isinstance(head, DecoderConfig) and head.num_layers in (None, old.num_layers)
    return old == head and trained.labels in ((), labels)


def resized(model: ModelConfig, settings: FinetuneConfig) -> ModelConfig:
    """The sizes of the model in this fine-tuning; ConfigError if they do not exist."""
    values = model.model_dump()
    if settings.image_res is not None:
        values["vision"]["image_res"] = settings.image_res
    if settings.drop_path is not None:
        values |= {"text_drop_path": settings.drop_path, "cross_drop_path": settings.drop_path}
    if model.num_frames is not None and settings.frames_per_clip is not None:
        values["num_frames"] = max(model.num_frames, settings.frames_per_clip)
    try:
        return ModelConfig.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"finetune: the model cannot have these sizes: {error}") from None


def processor_of(settings: FinetuneConfig, given: Processor, model: ModelConfig) -> Processor:
    """What prepares the input of the fine-tuned model; ConfigError if it does not fit."""
    changes: dict[str, Any] = {"image_res": model.vision.image_res}
    for name in ("max_tokens", "frames_per_clip"):
        if (value := getattr(settings, name)) is not None:
            changes[name] = value
    config = ProcessorConfig.model_validate(given.config.model_dump() | changes)
    processor = Processor(config, given.tokenizer)
    check_fit(model, processor, "finetune")
    return processor


def bare_model(start: Mapping[str, Any]) -> TaskModel:
    """A model of the sizes in `start`, with any weights."""
    head = start["head"] and TypeAdapter(HeadConfig).validate_python(start["head"])
    return TaskModel(build_model(ModelConfig.model_validate(start["model"])), head)


def with_adapters(model: TaskModel, settings: FinetuneConfig) -> TaskModel:
    """`model` as it is trained: if the settings say so with low-rank adapters, and frozen but for them and the head."""
    if settings.lora is not None:
        number = add_adapters(model.base, settings.lora, derive_seed(settings.seed, "adapters"))
        log.info("event=adapters_added number=%d rank=%d", number, settings.lora.rank)
    return model


def load_start(model: TaskModel, start: Mapping[str, Any], state_uri: str) -> None:
    """Load the initial weights; CorruptArtifact if they changed."""
    content = StoreFiles(state_uri).read(start["weights"])
    if content is None or hashlib.sha256(content).hexdigest() != start["sha256"]:
        raise CorruptArtifact(f"{state_uri}/{start['weights']}: missing or changed since written; rerun with force")
    load_own_tensors(model, load(content), f"{state_uri}/{start['weights']}")


def read_start_processor(start: Mapping[str, Any]) -> Processor:
    """The processor in `start`."""
    with TemporaryDirectory(prefix="x2vlm-processor-") as folder:
        for name, content in start["processor"].items():
            Path(folder, name).write_text(content, encoding="utf-8")
        return load_processor(Path(folder))


def _files_of(processor: Processor) -> dict[str, str]:
    with TemporaryDirectory(prefix="x2vlm-processor-") as folder:
        save_processor(processor, Path(folder))
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def _seen(split: Split) -> set[tuple[Any, ...]]:
    return {(e.media, e.texts, e.answers, e.box) for e in split.examples}
