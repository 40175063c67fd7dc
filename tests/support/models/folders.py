"""Small random models with real tokenizers, saved as folders, for tests of what people do with a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import XLMRobertaTokenizer

from x2vlm.data.text.tokenizer import TextTokenizer, UnigramTokenizer, load_tokenizer
from x2vlm.inference import Pretrained
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.inference.processor import processor_for
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.x2vlm import X2VLM, build_model

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "datasets" / "sample"
PHOTOS = sorted((SAMPLE / "media" / "photos").glob("0000*.jpg"))
CLIPS = sorted((SAMPLE / "media" / "clips").iterdir())
MULTILINGUAL_WORDS = ["▁a", "▁dog", "▁Hund", "▁ein", "▁picture", "▁of", "▁犬", "▁", "a", "o", "f", "d", "g", "s", "ß"]


def xlmr_tokenizer() -> XLMRobertaTokenizer:
    """transformers' own XLM-R tokenizer over a toy vocabulary: the oracle, and the maker of our `tokenizer.json`."""
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    words = [(word, -float(number)) for number, word in enumerate(MULTILINGUAL_WORDS, start=1)]
    return XLMRobertaTokenizer(vocab=[*special, *words, ("<mask>", 0.0)])


def tokenizer_of(kind: str, folder: Path) -> TextTokenizer:
    if kind == "bert":
        return load_tokenizer(SAMPLE / "vocab.txt")
    xlmr_tokenizer().save_pretrained(folder)
    return UnigramTokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))


def small_model(kind: str, tokenizer: TextTokenizer, num_frames: int | None = None) -> X2VLM:
    """A random model of that text architecture, with weights large enough that inputs matter."""
    text = {"architecture": kind, "width": 32, "num_layers": 2, "num_heads": 2, "intermediate": 64}
    text |= {"vocab_size": len(tokenizer), "max_positions": 40, "pad_id": tokenizer.pad_id}
    config = ModelConfig(
        vision=VisionConfig(image_res=64, width=32, depth=2, num_heads=2),
        text=TextConfig.model_validate(text),
        fusion=FusionConfig(num_layers=2, num_heads=2, intermediate=64),
        embed_dim=16,
        num_frames=num_frames,
        tie_words=kind == "bert",
    )
    torch.manual_seed(5)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.mul_(3)
    return model


def small_pretrained(kind: str, folder: Path, num_frames: int | None = None) -> Pretrained:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(kind, folder)
    model = small_model(kind, tokenizer, num_frames)
    return Pretrained(model, processor_for(model.config, tokenizer))


def save_folder(pretrained: Pretrained, folder: Path) -> Path:
    save_pretrained(pretrained.model, folder, processor=pretrained.processor)
    return folder


@contextmanager
def counting(module: torch.nn.Module) -> Iterator[list[int]]:
    """Rows of the first argument of every call of `module`."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()
