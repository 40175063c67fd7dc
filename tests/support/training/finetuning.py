"""A toy classification task in its stored form, a toy model's folder, and the inputs of a finetune part."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.flow.stage import Input, InputPart, Inputs
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from pipelines.s5_pretrain.finetune.stage import finetune_part, plan_finetune
from tests.support.parts import as_part
from tests.support.training.corpus import COLOURS, MODEL, TOKENIZER, drawn_jpeg
from tests.support.training.pretrain_part import LocalInputs, Out
from tests.support.training.processes import CONTEXT
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.data.task_examples import Example, TaskData, example_table, labels_to_json
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.inference.processor import processor_for
from x2vlm.models.x2vlm import build_model
from x2vlm.samples import write_table
from x2vlm.train.config import TrainRuntime

LABELS = tuple(COLOURS)
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "precision": "float32",
    "optimizer": {"lr": 2e-3},
    "seed": 11,
}


def toy_config(**changes: Any) -> FinetuneNodeConfig:
    """The classification of colours, three epochs of batches of four."""
    return FinetuneNodeConfig.model_validate({"task": "classification", "finetune": {**SETTINGS, **changes}})


def toy_image(number: int) -> tuple[str, bytes]:
    """The colour and the bytes of a drawn image."""
    colour = list(COLOURS)[number % 4]
    return colour, drawn_jpeg(colour, "plate", number)


def toy_examples(split: str, numbers: Sequence[int], folder: Path, answered: bool = True) -> list[Example]:
    """One example per image; the images are written to `folder` under the sha256 of their bytes."""
    examples = []
    for number in numbers:
        colour, data = toy_image(number)
        sha256 = hashlib.sha256(data).hexdigest()
        (folder / sha256).write_bytes(data)
        examples.append(
            Example(f"{split}-{number}", split, (sha256,), ("a plate on grey",), (colour,) if answered else ())
        )
    return examples


def toy_split(
    folder: Path, split: str, numbers: Sequence[int], labels: Sequence[str] = LABELS, answered: bool = True
) -> InputPart:
    """A split as the task_data stage commits it, in one part."""
    part, images = folder / f"{split}-00000", folder / "images" / split
    part.mkdir(parents=True)
    images.mkdir(parents=True)
    examples = toy_examples(split, numbers, images, answered)
    write_table(example_table(examples), part / "examples.parquet")
    (part / "labels.json").write_text(labels_to_json(TaskData((), tuple(labels))), encoding="utf-8")
    write_media_pack(part, [Payload(path.name, "jpg", path) for path in sorted(images.iterdir())])
    return as_part(part.name, part)


def toy_model_folder(folder: Path, image_res: int = 32) -> Path:
    """A random toy model with its processor."""
    torch.manual_seed(3)
    model = build_model(MODEL.model_copy(update={"vision": MODEL.vision.model_copy(update={"image_res": image_res})}))
    processor = processor_for(model.config, TOKENIZER, max_tokens=12)
    save_pretrained(model, folder, processor=processor)
    return folder


def toy_inputs(folder: Path, image_res: int = 32) -> dict[str, tuple[Input, ...]]:
    """14 images to learn from, 8 to select on and 8 to test with."""
    model = toy_model_folder(folder / "model", image_res)
    splits = {"train": range(14), "val": range(100, 108), "test": range(200, 208)}
    parts = tuple(toy_split(folder / "data", name, numbers) for name, numbers in splits.items())
    return {
        "model": (Input("pretrain/toy", "root-of-model", (as_part("train", model),)),),
        "data": (Input("task_data/toy", "root-of-data", parts),),
    }


def finetune_here(config: FinetuneNodeConfig, inputs: Inputs, folder: Path, **runtime: Any) -> Out:
    """Run the finetune part below `folder` in this process; where it wrote."""
    (part,) = plan_finetune(config, inputs)
    out = Out(folder / "out", str(folder / "state"))
    shutil.rmtree(out.path, ignore_errors=True)
    out.path.mkdir(parents=True)
    finetune_part(config, LocalInputs(), part, out, TrainRuntime(**runtime))
    return out


def finetune_killed(
    config: FinetuneNodeConfig, inputs: Inputs, folder: Path, kill: dict[str, int], **runtime: Any
) -> int:
    """The same in a process that kills itself: after a `step`, or before an `epoch` is measured; its exit code."""
    process = CONTEXT.Process(target=_killed, args=(config, inputs, str(folder), kill, runtime))
    process.start()
    process.join(300)
    process.kill()
    process.join()
    return process.exitcode or 0


def _killed(config: FinetuneNodeConfig, inputs: Inputs, folder: str, kill: dict[str, int], runtime: Any) -> None:
    from pipelines.s5_pretrain.finetune import select, training

    fit, measure = training.fit, select.Selection._measure
    measured: list[str] = []

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_fit(*arguments: Any, **options: Any) -> int:
        return fit(*arguments, **options, on_step=lambda step: die() if step == kill.get("step") else None)

    def killed_measure(self: Any, model: Any, split: str) -> Any:
        if len(measured) == kill.get("epoch"):
            die()
        measured.append(split)
        return measure(self, model, split)

    training.fit, select.Selection._measure = killed_fit, killed_measure  # type: ignore[method-assign,assignment]
    finetune_here(config, inputs, Path(folder), **runtime)


def evaluate_on_rank(rank: int, world_size: int, folder: str) -> Any:
    """Metrics and predictions of the toy's test split by one of several processes, as a tensor of bytes."""
    from x2vlm.inference.task_folder import load_task_model
    from x2vlm.tasks.catalog import task_spec
    from x2vlm.tasks.task import TaskContext
    from x2vlm.tasks.training.splits import PackedMedia, load_split
    from x2vlm.train.ranks import current_ranks

    data = Path(folder, "inputs", "data", "test-00000")
    split = load_split([data / "examples.parquet"], (data / "labels.json").read_text())
    saved = load_task_model(Path(folder, "out"))
    media = PackedMedia([(data / "media.tar", data / "media.parquet")])
    context = TaskContext(
        examples=split.examples,
        load=lambda sha256: media.visual(sha256, saved.processor),
        processor=saved.processor,
        labels=LABELS,
        batch_size=3,
        ranks=current_ranks(),
    )
    config = toy_config()
    result = task_spec(config.task).load().evaluate(saved.model, config.options, context)
    told = json.dumps([dict(result.metrics), result.predictions.to_pylist(), result.data_digest], sort_keys=True)
    return torch.frombuffer(bytearray(told.encode()), dtype=torch.uint8)
