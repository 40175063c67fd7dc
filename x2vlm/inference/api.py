"""A trained model at work: embed, match, rank, ground and caption images, clips and texts.

An image or clip is given as a path, as bytes, or as an opened image; whether it is a clip its first bytes tell. No
result depends on the batch size or on what else is in a batch. Results are on the CPU in float32, whatever the model
runs on. A source that cannot be read raises InvalidSample, which names it; in folders it is skipped with its reason.
B rows, E width of the comparison space, I visuals, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from x2vlm.data.boxes import pixel_box
from x2vlm.errors import InvalidSample
from x2vlm.inference.hub import locate_model
from x2vlm.inference.pretrained import load_pretrained
from x2vlm.inference.processor import Processor, check_fit, load_processor, num_positions
from x2vlm.inference.visuals import Skipped, Source, Visual, list_files, read_visuals
from x2vlm.models.files import CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE
from x2vlm.models.generate import GenerateConfig, generate
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM
from x2vlm.samples import Box

PROMPT = "a picture of"  # X2-VLM captioning; other prompts need other training
# The released evaluation: 3 beams, 5 to 50 tokens, no trigram twice. We count after the prompt (`GenerateConfig`): the
# reference's limit on the length grows with the batch.
CAPTION = GenerateConfig(max_tokens=50, min_tokens=5, num_beams=3, no_repeat=3)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pretrained:
    """A model with its processor, in evaluation mode, where and in which precision it runs."""

    model: X2VLM
    processor: Processor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class FolderFeatures:
    """`features_BE`, one row per name (paths below the folder), and the files that could not be read."""

    names: tuple[str, ...]
    features_BE: Tensor
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Ranked:
    """A candidate by its number; `match_logit` (class 1, as in the reference) is None behind the shortlist."""

    index: int
    similarity: float
    match_logit: float | None


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
    rows = [model.project_vision(vision) for vision in _encode_all(pretrained, sources, batch_size)]
    return _joined(rows, model.config.embed_dim)


@torch.inference_mode()
def embed_texts(pretrained: Pretrained, texts: Sequence[str], batch_size: int = 32) -> Tensor:
    """Features (B, E) of length 1, one row per text; comparable with those of `embed_images` by dot product."""
    model = pretrained.model
    rows = []
    for batch in _batches(_as_list(texts), batch_size):
        states_BLD, _ = _encode_texts(pretrained, batch)
        rows.append(model.project_text(states_BLD))
    return _joined(rows, model.config.embed_dim)


@torch.inference_mode()
def embed_folder(pretrained: Pretrained, folder: str | Path, batch_size: int = 32) -> FolderFeatures:
    """Features of every image and clip below `folder`; only one batch of images is in memory at a time.

    SourceUnavailable if there is no such folder.
    """
    _check_batch_size(batch_size)
    base, config = Path(folder), pretrained.processor.config
    names: list[str] = []
    skipped: list[Skipped] = []
    rows: list[Tensor] = []
    waiting: list[Visual] = []

    def flush() -> None:
        if waiting:
            rows.append(pretrained.model.project_vision(_encode_visuals(pretrained, waiting)))
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
    sources, texts = _as_list(sources), _as_list(texts)
    if len(sources) != len(texts):
        raise InvalidSample("uneven_pairs", f"{len(sources)} images, {len(texts)} texts; match takes pairs")
    rows = []
    for vision, batch in zip(_encode_all(pretrained, sources, batch_size), _batches(texts, batch_size), strict=True):
        states_BLD, mask_BL = _encode_texts(pretrained, batch)
        fused_BLD = pretrained.model.fuse(states_BLD, mask_BL, vision)
        rows.append(_probability(pretrained.model.match(fused_BLD)))
    return torch.cat(rows) if rows else torch.zeros(0)


@torch.inference_mode()
def rank_images(
    pretrained: Pretrained, text: str, sources: Sequence[Source], shortlist: int = 128, batch_size: int = 32
) -> list[Ranked]:
    """All `sources`, those that fit `text` best first (image retrieval, X2-VLM 4.3.1).

    The `shortlist` most similar ones are ordered by the matching head, the others follow by similarity.
    """
    vision = _kept(list(_encode_all(pretrained, sources, batch_size)))
    states_1LD, mask_1L = _encode_texts(pretrained, [text])
    if vision is None:
        return []
    cosine_I = pretrained.model.project_vision(vision) @ pretrained.model.project_text(states_1LD)[0]

    def logits(rows: Tensor) -> Tensor:
        some = (states_1LD.expand(len(rows), -1, -1), mask_1L.expand(len(rows), -1))
        return pretrained.model.match(pretrained.model.fuse(*some, vision.select(rows)))

    return _shortlisted(cosine_I, logits, shortlist, batch_size)


@torch.inference_mode()
def rank_texts(
    pretrained: Pretrained, source: Source, texts: Sequence[str], shortlist: int = 128, batch_size: int = 32
) -> list[Ranked]:
    """All `texts`, those that fit the image or clip best first (text retrieval); as `rank_images`."""
    texts = _as_list(texts)
    if not texts:
        return []
    vision = _encode_visuals(pretrained, [pretrained.processor.read(source)])
    features_TE = embed_texts(pretrained, texts, batch_size).to(pretrained.device, pretrained.dtype)
    cosine_T = features_TE @ pretrained.model.project_vision(vision)[0]

    def logits(rows: Tensor) -> Tensor:
        states_BLD, mask_BL = _encode_texts(pretrained, [texts[row] for row in rows.tolist()])
        shared = vision.select(torch.zeros_like(rows))
        return pretrained.model.match(pretrained.model.fuse(states_BLD, mask_BL, shared))

    return _shortlisted(cosine_T, logits, shortlist, batch_size)


@torch.inference_mode()
def ground(pretrained: Pretrained, source: Source, phrases: Sequence[str], batch_size: int = 32) -> list[Grounded]:
    """Where each phrase is in an image; the image is encoded once for all of them (X2-VLM 4.3.4).

    The model always gives a box, also for what is not there: see `match_probability`. InvalidSample
    ("clip_not_grounded") for a clip, since a box in a clip would need a time.
    """
    phrases = _as_list(phrases)
    visual = pretrained.processor.read(source)
    if visual.is_clip:
        raise InvalidSample("clip_not_grounded", f"{visual.name} is a clip; ground one of its frames")
    vision, found = _encode_visuals(pretrained, [visual]), []
    for batch in _batches(phrases, batch_size):
        states_BLD, mask_BL = _encode_texts(pretrained, batch)
        shared = vision.select(torch.zeros(len(batch), dtype=torch.long, device=pretrained.device))
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
    for vision in _encode_all(pretrained, sources, batch_size):
        written = generate(pretrained.model, vision, prompt_ids, mask_id, end_id, config)
        captions += [processor.decode(text.tokens) for text in written]
    return captions


def _shortlisted(
    cosine_C: Tensor, logits_of: Callable[[Tensor], Tensor], shortlist: int, batch_size: int
) -> list[Ranked]:
    """All candidates in order: the shortlist by matching logit, the rest by cosine; ties keep the given order."""
    similarity = cosine_C.float().cpu()
    best = torch.argsort(-similarity, stable=True)
    chosen = best[: max(shortlist, 0)]
    batches = [torch.tensor(batch, device=cosine_C.device) for batch in _batches(chosen.tolist(), batch_size)]
    rows = [logits_of(batch)[:, 1] for batch in batches]
    logits = torch.cat(rows).float().cpu() if rows else torch.zeros(0)
    order = torch.argsort(-logits, stable=True)
    ranked = [Ranked(int(chosen[i]), float(similarity[chosen[i]]), float(logits[i])) for i in order]
    return ranked + [Ranked(int(index), float(similarity[index]), None) for index in best[len(chosen) :]]


def _as_list(items: Sequence[Item]) -> list[Item]:
    """`items`, unless it is one text or one source that somebody forgot to put into a list."""
    if isinstance(items, str | bytes | Path):
        raise InvalidSample("not_a_list", f"{str(items)[:80]!r} is a single value; put it into a list")
    return list(items)


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    _check_batch_size(size)
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def _check_batch_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"batch_size {size}: at least 1")


def _encode_all(pretrained: Pretrained, sources: Sequence[Source], batch_size: int) -> Iterator[VisionTokens]:
    """Tokens batch by batch; sources are read when their batch is due."""
    for batch in _batches(_as_list(sources), batch_size):
        yield _encode_visuals(pretrained, [pretrained.processor.read(source) for source in batch])


def _encode_visuals(pretrained: Pretrained, visuals: Sequence[Visual]) -> VisionTokens:
    """One row per visual, in their order, images and clips mixed."""
    model, processor = pretrained.model, pretrained.processor
    images = [number for number, visual in enumerate(visuals) if not visual.is_clip]
    clips = [number for number, visual in enumerate(visuals) if visual.is_clip]
    parts = []
    if images:
        pixels_BCHW = processor.images([visuals[number].frames[0] for number in images])
        parts.append(model.encode_image(pixels_BCHW.to(pretrained.device, pretrained.dtype)))
    if clips:
        pixels_BFCHW = processor.clips([visuals[number] for number in clips])
        parts.append(model.encode_video(pixels_BFCHW.to(pretrained.device, pretrained.dtype)))
    joined = _kept(parts)
    assert joined is not None
    if not (images and clips):
        return joined
    order = torch.tensor([*images, *clips], device=pretrained.device).argsort()
    return VisionTokens(joined.summary_BD[order], joined.patches_MPD[order])


def _kept(parts: Sequence[VisionTokens]) -> VisionTokens | None:
    """All rows of `parts` in one; None if there are none."""
    if not parts:
        return None
    return VisionTokens(torch.cat([part.summary_BD for part in parts]), torch.cat([part.patches_MPD for part in parts]))


def _encode_texts(pretrained: Pretrained, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States (B, L, D) after the text layers, and the mask (B, L)."""
    ids_BL, mask_BL = (tensor.to(pretrained.device) for tensor in pretrained.processor.texts(texts))
    return pretrained.model.encode_text(ids_BL, mask_BL), mask_BL


def _joined(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([row.float().cpu() for row in rows]) if rows else torch.zeros(0, width)


def _probability(logits_B2: Tensor) -> Tensor:
    return logits_B2.float().softmax(dim=-1)[:, 1].cpu()
