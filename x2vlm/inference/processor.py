"""What turns images, clips and texts into a model's input, saved beside the model so that the two never part.

`preprocessor_config.json` speaks Hugging Face's words (`AutoImageProcessor` understands it) and holds ours under the
key `x2vlm`; the vocabulary is `vocab.txt` (BERT) or `tokenizer.json` (XLM-R), tied to the config by its sha256.
B rows, C channels, F frames, H W pixels, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from x2vlm.config import FrozenConfig, parse_config
from x2vlm.data.loading.batch import MEAN, STD
from x2vlm.data.loading.transforms import evaluation_pixels
from x2vlm.data.text.encoding import TextEncoder
from x2vlm.data.text.tokenizer import TextTokenizer, UnigramTokenizer, WordPieceTokenizer, parse_vocabulary
from x2vlm.errors import ConfigError, CorruptArtifact, InvalidSample
from x2vlm.inference.visuals import Source, Visual, read_visual
from x2vlm.models.config import ModelConfig
from x2vlm.models.files import PROCESSOR_FILE, TOKENIZER_FILES

TOKENIZER_OF_TEXT = {"bert": "wordpiece", "xlm-roberta": "unigram"}


class ProcessorConfig(FrozenConfig):
    """How input is prepared; the defaults are those of the released evaluations (texts of 40 tokens, 3 frames).

    A clip is first read at `frames_per_second`, then `frames_per_clip` of those frames are taken evenly.
    """

    image_res: int = Field(ge=1)
    max_tokens: int = Field(default=40, ge=3)
    frames_per_clip: int = Field(default=3, ge=1)
    frames_per_second: float = Field(default=1.0, gt=0)
    tokenizer: Literal["wordpiece", "unigram"] = "wordpiece"
    lowercase: bool = True  # of WordPiece; an XLM-R file says so itself


@dataclass(frozen=True)
class Processor:
    """Images, clips and texts to tensors, exactly as evaluation prepares them."""

    config: ProcessorConfig
    tokenizer: TextTokenizer

    def read(self, source: Source) -> Visual:
        """`read_visual` with this processor's sampling of clips."""
        return read_visual(source, self.config.frames_per_clip, self.config.frames_per_second)

    def read_image(self, source: Source) -> Image.Image:
        """The image in `source`; InvalidSample ("not_an_image") for a clip."""
        visual = self.read(source)
        if visual.is_clip:
            raise InvalidSample("not_an_image", f"{visual.name} is a clip; take one of its frames")
        return visual.frames[0]

    def images(self, pil_images: Sequence[Image.Image]) -> Tensor:
        """Pixels (B, C, H, W) of RGB images, squashed to squares and normalised."""
        return torch.stack([evaluation_pixels(image, self.config.image_res) for image in pil_images])

    def clips(self, clips: Sequence[Visual]) -> Tensor:
        """Pixels (B, F, C, H, W) of clips."""
        return torch.stack([self.images(clip.frames) for clip in clips])

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of cleaned texts, padded to the longest.

        InvalidSample, naming the text, with rule empty_caption if nothing but punctuation is in it, or not_utf8 if it
        came from bytes that are no text. A text of unknown words alone gives a warning.
        """
        rows = [self._ids(text) for text in texts]
        length = max((len(row) for row in rows), default=0)
        ids = [row + [self.tokenizer.pad_id] * (length - len(row)) for row in rows]
        mask = [[True] * len(row) + [False] * (length - len(row)) for row in rows]
        shape = (len(rows), length)
        return torch.tensor(ids, dtype=torch.long).view(shape), torch.tensor(mask, dtype=torch.bool).view(shape)

    def prompt(self, text: str) -> list[int]:
        """Start token and pieces of `text`, without the end token: what a caption goes on from."""
        return self.tokenizer.encode(text.lower(), self.config.max_tokens)[:-1]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return self.tokenizer.decode(ids)

    def _ids(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise InvalidSample("not_a_text", f"{text!r} is a {type(text).__name__}, not a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidSample("not_utf8", f"{text!r} holds bytes that are no UTF-8") from None
        try:
            ids = TextEncoder(self.tokenizer, self.config.max_tokens).encode(text)
        except InvalidSample as error:
            raise InvalidSample(error.rule, f"{text!r}: {error.message}") from None
        if not self.decode(ids).strip():  # unknown tokens, and of XLM-R bare marks of a word's start
            warnings.warn(
                f"{text[:80]!r}: no word of it is in the vocabulary. The model sees unknown tokens alone, and answers "
                "the same for any such text; is it in a language that the model was trained on?",
                stacklevel=4,
            )
        return ids


def processor_for(model: ModelConfig, tokenizer: TextTokenizer, **changes: Any) -> Processor:
    """The processor of a model: its image size, its frames, as many tokens as it has positions for (at most 40).

    `changes` are fields of ProcessorConfig. ConfigError if tokenizer and model do not fit.
    """
    values: dict[str, Any] = {
        "image_res": model.vision.image_res,
        "max_tokens": min(ProcessorConfig.model_fields["max_tokens"].default, num_positions(model)),
        "frames_per_clip": model.num_frames or ProcessorConfig.model_fields["frames_per_clip"].default,
        "tokenizer": "unigram" if isinstance(tokenizer, UnigramTokenizer) else "wordpiece",
        "lowercase": getattr(tokenizer, "lowercase", True),
    }
    processor = Processor(parse_config(ProcessorConfig, values | changes, "processor"), tokenizer)
    check_fit(model, processor, "processor")
    return processor


def save_processor(processor: Processor, folder: Path) -> None:
    """Writes `preprocessor_config.json` and the tokenizer's file; equal processors give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = _tokenizer_content(processor.tokenizer).encode("utf-8")
    (folder / TOKENIZER_FILES[processor.config.tokenizer]).write_bytes(content)
    ours = processor.config.model_dump(mode="json")
    values = _hub_words(processor.config) | {"x2vlm": ours, "tokenizer_sha256": hashlib.sha256(content).hexdigest()}
    (folder / PROCESSOR_FILE).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_processor(folder: Path) -> Processor:
    """What `save_processor` wrote; raises what `read_processor` does."""
    return read_processor({name: folder / name for name in (PROCESSOR_FILE, *TOKENIZER_FILES.values())})


def read_processor(files: Mapping[str, Path]) -> Processor:
    """`load_processor` for files that lie apart, by the names they have in a model's folder.

    ConfigError if a file is missing or says something that this code does not do; CorruptArtifact if the vocabulary is
    not the one that the config was written with.
    """
    path = files[PROCESSOR_FILE]
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file, so nothing says how this model's input is prepared; save the model again with "
            "save_pretrained(model, folder, processor=processor_for(model.config, tokenizer))"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("x2vlm"), dict):
        raise ConfigError(f"{path}: no key `x2vlm`: not written by save_pretrained")
    config = parse_config(ProcessorConfig, values["x2vlm"], str(path))
    for key, expected in _hub_words(config).items():
        if values.get(key) != expected:
            raise ConfigError(f"{path}: {key} is {values.get(key)!r}, this processor does {expected!r}")
    name = TOKENIZER_FILES[config.tokenizer]
    if name not in files:
        raise ConfigError(f"{path}: a {config.tokenizer} tokenizer needs {name}, and there is {sorted(files)}")
    return Processor(config, _read_tokenizer(config, files[name], values.get("tokenizer_sha256")))


def check_fit(model: ModelConfig, processor: Processor, origin: str) -> None:
    """ConfigError, naming `origin` and both numbers, if the processor makes what the model cannot take."""
    config, tokenizer, text = processor.config, processor.tokenizer, model.text
    problems = []
    if config.image_res != model.vision.image_res:
        problems.append(f"image_res is {config.image_res}, the model takes {model.vision.image_res}")
    if config.tokenizer != TOKENIZER_OF_TEXT[text.architecture]:
        problems.append(f"tokenizer is {config.tokenizer}, a {text.architecture} model needs the other kind")
    if len(tokenizer) > text.vocab_size:
        problems.append(f"the vocabulary has {len(tokenizer)} entries, the model only {text.vocab_size}")
    if tokenizer.pad_id != text.pad_id:
        problems.append(f"padding has id {tokenizer.pad_id}, the model expects {text.pad_id}")
    if config.max_tokens > num_positions(model):
        problems.append(f"max_tokens is {config.max_tokens}, the model has {num_positions(model)} positions")
    if model.num_frames is not None and config.frames_per_clip > model.num_frames:
        problems.append(f"frames_per_clip is {config.frames_per_clip}, the model has {model.num_frames} positions")
    if problems:
        raise ConfigError(f"{origin}: does not fit the model: {'; '.join(problems)}; take the files of one folder")


def num_positions(model: ModelConfig) -> int:
    """Tokens that a text may have; RoBERTa starts counting behind its padding token."""
    text = model.text
    return text.max_positions - (text.pad_id + 1 if text.architecture == "xlm-roberta" else 0)


def _hub_words(config: ProcessorConfig) -> dict[str, Any]:
    """What transformers' image processors read; 3 is Pillow's bicubic."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": config.image_res, "width": config.image_res},
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _tokenizer_content(tokenizer: TextTokenizer) -> str:
    match tokenizer:
        case UnigramTokenizer():
            return tokenizer.content
        case WordPieceTokenizer():
            return "\n".join(tokenizer.entries) + "\n"
    raise ConfigError(f"{type(tokenizer).__name__} cannot be saved; use WordPieceTokenizer or UnigramTokenizer")


def _read_tokenizer(config: ProcessorConfig, path: Path, recorded_sha256: object) -> TextTokenizer:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable tokenizer file: {error}; copy the folder again") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != recorded_sha256:
        raise CorruptArtifact(
            f"{path}: sha256 is {actual[:12]}…, {PROCESSOR_FILE} records {str(recorded_sha256)[:12]}…: another "
            "vocabulary would give every word another meaning; copy both files from one folder"
        )
    if config.tokenizer == "unigram":
        return UnigramTokenizer(text, str(path))
    return parse_vocabulary(text, str(path), config.lowercase)
