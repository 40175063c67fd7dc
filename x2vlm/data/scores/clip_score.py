"""How well images fit a text, by a CLIP model: the cosine of their embeddings.

The only file that imports open_clip, and only when a model is loaded: planning a run must not wait seconds for it.

Scores of different models are not comparable, so a model is identified by the sha256 of its weights, never by its name.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.extras import needs

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
HUB_PREFIX = "hf-hub:"

# Tensor shapes: B images or texts, C channels, H and W pixels, L tokens, D width of the embedding


@dataclass(frozen=True)
class Clip:
    """A CLIP model ready to score: weights in evaluation mode on `device`, with its own preprocessing and tokenizer."""

    model: Any
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    weights_sha256: str
    device: torch.device


def load_clip_files(files: Mapping[str, Path], device: str = "auto") -> Clip:
    """The model of an open_clip folder given file by file (name -> path).

    Needs open_clip_config.json and one *.safetensors file; tokenizer files where the config names a tokenizer of
    transformers. ConfigError for anything else. Offline, unless the config builds a tower from the hub (hf_model_name).
    """
    with needs("a CLIP model"):
        import open_clip

    weights = [path for name, path in files.items() if name.endswith(".safetensors")]
    if CONFIG_NAME not in files or len(weights) != 1:
        found = ", ".join(sorted(files)) or "none"
        raise ConfigError(f"a CLIP folder needs {CONFIG_NAME} and exactly one .safetensors file; its files: {found}")
    # open_clip and transformers find files by their names in one folder; cached inputs may be anywhere.
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        for name, path in files.items():
            if Path(name).name != name:
                raise ConfigError(f"CLIP file {name!r}: expected a plain file name")
            # open_clip chooses among several weight files: give it only the one that was hashed.
            if path == weights[0]:
                (Path(folder) / WEIGHTS_NAME).symlink_to(path.resolve())
            elif not name.endswith((".bin", ".pth", ".pt")):
                (Path(folder) / name).symlink_to(path.resolve())
        source = f"local-dir:{folder}"
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                source, load_weights=True, require_pretrained=True, weights_only=True
            )
            tokenize = open_clip.get_tokenizer(source)
        except (ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
            raise ConfigError(f"the CLIP model in {weights[0].parent} cannot be loaded: {error}") from error
    return _ready(model, preprocess, tokenize, _sha256(weights[0]), device)


def load_clip_folder(folder: Path, device: str = "auto") -> Clip:
    """`load_clip_files` for the files of a local folder."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()} if folder.is_dir() else {}
    return load_clip_files(files, device)


def load_clip_name(name: str, weights_sha256: str, device: str = "auto") -> Clip:
    """The published model `<architecture>/<tag>` (as in `open_clip.list_pretrained()`) or `hf-hub:<owner>/<model>`.

    Downloads it where it is not cached. SourceUnavailable if it cannot be downloaded or its weights are not those
    expected.
    """
    with needs("a CLIP model"):
        import open_clip

    architecture, _, tag = name.partition("/")
    try:
        if name.startswith(HUB_PREFIX):
            architecture, path = name, open_clip.download_pretrained_from_hf(name.removeprefix(HUB_PREFIX))
        else:
            known = open_clip.get_pretrained_cfg(architecture, tag)
            if not known:
                raise ConfigError(f"open_clip knows no model {name!r}; choose one of open_clip.list_pretrained()")
            path = open_clip.download_pretrained(known)
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceUnavailable(
            f"CLIP model {name}: its weights cannot be downloaded ({error}). "
            "Fetch them by hand and name their folder in the experiment instead"
        ) from error
    if (actual := _sha256(Path(path))) != weights_sha256:
        raise SourceUnavailable(
            f"CLIP model {name}: its weights have sha256 {actual}, the experiment expects {weights_sha256}. "
            "Scores of other weights are other numbers: change the experiment if this is meant"
        )
    pretrained = None if name.startswith(HUB_PREFIX) else path
    model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=pretrained, weights_only=True)
    return _ready(model, preprocess, open_clip.get_tokenizer(architecture), weights_sha256, device)


def frame_scores(clip: Clip, images: Sequence[Image.Image], text: str, batch_size: int = 64) -> list[float]:
    """The cosine of each image with `text`, in [-1, 1]."""
    return score_pairs(clip, [(images, text)], batch_size)[0]


def score_pairs(
    clip: Clip, pairs: Sequence[tuple[Sequence[Image.Image], str]], batch_size: int = 64
) -> list[list[float]]:
    """For each (frames, text) the cosine of every frame with the text; images and texts are embedded in batches.

    float32 on a CPU. On a GPU the towers run in bfloat16 and the cosine in float32.
    """
    text_BD = embed_texts(clip, [text for _, text in pairs], batch_size)
    frames = [image for images, _ in pairs for image in images]
    if not frames:
        return [[] for _ in pairs]
    pixels_BCHW = torch.stack([clip.preprocess(image) for image in frames])
    frame_BD = embed_pixels(clip, pixels_BCHW, batch_size)
    owner_B = torch.tensor([number for number, (images, _) in enumerate(pairs) for _ in images], dtype=torch.long)
    cosine_B = iter((frame_BD * text_BD[owner_B]).sum(dim=-1).tolist())
    return [[next(cosine_B) for _ in images] for images, _ in pairs]


@torch.inference_mode()
def embed_pixels(clip: Clip, pixels_BCHW: Tensor, batch_size: int = 64) -> Tensor:
    """(B, D) float32 embeddings of unit length, on the CPU, of images as `clip.preprocess` makes them."""
    parts = []
    for chunk_BCHW in torch.split(pixels_BCHW, batch_size):
        with _precision(clip.device):
            feature_BD = clip.model.encode_image(chunk_BCHW.to(clip.device, non_blocking=True))
        parts.append(normalize(feature_BD.float(), dim=-1))
    return torch.cat(parts).cpu() if parts else torch.empty(0)


@torch.inference_mode()
def embed_texts(clip: Clip, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """(B, D) float32 embeddings of unit length, on the CPU."""
    parts = []
    for start in range(0, len(texts), batch_size):
        tokens_BL = clip.tokenize(list(texts[start : start + batch_size])).to(clip.device)
        with _precision(clip.device):
            feature_BD = clip.model.encode_text(tokens_BL)
        parts.append(normalize(feature_BD.float(), dim=-1))
    return torch.cat(parts).cpu() if parts else torch.empty(0)


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def _ready(model: Any, preprocess: Any, tokenize: Any, weights_sha256: str, device: str) -> Clip:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.float().eval().requires_grad_(False).to(device)
    return Clip(model, preprocess, tokenize, weights_sha256, torch.device(device))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
