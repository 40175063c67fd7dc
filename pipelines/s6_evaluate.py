"""Evaluate: a trained model on held-out samples, one task per node.

A part writes `predictions.parquet` (one row per example) and `result.json` (metrics, 95 % intervals, the digest of the
questions asked, the model's weights by sha256, and how many test images the training set was found to show), so that
two numbers can be told to be about the same thing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq
import pydantic
from PIL import Image

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from x2vlm.config import FrozenConfig, parse_config
from x2vlm.data.media.images import open_image
from x2vlm.data.shards.packs import MediaPack
from x2vlm.data.text.captions import pre_caption
from x2vlm.data.text.tokenizer import WordPieceTokenizer, load_tokenizer
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.samples import Sample, samples_of, write_table
from x2vlm.tasks.config import TASK_CONFIGS

if TYPE_CHECKING:  # these import torch: planning must not wait for it, so functions import it
    from torch import Tensor

    from x2vlm.tasks.task import TaskResult


CONTAMINATION = "contamination.json"  # of the artifact in slot `contamination`


class EvaluateConfig(FrozenConfig):
    """`options` are the task's own settings; texts are cleaned and cut exactly as in pre-training."""

    task: Literal["retrieval", "grounding"]
    options: dict[str, Any] = {}
    max_tokens: int = pydantic.Field(default=40, gt=2)
    batch_size: int = pydantic.Field(default=32, gt=0)

    @pydantic.model_validator(mode="after")
    def _options_fit_the_task(self) -> "EvaluateConfig":
        parse_config(TASK_CONFIGS[self.task], self.options, f"options of task {self.task}")
        return self


def plan_evaluation(config: EvaluateConfig, inputs: Inputs) -> list[Part]:
    """One part: a metric needs all examples at once."""
    (model,) = inputs["model"]
    reads = [Read("model", model.parts[0].file(name)) for name in ("config.json", "model.safetensors", "vocab.txt")]
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
    return [Part(name=config.task, reads=tuple(reads), lookups=tuple(lookups))]


def evaluate_part(config: EvaluateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Run the task on every held-out sample that has media."""
    import torch

    from x2vlm.inference.pretrained import load_pretrained
    from x2vlm.tasks.catalog import TASKS
    from x2vlm.tasks.task import TaskContext

    files = {read.file.path: inputs.local_path(read.file) for read in part.reads if read.slot == "model"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_pretrained(files["config.json"], files["model.safetensors"]).to(device)
    tokenizer = load_tokenizer(files["vocab.txt"])
    samples = [
        sample
        for read in part.reads
        if read.slot == "rows"
        for sample in samples_of(pq.read_table(inputs.local_path(read.file)))
    ]
    task = TASKS[config.task]
    context = TaskContext(
        samples=samples,
        load_image=HeldOutMedia.of(inputs, part).image,
        encode_texts=lambda texts: encode_texts(tokenizer, texts, config.max_tokens),
        device=device,
        batch_size=config.batch_size,
    )
    result = task.evaluate(model, parse_config(task.config_type, config.options, config.task), context)
    weights = next(read.file.sha256 for read in part.reads if read.file.path == "model.safetensors")
    write_table(result.predictions, out.path / "predictions.parquet")
    contamination = _contamination(inputs, part, sorted({sample.source for sample in samples}))
    described = {**describe(config, result, weights), "contamination": contamination}
    (out.path / "result.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    return PartResult(
        counts={"rows": Count(len(samples), len(samples))},
        file_rows={"predictions.parquet": result.predictions.num_rows},
        summary={
            "metrics": {f"{config.task}/{name}": value for name, value in result.metrics.items()},
            "data_digest": result.data_digest,
            "num_examples": result.num_examples,
            "contamination": contamination,
        },
    )


def _contamination(inputs: PartReader, part: Part, sources: Sequence[str]) -> Mapping[str, Any] | None:
    """What the search for test images found of these sources, None if there was no search."""
    for read in part.reads:
        if read.slot == "contamination":
            found = json.loads(inputs.local_path(read.file).read_text(encoding="utf-8"))
            return {"policy": found["policy"], "sets": {name: found["sets"].get(name) for name in sources}}
    return None


@dataclass(frozen=True)
class HeldOutMedia:
    """Images of held-out samples, out of the packs of the download stage."""

    packs: tuple[MediaPack, ...]

    @classmethod
    def of(cls, inputs: PartReader, part: Part) -> "HeldOutMedia":
        paths = [inputs.local_path(read.file) for read in part.lookups]
        return cls(tuple(MediaPack(tar, index) for tar, index in zip(paths[::2], paths[1::2], strict=True)))

    def image(self, sample: Sample) -> Image.Image:
        """The sample's image, RGB and oriented; InvalidSample if no pack holds it."""
        if sample.media is None:
            raise InvalidSample("missing_media", f"sample {sample.key} has no media")
        for pack in self.packs:
            if sample.media.sha256 in pack:
                return open_image(pack.read(sample.media.sha256))
        raise InvalidSample("missing_media", f"no media pack holds {sample.media.sha256} of sample {sample.key}")


def encode_texts(tokenizer: WordPieceTokenizer, texts: Sequence[str], max_tokens: int) -> "tuple[Tensor, Tensor]":
    """Ids and mask (B, L) of cleaned texts, padded to the longest; ConfigError for a text of punctuation alone."""
    import torch

    try:
        rows = [tokenizer.encode(pre_caption(text, max_tokens), max_tokens) for text in texts]
    except InvalidSample as error:
        raise ConfigError(
            f"a held-out text is empty after cleaning ({error}); remove it from the evaluation set"
        ) from None
    length = max(len(row) for row in rows)
    ids_BL = torch.tensor([row + [tokenizer.pad_id] * (length - len(row)) for row in rows])
    mask_BL = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    return ids_BL, mask_BL


def describe(config: EvaluateConfig, result: "TaskResult", weights_sha256: str) -> Mapping[str, Any]:
    """What `result.json` holds."""
    return {
        "task": config.task,
        "metrics": dict(result.metrics),
        "interval_95": {name: list(bounds) for name, bounds in result.intervals.items()},
        "num_examples": result.num_examples,
        "data_digest": result.data_digest,
        "model_sha256": weights_sha256,
        "config": config.model_dump(mode="json"),
    }


EVALUATE = Stage(
    name="evaluate",
    version=2,
    config_type=EvaluateConfig,
    slots=("model", "rows", "media", "contamination"),
    plan_parts=plan_evaluation,
    run_part=evaluate_part,
)
