"""Evaluate: a trained model on held-out samples, one task per node.

Images and texts are prepared by the processor in the model's own folder: image size, number of tokens, vocabulary and
cleaning are those it was trained with. A part writes `predictions.parquet` (one row per example) and `result.json`
(metrics, 95 % intervals, the digest of the questions asked, the model's weights by sha256, and how many test images
the training set was found to show), so that two numbers can be told to be about the same thing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pydantic

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from x2vlm.config import FrozenConfig, parse_field
from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.media.images import open_image
from x2vlm.data.media.video import decode_frames
from x2vlm.data.shards.packs import MediaPack
from x2vlm.errors import ConfigError, InvalidSample, StageFailed
from x2vlm.models.files import MODEL_FILES, PROCESSOR_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from x2vlm.samples import samples_of, write_table
from x2vlm.tasks.catalog import task_spec

if TYPE_CHECKING:  # these import torch: planning must not wait for it, so functions import it
    import torch

    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.x2vlm import X2VLM
    from x2vlm.tasks.task import TaskResult


CONTAMINATION = "contamination.json"  # of the artifact in slot `contamination`


class EvaluateConfig(FrozenConfig):
    """`options` are the task's own, of the type that `x2vlm.tasks.catalog` gives for it."""

    task: str
    options: pydantic.SerializeAsAny[FrozenConfig] = pydantic.Field(default=FrozenConfig(), validate_default=True)
    batch_size: int = pydantic.Field(default=32, gt=0)

    @pydantic.field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        return task_spec(task).name

    @pydantic.field_validator("options", mode="plain")
    @classmethod
    def _options_fit_the_task(cls, options: Any, info: pydantic.ValidationInfo) -> FrozenConfig:
        if "task" not in info.data:  # that is the problem then
            return FrozenConfig()
        values = options.model_dump() if isinstance(options, FrozenConfig) else options
        return parse_field(task_spec(info.data["task"]).config_type, values)


def plan_evaluation(config: EvaluateConfig, inputs: Inputs) -> list[Part]:
    """One part: a metric needs all examples at once."""
    (model,) = inputs["model"]
    (part,) = model.parts
    listed = {file.path for file in part.files}
    tokenizers = [name for name in TOKENIZER_FILES.values() if name in listed]
    if PROCESSOR_FILE not in listed or not tokenizers:
        raise StageFailed(
            f"{model.node} holds no processor, which says how the model's input is prepared: {PROCESSOR_FILE} and "
            f"{' or '.join(TOKENIZER_FILES.values())}. It has {', '.join(sorted(listed))}; pre-train again with --force"
        )
    reads = [Read("model", part.file(name)) for name in (*MODEL_FILES, PROCESSOR_FILE, *tokenizers)]
    reads += [Read("rows", part.file("rows.parquet")) for rows in inputs["rows"] for part in rows.parts]
    lookups = [
        Read("media", part.file(name))
        for media in inputs["media"]
        for part in media.parts
        for name in ("media.tar", "media.parquet")
    ]
    reads += [
        Read("contamination", part.file(CONTAMINATION)) for found in inputs["contamination"] for part in found.parts
    ]
    spec = {"task_version": task_spec(config.task).version}
    return [Part(name=config.task, reads=tuple(reads), spec=spec, lookups=tuple(lookups))]


def evaluate_part(config: EvaluateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Run the task on every held-out sample that has media."""
    import torch

    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.tasks.task import TaskContext

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load_model(inputs, part, device)
    samples = [
        sample
        for read in part.reads
        if read.slot == "rows"
        for sample in samples_of(pq.read_table(inputs.local_path(read.file)))
    ]
    sources = sorted({sample.source for sample in samples})
    task = task_spec(config.task).load()
    if task.from_samples is None:
        raise ConfigError(f"{config.task}: held-out samples do not hold what it asks; give it files of its own format")
    examples = task.from_samples(samples, config.options)
    media = HeldOutMedia.of(inputs, part, processor.config.frames_per_clip)
    context = TaskContext(examples, media.visual, processor, device=device, batch_size=config.batch_size)
    try:
        result = task.evaluate(TaskModel(model), config.options, context)
    except InvalidSample as error:
        if error.rule != "empty_caption":
            raise
        raise ConfigError(
            f"{config.task} on {', '.join(sources)}: {error}; take the text out of the held-out source's files"
        ) from None
    weights = next(read.file.sha256 for read in part.reads if read.file.path == WEIGHTS_FILE)
    write_table(result.predictions, out.path / "predictions.parquet")
    contamination = _contamination(inputs, part, sources)
    described = {**describe(config, result, weights), "contamination": contamination}
    (out.path / "result.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    return PartResult(
        counts={"rows": Count(len(samples), len(samples))},
        file_rows={"predictions.parquet": result.predictions.num_rows},
        summary={
            "metrics": {f"{config.task}/{name}": value for name, value in result.metrics.items()},
            "data_digest": result.data_digest,
            "num_examples": result.num_examples,
            **({"measured_as": dict(result.measured_as)} if result.measured_as else {}),
            "contamination": contamination,
        },
    )


def load_model(inputs: PartReader, part: Part, device: "torch.device") -> "tuple[X2VLM, Processor]":
    """The model on `device` and what prepares its input; ConfigError if the two do not fit each other."""
    from x2vlm.inference.pretrained import load_pretrained
    from x2vlm.inference.processor import check_fit, read_processor

    files = {read.file.path: inputs.local_path(read.file) for read in part.reads if read.slot == "model"}
    model = load_pretrained(*(files[name] for name in MODEL_FILES))
    processor = read_processor(files)
    check_fit(model.config, processor, str(files[PROCESSOR_FILE]))
    return model.to(device), processor


def _contamination(inputs: PartReader, part: Part, sources: Sequence[str]) -> Mapping[str, Any] | None:
    """What the search for test images found of these sources, None if there was no search."""
    for read in part.reads:
        if read.slot == "contamination":
            found = json.loads(inputs.local_path(read.file).read_text(encoding="utf-8"))
            return {"policy": found["policy"], "sets": {name: found["sets"].get(name) for name in sources}}
    return None


@dataclass(frozen=True)
class HeldOutMedia:
    """Images and clips of held-out samples, out of the packs of the download stage."""

    packs: tuple[MediaPack, ...]
    frames_per_clip: int

    @classmethod
    def of(cls, inputs: PartReader, part: Part, frames_per_clip: int) -> "HeldOutMedia":
        paths = [inputs.local_path(read.file) for read in part.lookups]
        packs = tuple(MediaPack(tar, index) for tar, index in zip(paths[::2], paths[1::2], strict=True))
        return cls(packs, frames_per_clip)

    def visual(self, sha256: str) -> "Visual":
        """The image, or evenly chosen frames of the clip, RGB and oriented; InvalidSample if no pack holds it."""
        from x2vlm.inference.visuals import Visual

        for pack in self.packs:
            if sha256 in pack:
                data = pack.read(sha256)
                if pack.entry(sha256).format != "frames":
                    return Visual(sha256, (open_image(data),))
                jpegs, _ = decode_frames(data)
                chosen = choose_frames(len(jpegs), self.frames_per_clip)
                return Visual(sha256, tuple(open_image(jpegs[number]) for number in chosen), is_clip=True)
        raise InvalidSample("missing_media", f"no media pack holds {sha256}; download the held-out source again")


def describe(config: EvaluateConfig, result: "TaskResult", weights_sha256: str) -> Mapping[str, Any]:
    """What `result.json` holds."""
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
    version=3,  # 2 cut texts at 40 tokens, whatever the model was trained with
    config_type=EvaluateConfig,
    slots=("model", "rows", "media", "contamination"),
    plan_parts=plan_evaluation,
    run_part=evaluate_part,
    gpu_share=lambda config: 1.0,
)
