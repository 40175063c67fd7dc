"""Work and speed of a step: counted from its contents, never from padded shapes."""

import dataclasses
import resource
import sys
from collections.abc import Mapping

import torch

from x2vlm.cost.flops import PEAK_FLOPS, BatchShape, Rewrites, find_device, step_flops
from x2vlm.data.loading.batch import UNUSED_LABEL, Batch
from x2vlm.data.loading.config import ExampleConfig
from x2vlm.data.loading.loader import StepData
from x2vlm.models.config import ModelConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives.config import ObjectiveConfig


def work_of(
    data: StepData,
    model: ModelConfig,
    examples: ExampleConfig,
    objectives: Mapping[str, ObjectiveConfig],
    execution: ExecutionConfig,
    accumulate: int = 1,
) -> dict[str, float]:
    """Texts, images (frames count), real tokens and training FLOPs of one process's part of a step.

    FLOPs twice: as executed, and as the reference's graph would need for the same rows.
    """
    shapes = [shape_of(batch, objectives[name].matching) for name, batch in data.batches.items()]
    sizes = (examples.max_tokens, examples.masking.max_masks)
    executed = Rewrites(**{field.name: getattr(execution, field.name) for field in dataclasses.fields(Rewrites)})
    return {
        "texts": float(sum(len(shape.text_lengths) for shape in shapes)),
        "images": float(sum(shape.num_images for shape in shapes)),
        "tokens": float(sum(sum(shape.text_lengths) for shape in shapes)),
        "executed_flops": float(step_flops(model, shapes, executed, *sizes, accumulates=accumulate > 1)),
        "reference_flops": float(step_flops(model, shapes, "reference", *sizes)),
    }


def shape_of(batch: Batch, matching: bool) -> BatchShape:
    """The sizes that determine the FLOPs of a batch, read from its tensors on the host."""
    pixels = batch.pixels
    num_images = 0 if pixels is None else pixels.shape[0] * (pixels.shape[1] if batch.kind == "video" else 1)
    lengths, num_masked = batch.lengths, batch.num_masked
    if lengths is None or num_masked is None:
        lengths = tuple((batch.text_mask_BL != 0).sum(dim=1).tolist())
        num_masked = tuple((batch.masked_labels_BK != UNUSED_LABEL).sum(dim=1).tolist())
    return BatchShape(batch.kind, num_images, lengths, num_masked, matching)


def speeds(mean_work: Mapping[str, float], seconds: float, world_size: int, peak: float | None) -> dict[str, float]:
    """Texts, images and tokens per second of the whole run, and the utilisation of one device.

    `mean_work` is that of one process (`work_of`). With a known peak in FLOP/s utilisation is a fraction of it (MFU),
    as executed and as the reference's graph; without, FLOP/s.
    """
    speed = {f"{unit}_per_second": round(world_size * mean_work[unit] / seconds, 2) for unit in _UNITS}
    for graph in ("executed", "reference"):
        flops = mean_work[f"{graph}_flops"] / seconds
        speed |= {f"flops_{graph}": round(flops)} if peak is None else {f"mfu_{graph}": round(flops / peak, 4)}
    return speed


_UNITS = ("texts", "images", "tokens")


def peak_flops(device: torch.device) -> float | None:
    """Peak of the device in bf16, FLOP/s; None for a CPU and for an unlisted GPU."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    name = find_device(properties.name, properties.total_memory)
    return None if name is None else PEAK_FLOPS[name]


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: on the GPU for one, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
