"""Evaluate: a trained model on held-out samples or on a split of a task's own files, one task per node.

Images and texts are prepared by the processor in the model's own folder: image size, number of tokens, vocabulary and
cleaning are those it was trained with. A part writes `predictions.parquet` (one row per example) and `result.json`
(metrics, 95 % intervals, the digest of the questions asked, the model's weights by sha256, how its epoch was selected,
and how many test images the training set was found to show), so that two numbers can be told to be about the same
thing; `examples.html`, a page of right and wrong examples; and the files that a test server takes, where the task has
one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipelines.flow.stage import Count, InputFile, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s6_evaluate.config import EvaluateConfig
from x2vlm.data.shards.packs import INDEX_NAME, PACK_NAME
from x2vlm.errors import ConfigError, InvalidSample, StageFailed
from x2vlm.models.files import HEAD_FILE, MODEL_FILES, PROCESSOR_FILE, TASK_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from x2vlm.samples import samples_of, write_table
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.splits import EXAMPLES_FILE, LABELS_FILE, PackedMedia, Split, check_labels, load_split

if TYPE_CHECKING:  # these import torch: planning must not wait for it, so functions import it
    from x2vlm.inference.task_folder import TaskFolder
    from x2vlm.tasks.task import Task, TaskResult


CONTAMINATION = "contamination.json"  # of the artifact in slot `contamination`
SELECTION_FILE = "selection.json"  # of a fine-tuned model: how its epoch was chosen


def plan_evaluation(config: EvaluateConfig, inputs: Inputs) -> list[Part]:
    """One part: a metric needs all examples at once."""
    reads = [Read("model", file) for file in model_files(inputs)]
    reads += [Read("rows", part.file("rows.parquet")) for rows in inputs["rows"] for part in rows.parts]
    own = [
        part for data in inputs.get("data", ()) for part in data.parts if part.name.rpartition("-")[0] == config.split
    ]
    if inputs.get("data") and not own:
        there = sorted({part.name.rpartition("-")[0] for data in inputs["data"] for part in data.parts})
        raise ConfigError(f"{config.task}: the task data have no split {config.split}; they have {', '.join(there)}")
    reads += [Read("data", part.file(name)) for part in own for name in (EXAMPLES_FILE, LABELS_FILE)]
    holders = [part for media in inputs["media"] for part in media.parts] + own
    lookups = [Read("media", part.file(name)) for part in holders for name in (PACK_NAME, INDEX_NAME)]
    reads += [
        Read("contamination", part.file(CONTAMINATION)) for found in inputs["contamination"] for part in found.parts
    ]
    spec = {"task_version": task_spec(config.task).version}
    return [Part(name=config.task, reads=tuple(reads), spec=spec, lookups=tuple(lookups))]


def model_files(inputs: Inputs) -> list[InputFile]:
    """The files of the model in slot `model`: a node's folder, or the user's own.

    StageFailed if nothing says how its input is prepared.
    """
    listed = {file.path: file for item in inputs["model"] for part in item.parts for file in part.files}
    tokenizers = [name for name in TOKENIZER_FILES.values() if name in listed]
    if PROCESSOR_FILE not in listed or not tokenizers:
        raise StageFailed(
            f"{inputs['model'][0].node} holds no processor, which says how the model's input is prepared: "
            f"{PROCESSOR_FILE} and {' or '.join(TOKENIZER_FILES.values())}. It has {', '.join(sorted(listed))}; "
            "pre-train again with --force"
        )
    if missing := [name for name in MODEL_FILES if name not in listed]:
        raise StageFailed(f"{inputs['model'][0].node} holds no model: {', '.join(missing)} missing")
    names = (*MODEL_FILES, PROCESSOR_FILE, *tokenizers)
    return [listed[name] for name in (*names, *(n for n in (TASK_FILE, HEAD_FILE, SELECTION_FILE) if n in listed))]


def evaluate_part(config: EvaluateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Run the task on every example that has media."""
    import torch

    from x2vlm.tasks.pages import examples_page
    from x2vlm.tasks.task import TaskContext

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = task_spec(config.task).load()
    split, names = _questions(config, task, inputs, part)
    where = f"{config.task} on {', '.join(names)}"
    trained = load_model(inputs, part)
    labels = labels_for(trained, split, where)
    _check_head(config, task, trained, labels)
    task.check(split.examples, labels, config.options)
    paths = [inputs.local_path(read.file) for read in part.lookups]
    media = PackedMedia(list(zip(paths[::2], paths[1::2], strict=True)))
    context = TaskContext(
        examples=split.examples,
        load=lambda sha256: media.visual(sha256, trained.processor),
        processor=trained.processor,
        labels=labels,
        label_tags=split.label_tags,
        device=device,
        batch_size=config.batch_size,
    )
    try:
        result = task.evaluate(trained.model.to(device), config.options, context)
    except InvalidSample as error:
        if error.rule != "empty_caption":
            raise
        raise ConfigError(f"{where}: {error}; take the text out of the held-out source's files") from None
    page = examples_page(config.task, result.predictions, split.examples, context.load, labels=labels)
    (out.path / "examples.html").write_text(page, encoding="utf-8")
    return _written(config, inputs, part, out, result, names)


def _questions(config: EvaluateConfig, task: "Task", inputs: PartReader, part: Part) -> tuple[Split, list[str]]:
    """The examples, and the names of what they are of."""
    data = [read.file for read in part.reads if read.slot == "data"]
    if data:
        tables = [inputs.local_path(file) for file in data if file.path == EXAMPLES_FILE]
        labels = next(inputs.local_path(file) for file in data if file.path == LABELS_FILE)
        return load_split(tables, labels.read_text(encoding="utf-8")), list(config.known_as) or [config.split]
    samples = [
        sample
        for read in part.reads
        if read.slot == "rows"
        for sample in samples_of(pq.read_table(inputs.local_path(read.file)))
    ]
    if task.from_samples is None:
        raise ConfigError(f"{config.task}: held-out samples do not hold what it asks; give it `data` of its own")
    return Split(tuple(task.from_samples(samples, config.options))), sorted({sample.source for sample in samples})


def load_model(inputs: PartReader, part: Part) -> "TaskFolder":
    """The model with its head and processor; ConfigError if they do not fit each other."""
    from x2vlm.inference.task_folder import load_task_model

    with TemporaryDirectory(prefix="x2vlm-model-") as folder:  # the store keeps every file under its own name
        for read in part.reads:
            if read.slot == "model":
                Path(folder, read.file.path).symlink_to(inputs.local_path(read.file).resolve())
        return load_task_model(Path(folder))


def _check_head(config: EvaluateConfig, task: "Task", trained: "TaskFolder", labels: Sequence[str]) -> None:
    """ConfigError for a model without the head that the task answers with."""
    wanted = None if task.training is None else task.training.head(len(labels) or 1, config.options)
    found = trained.model.head_config
    if wanted is not None and (found is None or found.kind != wanted.kind):
        has = f"the head of {trained.task or 'another task'}" if found else "none"
        raise ConfigError(
            f"{config.task}: answers with a head ({wanted.kind}) that is learned for it, and the model has {has}; "
            "fine-tune the model first (`finetune`, jobs/finetune.py)"
        )


def labels_for(trained: "TaskFolder", split: Split, where: str) -> tuple[str, ...]:
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


def _written(
    config: EvaluateConfig, inputs: PartReader, part: Part, out: PartWriter, result: "TaskResult", names: Sequence[str]
) -> PartResult:
    model = {read.file.path: read.file for read in part.reads if read.slot == "model"}
    selection = None
    if SELECTION_FILE in model:
        told = json.loads(inputs.local_path(model[SELECTION_FILE]).read_text(encoding="utf-8"))
        selection = {name: told[name] for name in ("label", "splits", "epoch")}
    write_table(result.predictions, out.path / "predictions.parquet")
    for name, content in result.submission.items():
        (out.path / Path(name).name).write_text(content, encoding="utf-8")
    contamination = _contamination(inputs, part, names)
    described = {
        **describe(config, result, model[WEIGHTS_FILE].sha256),
        "head_sha256": model[HEAD_FILE].sha256 if HEAD_FILE in model else None,
        "split": config.split,
        "card": config.card,
        "card_split": config.card_split,
        "selection": selection,
        "submission": sorted(result.submission),
        "contamination": contamination,
    }
    (out.path / "result.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    number = result.predictions.num_rows
    return PartResult(
        counts={"rows": Count(number, number)},
        file_rows={"predictions.parquet": number},
        summary={
            "metrics": {f"{config.task}/{name}": value for name, value in result.metrics.items()},
            "data_digest": result.data_digest,
            "num_examples": result.num_examples,
            **({"measured_as": dict(result.measured_as)} if result.measured_as else {}),
            **({"selection": selection} if selection else {}),
            "contamination": contamination,
        },
    )


def _contamination(inputs: PartReader, part: Part, names: Sequence[str]) -> Mapping[str, Any] | None:
    """What the search for test images found of these sources, None if there was no search."""
    for read in part.reads:
        if read.slot == "contamination":
            found = json.loads(inputs.local_path(read.file).read_text(encoding="utf-8"))
            return {"policy": found["policy"], "sets": {name: found["sets"].get(name) for name in names}}
    return None


def describe(config: EvaluateConfig, result: "TaskResult", weights_sha256: str) -> Mapping[str, Any]:
    """What `result.json` holds of every evaluation."""
    return {
        "task": config.task,
        "headline": task_spec(config.task).headline,
        "metrics": dict(result.metrics),
        "interval_95": {name: list(bounds) for name, bounds in result.intervals.items()},
        "num_examples": result.num_examples,
        "measured_as": dict(result.measured_as),
        "data_digest": result.data_digest,
        "model_sha256": weights_sha256,
        "config": config.model_dump(mode="json"),
    }


EVALUATE = Stage(
    name="evaluate",
    # 2 cut texts at 40 tokens, whatever the model was trained with; 4: splits of a task's own files, and more said of
    # the model
    version=4,
    config_type=EvaluateConfig,
    slots=("model", "rows", "media", "contamination", "data"),
    plan_parts=plan_evaluation,
    run_part=evaluate_part,
    gpu_share=lambda config: 1.0,
)
