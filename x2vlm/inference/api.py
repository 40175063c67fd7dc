"""A trained model at work: embed, match, rank, ground and caption images, clips and texts.

An image or clip is given as a path, as bytes, as an open file, or as an opened image; whether it is a clip its first
bytes tell. An image may also be an array (H, W, channels) or a tensor (channels, H, W): see `visuals`.
No result depends on the batch size or on what else is in a batch. Results are on the CPU in float32, whatever the model
runs on. A source that cannot be read raises InvalidSample, which names it; in folders it is skipped with its reason.
B rows, E width of the comparison space, I visuals, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from x2vlm.data.boxes import pixel_box
from x2vlm.errors import InvalidSample
from x2vlm.inference.encoding import (
    Pretrained,
    as_list,
    batches,
    check_batch_size,
    encode_all,
    encode_texts,
    encode_visuals,
    text_features,
)
from x2vlm.inference.hub import locate_model
from x2vlm.inference.pretrained import load_pretrained
from x2vlm.inference.processor import check_fit, load_processor, num_positions
from x2vlm.inference.ranking import Ranked, rank_images, rank_texts
from x2vlm.inference.visuals import Skipped, Source, Visual, list_files, read_visuals
from x2vlm.models.files import CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE
from x2vlm.models.generate import GenerateConfig, generate
from x2vlm.samples import Box

PROMPT = "a picture of"  # X2-VLM captioning; other prompts need other training
# The released evaluation: 3 beams, 5 to 50 tokens, no trigram twice. We count after the prompt (`GenerateConfig`): the
# reference's limit on the length grows with the batch.
CAPTION = GenerateConfig(max_tokens=50, min_tokens=5, num_beams=3, no_repeat=3)

__all__ = [
    "CAPTION",
    "PROMPT",
    "FolderFeatures",
    "Grounded",
    "Pretrained",
    "Ranked",
    "caption",
    "embed_folder",
    "embed_images",
    "embed_texts",
    "ground",
    "load",
    "match",
    "rank_images",
    "rank_texts",
]


@dataclass(frozen=True)
class FolderFeatures:
    """`features_BE`, one row per name (paths below the folder), and the files that could not be read."""

    names: tuple[str, ...]
    features_BE: Tensor
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Grounded:
    """A phrase, where the model sees it in pixels of the oriented original, and how probably it is there at all."""

    phrase: str
    box: Box
    match_probability: float


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> Pretrained:
    """The model in a folder that `save_pretrained` wrote with a processor, or of a hub repository `owner/name`.

    Raises what `x2vlm.inference.hub.locate_model`, `load_pretrained` and `load_processor` do; ConfigError if model and
    processor do not fit each other.
    """
    folder = locate_model(name, revision)
    processor = load_processor(folder)
    model = load_pretrained(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    check_fit(model.config, processor, str(folder / PROCESSOR_FILE))
    device = torch.device(device)
    return Pretrained(model.to(device=device, dtype=dtype).eval(), processor, device, dtype)


@torch.inference_mode()
def embed_images(pretrained: Pretrained, sources: Sequence[Source], batch_size: int = 32) -> Tensor:
    """Features (B, E) of length 1, one row per image or clip."""
    model = pretrained.model
    rows = [model.project_vision(vision) for vision in encode_all(pretrained, sources, batch_size)]
    return _joined(rows, model.config.embed_dim)


@torch.inference_mode()
def embed_texts(pretrained: Pretrained, texts: Sequence[str], batch_size: int = 32) -> Tensor:
    """Features (B, E) of length 1, one row per text; comparable with those of `embed_images` by dot product."""
    rows = list(text_features(pretrained, as_list(texts), batch_size))
    return _joined(rows, pretrained.model.config.embed_dim)


@torch.inference_mode()
def embed_folder(pretrained: Pretrained, folder: str | Path, batch_size: int = 32) -> FolderFeatures:
    """Features of every image and clip below `folder`; only one batch of images is in memory at a time.

    SourceUnavailable if there is no such folder.
    """
    check_batch_size(batch_size)
    base, config = Path(folder), pretrained.processor.config
    names: list[str] = []
    skipped: list[Skipped] = []
    rows: list[Tensor] = []
    waiting: list[Visual] = []

    def flush() -> None:
        if waiting:
            rows.append(pretrained.model.project_vision(encode_visuals(pretrained, waiting)))
            waiting.clear()

    for found in read_visuals(list_files(base), config.frames_per_clip, config.frames_per_second):
        relative = str(Path(found.name).relative_to(base))
        if isinstance(found, Skipped):
            skipped.append(Skipped(relative, found.rule, found.message))
            continue
        names.append(relative)
        waiting.append(found)
        if len(waiting) == batch_size:
            flush()
    flush()
    return FolderFeatures(tuple(names), _joined(rows, pretrained.model.config.embed_dim), tuple(skipped))


@torch.inference_mode()
def match(pretrained: Pretrained, sources: Sequence[Source], texts: Sequence[str], batch_size: int = 32) -> Tensor:
    """Probability (B,) that text b describes image or clip b. InvalidSample if there are not as many of both."""
    sources, texts = as_list(sources), as_list(texts)
    if len(sources) != len(texts):
        raise InvalidSample("uneven_pairs", f"{len(sources)} images, {len(texts)} texts; match takes pairs")
    rows = []
    for vision, batch in zip(encode_all(pretrained, sources, batch_size), batches(texts, batch_size), strict=True):
        states_BLD, mask_BL = encode_texts(pretrained, batch)
        fused_BLD = pretrained.model.fuse(states_BLD, mask_BL, vision)
        rows.append(_probability(pretrained.model.match(fused_BLD)))
    return torch.cat(rows) if rows else torch.zeros(0)


@torch.inference_mode()
def ground(pretrained: Pretrained, source: Source, phrases: Sequence[str], batch_size: int = 32) -> list[Grounded]:
    """Where each phrase is in an image; the image is encoded once for all of them (X2-VLM 4.3.4).

    The model always gives a box, also for what is not there: see `match_probability`. InvalidSample
    ("clip_not_grounded") for a clip, since a box in a clip would need a time.
    """
    phrases = as_list(phrases)
    visual = pretrained.processor.read(source)
    if visual.is_clip:
        raise InvalidSample("clip_not_grounded", f"{visual.name} is a clip; ground one of its frames")
    memory, found = pretrained.model.image_memory(encode_visuals(pretrained, [visual])), []
    for batch in batches(phrases, batch_size):
        states_BLD, mask_BL = encode_texts(pretrained, batch)
        shared = memory.select(torch.zeros(len(batch), dtype=torch.long, device=pretrained.device))
        fused_BLD = pretrained.model.fuse(states_BLD, mask_BL, shared)
        boxes = pretrained.model.locate(fused_BLD).double().cpu().tolist()
        probabilities = _probability(pretrained.model.match(fused_BLD)).tolist()
        found += [
            Grounded(phrase, pixel_box(box, *visual.size), probability)
            for phrase, box, probability in zip(batch, boxes, probabilities, strict=True)
        ]
    return found


@torch.inference_mode()
def caption(
    pretrained: Pretrained,
    sources: Sequence[Source],
    config: GenerateConfig | None = None,
    prompt: str = PROMPT,
    batch_size: int = 8,
) -> list[str]:
    """A sentence about each image or clip, without the prompt; by default 3 beams, at least 5 tokens, no trigram twice.

    The default length is cut to what the model has positions for; with a `config` that asks for more, ValueError.
    """
    processor = pretrained.processor
    prompt_ids = processor.prompt(prompt)
    if config is None:
        max_new_tokens = max(1, num_positions(pretrained.model.config) - len(prompt_ids))
        config = CAPTION.model_copy(update={"max_tokens": min(CAPTION.max_tokens, max_new_tokens)})
    mask_id, end_id = processor.tokenizer.mask_id, processor.tokenizer.sep_id
    captions = []
    for vision in encode_all(pretrained, sources, batch_size):
        written = generate(pretrained.model, vision, prompt_ids, mask_id, end_id, config)
        captions += [processor.decode(text.tokens) for text in written]
    return captions


def _joined(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([row.float().cpu() for row in rows]) if rows else torch.zeros(0, width)


def _probability(logits_B2: Tensor) -> Tensor:
    return logits_B2.float().softmax(dim=-1)[:, 1].cpu()
