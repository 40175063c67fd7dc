"""Models that fit an amount of data: what an experiment says for each."""

from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["toy", "small", "base"]
SAMPLE_VOCABULARY, SAMPLE_CLIP = "datasets/sample/vocab.txt", "datasets/sample/models/tiny_clip"
HUB_VOCABULARY, HUB_CLIP = "data/bert-base-uncased/vocab.txt", "data/clip"
TOY_ROWS, SMALL_ROWS = 20_000, 2_000_000  # with fewer rows a model is of that size
ROWS_PER_SHARD = 2_000


@dataclass(frozen=True)
class Preset:
    """Settings of a size. `epochs` over all rows give the steps, within `steps`."""

    model: dict[str, Any]
    batch_size: int
    epochs: float
    steps: tuple[int, int]
    lr: float
    max_tokens: int
    world_size: int
    needs: str
    train: dict[str, Any] = field(default_factory=dict)


PRESETS: dict[Size, Preset] = {
    "toy": Preset(
        model={
            "vision": {"image_res": 64, "width": 64, "depth": 2, "num_heads": 4},
            "text": {"width": 64, "num_layers": 2, "num_heads": 4, "intermediate": 256, "vocab_size": 1033,
                     "max_positions": 64},
            "fusion": {"num_layers": 2, "num_heads": 4, "intermediate": 256},
            "embed_dim": 32,
        },
        batch_size=16, epochs=5, steps=(40, 2_000), lr=3.0e-3, max_tokens=24, world_size=1,
        needs="2 CPU cores and 4 GB of memory", train={"precision": "float32"},
    ),
    "small": Preset(
        model={
            "vision": {"width": 384, "depth": 12, "num_heads": 6},
            "text": {"width": 384, "num_layers": 6, "num_heads": 6, "intermediate": 1536},
            "fusion": {"num_layers": 4, "num_heads": 6, "intermediate": 1536},
        },
        batch_size=256, epochs=20, steps=(5_000, 100_000), lr=3.0e-4, max_tokens=40, world_size=1,
        needs="one GPU of 24 GB",
    ),
    "base": Preset(
        model={}, batch_size=1024, epochs=20, steps=(50_000, 500_000), lr=1.0e-4, max_tokens=40, world_size=8,
        needs="8 GPUs of 80 GB",
    ),
}  # fmt: skip


def size_for(num_rows: int) -> Size:
    """The size of model that `num_rows` rows are enough for."""
    return "toy" if num_rows < TOY_ROWS else "small" if num_rows < SMALL_ROWS else "base"


def streams_for(preset: Preset, num_captioned: int, num_boxed: int, num_clips: int) -> list[dict[str, Any]]:
    """The streams of a step, for as many images with captions, images with boxes and clips as there are."""
    streams: list[dict[str, Any]] = []
    if num_captioned:
        streams.append({"kind": "image", "batch_size": _batch(preset.batch_size, num_captioned, preset.world_size)})
    if num_boxed:
        images = _batch(max(preset.batch_size * 2 // 5, 1), num_boxed, preset.world_size)
        streams.append({"kind": "region", "batch_size": images * 2, "num_images": images})
    if num_clips:
        streams.append(
            {"kind": "video", "batch_size": _batch(max(preset.batch_size // 4, 1), num_clips, preset.world_size)}
        )
    return streams


def _batch(wanted: int, available: int, world_size: int) -> int:
    """At most `wanted`, at most half of what is there, at least two a process, and a multiple of the processes."""
    size = max(2 * world_size, min(wanted, available // 2))
    return size - size % world_size


def steps_for(preset: Preset, num_rows: int, batch_size: int) -> int:
    """Steps of `epochs` over the rows, within the limits of the size."""
    least, most = preset.steps
    return int(min(max(preset.epochs * num_rows / batch_size, least), most))
