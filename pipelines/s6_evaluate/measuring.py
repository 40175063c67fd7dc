"""An evaluation on one process, alone or among others that share its batches: model and questions, and the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import torch

from pipelines.s6_evaluate.config import EvaluateConfig, EvaluationFiles
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.inference.task_folder import TaskFolder, load_task_model
from x2vlm.inference.visuals import Visual
from x2vlm.samples import samples_of
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.task import Task, TaskContext, TaskResult
from x2vlm.tasks.training.splits import PackedMedia, Split, check_labels, load_split
from x2vlm.train.ranks import Ranks


@dataclass(frozen=True)
class Prepared:
    """A task with its model and its questions; they fit each other. `names`: what the questions are of."""

    task: Task
    split: Split
    names: list[str]
    trained: TaskFolder
    labels: tuple[str, ...]
    media: PackedMedia

    def load(self, sha256: str) -> Visual:
        """An image or a clip, by the sha256 of its bytes."""
        return self.media.visual(sha256, self.trained.processor)


def prepare(files: EvaluationFiles) -> Prepared:
    """Read model and questions. ConfigError where they do not fit each other or the options."""
    config = files.config
    task = task_spec(config.task).load()
    split, names = _questions(task, files)
    where = f"{config.task} on {', '.join(names)}"
    trained = _load_model(files)
    labels = labels_for(trained, split, where)
    _check_head(config, task, trained, labels)
    task.check(split.examples, labels, config.options)
    return Prepared(task, split, names, trained, labels, PackedMedia(list(files.media)))


def measure(prepared: Prepared, files: EvaluationFiles, ranks: Ranks) -> TaskResult:
    """The result, the same on each of the processes `ranks`. ConfigError for a text that no model can read."""
    config = files.config
    context = TaskContext(
        examples=prepared.split.examples,
        load=prepared.load,
        processor=prepared.trained.processor,
        labels=prepared.labels,
        label_tags=prepared.split.label_tags,
        device=ranks.device,
        batch_size=config.batch_size,
        ranks=ranks,
    )
    try:
        return prepared.task.evaluate(prepared.trained.model.to(ranks.device), config.options, context)
    except InvalidSample as error:
        if error.rule != "empty_caption":
            raise
        where = f"{config.task} on {', '.join(prepared.names)}"
        raise ConfigError(f"{where}: {error}; take the text out of the held-out source's files") from None


def num_processes(num_cpus: float) -> int:
    """One for each GPU that this process sees, or for each whole CPU of `num_cpus` where there is none."""
    return torch.cuda.device_count() if torch.cuda.is_available() else max(1, int(num_cpus))


def device_of(rank: int) -> torch.device:
    """Where the process `rank` of this machine computes."""
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


def _questions(task: Task, files: EvaluationFiles) -> tuple[Split, list[str]]:
    config = files.config
    if files.labels is not None:
        names = list(config.known_as) or [config.split]
        return load_split(list(files.examples), files.labels.read_text(encoding="utf-8")), names
    samples = [sample for rows in files.rows for sample in samples_of(pq.read_table(rows))]
    if task.from_samples is None:
        raise ConfigError(f"{config.task}: held-out samples do not hold what it asks; give it `data` of its own")
    return Split(tuple(task.from_samples(samples, config.options))), sorted({sample.source for sample in samples})


def _load_model(files: EvaluationFiles) -> TaskFolder:
    with TemporaryDirectory(prefix="x2vlm-model-") as folder:  # the store keeps every file under its own name
        for name, path in files.model.items():
            Path(folder, name).symlink_to(path.resolve())
        return load_task_model(Path(folder))


def _check_head(config: EvaluateConfig, task: Task, trained: TaskFolder, labels: Sequence[str]) -> None:
    """ConfigError for a model without the head that the task answers with."""
    wanted = None if task.training is None else task.training.head(len(labels) or 1, config.options)
    found = trained.model.head_config
    if wanted is not None and (found is None or found.kind != wanted.kind):
        has = f"the head of {trained.task or 'another task'}" if found else "none"
        raise ConfigError(
            f"{config.task}: answers with a head ({wanted.kind}) that is learned for it, and the model has {has}; "
            "fine-tune the model first (`finetune`, jobs/finetune.py)"
        )


def labels_for(trained: TaskFolder, split: Split, where: str) -> tuple[str, ...]:
    """The labels to answer with: those that the model was trained with, if it names any.

    ConfigError if they are not those of the split, or not as many as a classifier has.
    """
    labels = trained.labels or split.labels
    head = trained.model.head_config
    try:
        check_labels(split.labels, labels)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if head is not None and head.kind == "classifier" and len(labels) != head.num_labels:
        raise ConfigError(
            f"{where}: a list of {len(labels)} answers, and the model's classifier has {head.num_labels}; give the "
            "list it was trained with"
        )
    return labels
