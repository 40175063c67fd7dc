"""Floating-point operations of a pre-training step in closed form, and the peak rates of GPUs.

2 FLOP per multiply-add; attention products are counted, and so are patch embedding, heads and the similarity matrix of
one process. Layer norms, softmax, activations, the mean over the patches of a region, and the matrix products of
drawing negatives (below 0.1 % of a base step) are not. Training is three times the forward pass: each product has two
in its backward pass. `tests/cost/test_flops.py` holds the formulas against torch's own counter, to the last FLOP.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from x2vlm.data.kinds import BatchKind
from x2vlm.models.config import SWIN_OUTER_BLOCKS, ModelConfig, VisionConfig, stem_layers

Graph = Literal["executed", "reference"]

TRAINING_PER_FORWARD = 3
SWIN_PATCH = 4


@dataclass(frozen=True)
class BatchShape:
    """The sizes that determine the FLOPs of one batch of one process.

    `num_images` pass the image tower: the frames of all clips, or the images that the regions lie in.
    `text_lengths` are the real tokens of every text row with [CLS] and [SEP], `num_masked` its masked tokens.
    """

    kind: BatchKind
    num_images: int
    text_lengths: tuple[int, ...]
    num_masked: tuple[int, ...]
    matching: bool = True

    def __post_init__(self) -> None:
        if len(self.text_lengths) != len(self.num_masked):
            raise ValueError(
                f"{len(self.text_lengths)} text lengths but {len(self.num_masked)} counts of masked tokens"
            )
        if (self.num_images > 0) != (self.kind != "text"):
            raise ValueError(f"a {self.kind} batch cannot have {self.num_images} images")

    @property
    def num_frames(self) -> int:
        """Frames of a clip, 1 of any other kind; ValueError if the clips cannot all have the same number."""
        if self.kind != "video":
            return 1
        frames, left = divmod(self.num_images, len(self.text_lengths))
        if left:
            raise ValueError(f"{self.num_images} frames do not belong to {len(self.text_lengths)} equal clips")
        return frames

    @property
    def num_visuals(self) -> int:
        """Rows of image keys that differ in their patches: images, or clips, whose frames are averaged."""
        return len(self.text_lengths) if self.kind == "video" else self.num_images


@dataclass(frozen=True)
class Rewrites:
    """Which exact rewrites of the reference's computation are in use; names as in `ExecutionConfig`."""

    share_image_keys: bool = True
    pack_texts: bool = True
    prune_last_layer: bool = True
    only_masked_words: bool = True


EXECUTED = Rewrites()
REFERENCE = Rewrites(False, False, False, False)


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of a forward pass by part."""

    vision: int
    text: int
    image_keys: int
    fusion: int
    words: int
    heads: int

    @property
    def total(self) -> int:
        return self.vision + self.text + self.image_keys + self.fusion + self.words + self.heads


def forward_flops(
    config: ModelConfig,
    shape: BatchShape,
    graph: Graph | Rewrites = "executed",
    max_tokens: int = 40,
    max_masks: int = 12,
) -> int:
    """FLOPs of the losses of one batch, forward. "reference" pads every text to `max_tokens` and `max_masks`."""
    return forward_flops_by_part(config, shape, graph, max_tokens, max_masks).total


def step_flops(
    config: ModelConfig,
    shapes: Iterable[BatchShape],
    graph: Graph | Rewrites = "executed",
    max_tokens: int = 40,
    max_masks: int = 12,
    *,
    accumulates: bool = False,
) -> int:
    """FLOPs of one process in one optimizer step over all its batches, forward and backward.

    A step that `accumulates` gradients in chunks runs both towers once more. That their keys of one image may be
    projected in several chunks is not counted: less than 5 % of a step.
    """
    total = 0
    for shape in shapes:
        parts = forward_flops_by_part(config, shape, graph, max_tokens, max_masks)
        total += TRAINING_PER_FORWARD * parts.total + accumulates * (parts.vision + parts.text)
    return total


def forward_flops_by_part(
    config: ModelConfig,
    shape: BatchShape,
    graph: Graph | Rewrites = "executed",
    max_tokens: int = 40,
    max_masks: int = 12,
) -> ForwardFlops:
    """As `forward_flops`, part by part."""
    use = {"executed": EXECUTED, "reference": REFERENCE}[graph] if isinstance(graph, str) else graph
    lengths = shape.text_lengths if use.pack_texts else (max_tokens,) * len(shape.text_lengths)
    masks = shape.num_masked if use.only_masked_words else (max_masks,) * len(lengths)
    cls_passes = 0 if shape.kind == "text" else 3 * shape.matching + (shape.kind == "region")
    text_runs = 1 if shape.kind == "text" else 2
    return ForwardFlops(
        vision=shape.num_images * vision_flops(config.vision) + _clips_flops(config.vision, shape),
        text=text_runs * sum(text_flops(config, length) for length in lengths),
        image_keys=_key_rows(config, shape, use, cls_passes + 1) * image_key_flops(config),
        fusion=sum(
            cls_passes * fusion_text_flops(config, length, 1 if use.prune_last_layer else None, shape.kind != "text")
            + fusion_text_flops(config, length, num if use.prune_last_layer else None, shape.kind != "text")
            for length, num in zip(lengths, masks, strict=True)
        ),
        words=sum(masks) * word_flops(config),
        heads=_head_flops(config, shape),
    )


def vision_flops(cfg: VisionConfig) -> int:
    """One image through the image tower."""
    if cfg.backbone == "swin":
        return _swin_flops(cfg)
    patches, width = cfg.grid**2, cfg.width
    embed = 2 * patches * 3 * cfg.patch_size**2 * width if cfg.stem == "patch" else _stem_flops(cfg)
    return embed + cfg.depth * _block_flops(patches + 1, patches + 1, width, int(width * cfg.mlp_ratio))


def _stem_flops(cfg: VisionConfig) -> int:
    side, total, channels = cfg.image_res, 0, 3
    for channels_in, channels, stride in stem_layers(cfg):
        side //= stride
        total += 2 * side**2 * 9 * channels_in * channels
    return total + 2 * side**2 * channels * cfg.width


def temporal_flops(cfg: VisionConfig, num_frames: int) -> int:
    """FLOPs that temporal attention adds to a clip of `num_frames`; 0 for a tower that averages frames."""
    if cfg.temporal == "mean" or num_frames == 1:
        return 0
    per_patch = num_frames * 2 * 4 * cfg.width**2 + 4 * num_frames**2 * cfg.width
    return cfg.depth * cfg.grid**2 * per_patch


def num_image_tokens(cfg: VisionConfig) -> int:
    """Tokens of an image that cross-attention reads: its patches and their mean."""
    return cfg.grid**2 + 1


def text_flops(config: ModelConfig, length: int) -> int:
    """One text of `length` tokens through the text layers."""
    return config.text.num_layers * _block_flops(length, length, config.text.width, config.text.intermediate)


def image_key_flops(config: ModelConfig) -> int:
    """Keys and values of one image token in every fusion layer."""
    return config.fusion.num_layers * 4 * config.vision.width * config.text.width


def fusion_text_flops(config: ModelConfig, length: int, num_read: int | None = None, with_image: bool = True) -> int:
    """One text through the fusion layers, without the keys and values of its image.

    Of the last layer only `num_read` tokens are computed beyond their keys and values; None: all.
    """
    full = _fusion_layer_flops(config, length, length, with_image)
    last = full if num_read is None else _fusion_layer_flops(config, length, min(num_read, length), with_image)
    return (config.fusion.num_layers - 1) * full + last


def word_flops(config: ModelConfig) -> int:
    """The MLM head at one masked position."""
    return 2 * config.text.width * (config.text.width + config.text.vocab_size)


def _block_flops(queries: int, keys: int, width: int, inner: int) -> int:
    """A self-attention block: four projections, two attention products, two feed-forward maps."""
    return 2 * queries * (4 * width**2 + 2 * width * inner) + 4 * queries * keys * width


def _fusion_layer_flops(config: ModelConfig, length: int, read: int, with_image: bool) -> int:
    width, tokens = config.text.width, num_image_tokens(config.vision)
    own = 2 * 2 * length * width**2 + 2 * 2 * read * width**2 + 4 * read * length * width
    across = 2 * 2 * read * width**2 + 4 * read * tokens * width if with_image else 0
    return own + across + 2 * 2 * read * width * config.fusion.intermediate


def _clips_flops(cfg: VisionConfig, shape: BatchShape) -> int:
    if cfg.temporal == "mean" or shape.kind != "video":
        return 0
    return len(shape.text_lengths) * temporal_flops(cfg, shape.num_frames)


def _key_rows(config: ModelConfig, shape: BatchShape, use: Rewrites, passes: int) -> int:
    """Image tokens whose keys and values are computed."""
    if shape.kind == "text":
        return 0
    tokens = num_image_tokens(config.vision)
    if not use.share_image_keys:
        return passes * len(shape.text_lengths) * tokens
    # Regions of one image share its patches; only the region token is its own.
    return shape.num_visuals * tokens + (len(shape.text_lengths) if shape.kind == "region" else 0)


def _head_flops(config: ModelConfig, shape: BatchShape) -> int:
    if shape.kind == "text":
        return 0
    rows, width = len(shape.text_lengths), config.text.width
    compare = 2 * rows * config.embed_dim * (config.vision.width + width) + 2 * rows**2 * config.embed_dim
    match = 3 * rows * _mlp_flops(width, 2) if shape.matching else 0
    return compare + match + (rows * _mlp_flops(width, 4) if shape.kind == "region" else 0)


def _mlp_flops(width: int, outputs: int) -> int:
    return 2 * (width * 2 * width + 2 * width * outputs)


def _swin_flops(cfg: VisionConfig) -> int:
    """Windows of `grid` x `grid` tokens; each later stage has a quarter of the tokens and twice the width."""
    tokens, width = (cfg.image_res // SWIN_PATCH) ** 2, cfg.width // 8
    total = 2 * tokens * 3 * SWIN_PATCH**2 * width
    for stage, depth in enumerate((2, 2, cfg.depth - SWIN_OUTER_BLOCKS, 2)):
        if stage:
            tokens, width = tokens // 4, width * 2
            total += 2 * tokens * (2 * width) * width  # four neighbours of half the width become one token
        total += depth * _block_flops(tokens, cfg.grid**2, width, int(width * cfg.mlp_ratio))
    return total


@dataclass(frozen=True)
class Device:
    """Dense bf16 FLOP per second and memory of one GPU, from the manufacturer."""

    flops_per_second: float
    memory_bytes: int
    source: str


# Dense: data sheets state twice these numbers where they assume sparsity.
DEVICES: dict[str, Device] = {
    "A100-40": Device(312e12, 40 * 2**30, "NVIDIA A100 data sheet: 312 TFLOPS bf16, 40 GB"),
    "A100-80": Device(312e12, 80 * 2**30, "NVIDIA A100 data sheet: 312 TFLOPS bf16, 80 GB"),
    "L40S": Device(362e12, 48 * 2**30, "NVIDIA L40S data sheet: 362 TFLOPS bf16, 733 with sparsity"),
    "H100-PCIe": Device(756e12, 80 * 2**30, "NVIDIA H100 data sheet: 1,513 TFLOPS bf16 with sparsity, PCIe"),
    "H100": Device(989e12, 80 * 2**30, "NVIDIA H100 data sheet: 1,979 TFLOPS bf16 with sparsity, SXM"),
    "H200": Device(989e12, 141 * 10**9, "NVIDIA H200 data sheet: 1,979 TFLOPS bf16 with sparsity, 141 GB"),
    "B200": Device(
        2250e12, 180 * 10**9, "NVIDIA HGX B200: 4,500 TFLOPS bf16 with sparsity at 1,000 W; 1,440 GB in 8 GPUs"
    ),
}
PEAK_FLOPS: dict[str, float] = {name: device.flops_per_second for name, device in DEVICES.items()}


def utilisation(flops: float, seconds: float, device: str) -> float:
    """Fraction of the peak of a key of DEVICES. With the reference's FLOPs it measures speed and may exceed 1."""
    return flops / seconds / PEAK_FLOPS[device]


def find_device(reported: str, memory_bytes: int | None = None) -> str | None:
    """The key of DEVICES for a name as `torch.cuda.get_device_name` reports it; None for a GPU not listed."""
    words = reported.upper().replace("-", " ").split()
    if "H100" in words and "PCIE" in words:
        return "H100-PCIe"
    if "A100" in words:
        small = (memory_bytes is not None and memory_bytes < 60 * 2**30) or any("40GB" in word for word in words)
        return "A100-40" if small else "A100-80"
    return next((word for word in ("L40S", "H100", "H200", "B200") if word in words), None)
