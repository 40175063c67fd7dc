"""The outputs of a finished fine-tuning: the folder of the chosen epoch's model, metrics, selection and samples."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.stage import Count, Part, PartResult, PartWriter
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.prepare import bare_model, read_start_processor, trained_by, with_adapters
from pipelines.s5_pretrain.finetune.select import SELECTION_FILE
from pipelines.s5_pretrain.finetune.training import steps_per_epoch, train_config
from pipelines.s5_pretrain.result import copy_metrics, final_metrics
from pipelines.s5_pretrain.runs import CHECKPOINTS, METRICS
from pipelines.s5_pretrain.samples import SAMPLES_SCHEMA
from x2vlm.errors import StageFailed
from x2vlm.inference.card import CardFacts
from x2vlm.inference.task_folder import save_task_model
from x2vlm.models.checkpoints.weights import load_own_tensors
from x2vlm.stores.calls import StoreFiles
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.loader import TaskLoader
from x2vlm.tasks.training.lora import merge_adapters
from x2vlm.tasks.training.objective import LABEL
from x2vlm.tasks.training.splits import Split
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.metrics import iterate_metrics


def collect(
    config: FinetuneNodeConfig,
    job: Mapping[str, Any],
    trained_on: Split,
    part: Part,
    out: PartWriter,
    runtime: TrainRuntime,
) -> PartResult:
    """Write the chosen epoch's model to `out`, with metrics, selection and, if asked, the record of samples."""
    content = StoreFiles(out.state_uri).read(SELECTION_FILE)
    if content is None:
        raise StageFailed(f"finetune: {out.state_uri}/{SELECTION_FILE} is missing; run it again")
    selection = json.loads(content)
    training = trained_by(task_spec(config.task).load(), config.task)
    num_rows = len(training.rows(trained_on.examples, config.options))
    step = (selection["epoch"] + 1) * steps_per_epoch(config.finetune, num_rows)
    steps = train_config(config.finetune, num_rows).steps
    model = with_adapters(bare_model(job["start"]), config.finetune)
    checkpoint = CheckpointStore(f"{out.state_uri}/{CHECKPOINTS}").load(step)
    load_own_tensors(model, checkpoint.model, f"checkpoint of step {step}")
    merge_adapters(model.base)
    facts = {"format": "x2vlm-finetune-1", "start_sha256": job["start"]["sha256"], "step": step}
    save_task_model(
        model,
        out.path,
        config.task,
        config.options.model_dump(mode="json"),
        job["start"]["labels"],
        read_start_processor(job["start"]),
        training={**config.model_dump(mode="json"), **facts},
        card=CardFacts(
            name=f"X2-VLM, fine-tuned: {config.task}",
            training={"steps": step, "seed": config.finetune.seed, "selection": selection["label"]},
        ),
    )
    (out.path / SELECTION_FILE).write_bytes(content)
    num_substitutes, last = copy_metrics(out, 0, steps, "finetune")
    file_rows = {METRICS: steps}
    if runtime.record_samples:
        loader = _bare_loader(config, trained_on, job)
        file_rows["samples.parquet"] = _write_samples(loader, iterate_metrics(out.path / METRICS), out)
    return PartResult(
        counts={"rows": Count(steps, steps)},
        file_rows=file_rows,
        summary={
            "metrics": final_metrics(last),
            "metric_series": METRICS,
            "model": {"name": "x2vlm", "type": "x2vlm-finetune"},
            "num_substitutes": num_substitutes,
            "selection": {name: selection[name] for name in ("label", "splits", "epoch")},
            **facts,
        },
    )


def _bare_loader(config: FinetuneNodeConfig, split: Split, job: Mapping[str, Any]) -> TaskLoader:
    """A loader that is asked for the order of rows alone."""
    settings, training = config.finetune, trained_by(task_spec(config.task).load(), config.task)
    return TaskLoader(
        split.examples,
        training,
        config.options,
        read_start_processor(job["start"]),
        lambda name: (_ for _ in ()).throw(AssertionError(name)),
        settings.batch_size,
        settings.seed,
        settings.augment,
    )


def _write_samples(loader: TaskLoader, metrics: Iterable[Mapping[str, Any]], out: PartWriter) -> int:
    """Write the examples of every step, after the recorded substitutions; the number of rows."""
    num_rows = 0
    with pq.ParquetWriter(out.path / "samples.parquet", SAMPLES_SCHEMA, compression="zstd") as writer:
        for rows in _consumed(loader, metrics):
            columns = [pa.array(column) for column in zip(*rows, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=SAMPLES_SCHEMA))
            num_rows += len(rows)
    return num_rows


def _consumed(loader: TaskLoader, metrics: Iterable[Mapping[str, Any]]) -> Iterator[list[tuple[int, str, str]]]:
    for line in metrics:
        used = {item["key"]: item["used"] for item in line.get("substitutes", ())}
        yield [(line["step"], LABEL, used.get(key, key)) for key in loader.consumed(line["step"])]
