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
from typing import TYPE_CHECKING, Any

from pipelines.flow.stage import Count, InputFile, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s6_evaluate.config import EvaluateConfig, EvaluationFiles
from x2vlm.data.shards.packs import INDEX_NAME, PACK_NAME
from x2vlm.errors import ConfigError, StageFailed
from x2vlm.models.files import HEAD_FILE, MODEL_FILES, PROCESSOR_FILE, TASK_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from x2vlm.samples import write_table
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.splits import EXAMPLES_FILE, LABELS_FILE

if TYPE_CHECKING:  # these import torch: planning must not wait for it, so functions import it
    from x2vlm.tasks.task import TaskResult


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


def evaluate_part(
    config: EvaluateConfig, inputs: PartReader, part: Part, out: PartWriter, num_cpus: float = 1.0
) -> PartResult:
    """Run the task on every example that has media: in a process for each GPU that the part has been given, or for each
    of `num_cpus` where it has none. Their number changes no result."""
    from pipelines.s6_evaluate.measuring import device_of, measure, num_processes, prepare
    from pipelines.s6_evaluate.processes import measure_together
    from x2vlm.tasks.pages import examples_page
    from x2vlm.train.ranks import Ranks

    files = files_of(config, inputs, part)
    prepared = prepare(files)
    number = num_processes(num_cpus)
    alone = Ranks(device=device_of(0))
    result = measure(prepared, files, alone) if number == 1 else measure_together(files, number)
    page = examples_page(
        config.task, result.predictions, prepared.split.examples, prepared.load, labels=prepared.labels
    )
    (out.path / "examples.html").write_text(page, encoding="utf-8")
    return _written(config, inputs, part, out, result, prepared.names)


def files_of(config: EvaluateConfig, inputs: PartReader, part: Part) -> EvaluationFiles:
    """Where everything that an evaluation reads lies on this machine; each file has been checked."""
    slots: dict[str, list[InputFile]] = {}
    for read in part.reads:
        slots.setdefault(read.slot, []).append(read.file)
    paths = [inputs.local_path(read.file) for read in part.lookups]
    data = slots.get("data", [])
    return EvaluationFiles(
        config=config,
        model={file.path: inputs.local_path(file) for file in slots.get("model", [])},
        examples=tuple(inputs.local_path(file) for file in data if file.path == EXAMPLES_FILE),
        labels=next((inputs.local_path(file) for file in data if file.path == LABELS_FILE), None),
        rows=tuple(inputs.local_path(file) for file in slots.get("rows", [])),
        media=tuple(zip(paths[::2], paths[1::2], strict=True)),
    )


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
