"""The finetune stage: a model and a task's data to a model of that task.

One part. Checkpoints and measurements of epochs are in its state folder, so after a killed worker, driver or machine
the same command goes on. A part writes a model folder with `task.json` (and `head.safetensors`), `metrics.jsonl`,
`selection.json` (every epoch measured, and the one that is kept) and `samples.parquet` (the examples of every step).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.flow.stage import InputPart, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.data import located, media_reads, read_splits, slot_of
from pipelines.s5_pretrain.runs import METRICS, note_run
from x2vlm.errors import ConfigError, StageFailed
from x2vlm.models.files import HEAD_FILE, MODEL_FILES, PROCESSOR_FILE, TASK_FILE, TOKENIZER_FILES
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.splits import EXAMPLES_FILE, LABELS_FILE
from x2vlm.train.config import TrainRuntime


def plan_finetune(config: FinetuneNodeConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the model and the splits it learns from and selects on."""
    listed = {file.path: file for item in inputs["model"] for part in item.parts for file in part.files}
    tokenizers = [name for name in TOKENIZER_FILES.values() if name in listed]
    needed = (*MODEL_FILES, PROCESSOR_FILE)
    if (missing := [name for name in needed if name not in listed]) or not tokenizers:
        raise StageFailed(
            f"{inputs['model'][0].node} is no model to train on: it lacks {', '.join(missing) or 'a tokenizer'}"
        )
    names = (*needed, *tokenizers, *(name for name in (TASK_FILE, HEAD_FILE) if name in listed))
    reads = [Read("model", listed[name]) for name in names]
    by_split: dict[str, list[InputPart]] = {}
    for data in inputs["data"]:
        for part in data.parts:
            by_split.setdefault(part.name.rpartition("-")[0], []).append(part)
    if unknown := [split for split in config.splits if split not in by_split]:
        raise ConfigError(
            f"finetune {config.task}: the task data have no split {', '.join(unknown)}; they have "
            f"{', '.join(sorted(by_split))}. Name its files under `data`, or choose another `selection`"
        )
    used = [part for split in config.splits for part in by_split[split]]
    for split in config.splits:
        for part in by_split[split]:
            reads += [Read(slot_of(split), part.file(name)) for name in (EXAMPLES_FILE, LABELS_FILE)]
    spec = {"task_version": task_spec(config.task).version}
    return [Part("train", tuple(reads), spec, tuple(media_reads(used)))]


def finetune_part(
    config: FinetuneNodeConfig,
    inputs: PartReader,
    part: Part,
    out: PartWriter,
    runtime: TrainRuntime | None = None,
    num_gpus: float | None = None,
    node: str = "",
) -> PartResult:
    """Train, choose an epoch, and write its model. ConfigError, before the first batch, for data that do not fit.

    `runtime`, `num_gpus` and `node` as of `pretrain_part`; so are PlanBusy and LeaseLost.
    """
    runtime = runtime or TrainRuntime()
    # Torch and Ray: not imported at the top, planning must not wait for them.
    from pipelines.s5_pretrain.fencing import sole_driver
    from pipelines.s5_pretrain.finetune.prepare import check_splits, lay_down_start
    from pipelines.s5_pretrain.finetune.result import collect
    from pipelines.s5_pretrain.finetune.training import train_config
    from pipelines.s5_pretrain.watching import watched
    from pipelines.s5_pretrain.worker import train

    for read in (*part.reads, *part.lookups):
        inputs.local_path(read.file)  # checks that all of it is there and what it was
    data = located(part)
    splits = read_splits(data, runtime)
    num_rows = check_splits(config, splits)
    files: Mapping[str, Path] = {r.file.path: inputs.local_path(r.file) for r in part.reads if r.slot == "model"}
    job: dict[str, Any] = {
        "kind": "finetune",
        "config": config.model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
        "node": node,
        "data": data,
        "state_uri": out.state_uri,
        "start": lay_down_start(config, files, splits["train"].labels, out.state_uri),
        "facts": {"task": config.task, "world_size": config.world_size},
    }
    with sole_driver(out.state_uri) as lease:
        note_run(out.state_uri, node, job["config"])
        job["token"] = job["facts"]["writer"] = lease.token
        steps = train_config(config.finetune, num_rows).steps
        with watched(f"{out.state_uri}/{METRICS}", steps, out.report):
            train(job, config.world_size, num_gpus, lease.confirm)
    return collect(config, job, splits["train"], part, out, runtime)


FINETUNE = Stage(
    name="finetune",
    version=1,
    config_type=FinetuneNodeConfig,
    slots=("model", "data"),
    plan_parts=plan_finetune,
    run_part=finetune_part,
    live_series=METRICS,
    gpu_share=lambda config: 1.0,  # of each worker
    on_driver=True,
)
