"""Makes datasets/sample/models/tiny_clip: a CLIP model small enough to ship, trained on the sample corpus by open_clip.

    OMP_NUM_THREADS=1 python -m pipelines.corpora.models.sample_clip --sample datasets/sample

Needs datasets/sample/vocab.txt (pipelines.corpora.models.sample_vocabulary). One CPU core, about a minute. On one
machine the same corpus gives the same bytes; on another kind of CPU floating point may differ in the last bits.

The model has memorised its few images. It exists so that the scorer runs on real weights without a download.
"""

import argparse
import json
import logging
import math
import time
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # generated at run time

from pipelines.corpora.models.sample_texts import caption_pairs
from pipelines.corpora.models.sample_vocabulary import vocabulary_path
from pipelines.corpora.models.tiny_text import text_config
from x2vlm.data.media.images import open_image
from x2vlm.data.media.video import sample_clip
from x2vlm.data.scores.clip_score import load_clip_folder, score_pairs

SEED = 20240229
STEPS = 600
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 50
CONTEXT_LENGTH = 32
CLIP_SUFFIXES = {".mp4", ".webm"}

# Tensor shapes: P images, B batch, C channels, H and W pixels, L tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True, help="folder of the sample corpus")
    parser.add_argument(
        "--out", type=Path, help="where the model goes (default: models/tiny_clip in the sample folder)"
    )
    arguments = parser.parse_args()
    out = arguments.out or arguments.sample / "models/tiny_clip"
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    images, pairs = load_pairs(arguments.sample)
    write_tokenizer(vocabulary_path(arguments.sample), out)
    (out / "open_clip_config.json").write_text(json.dumps(model_config(out), indent=2) + "\n", encoding="utf-8")
    started = time.monotonic()
    model, loss = train(out, images, pairs)
    seconds = time.monotonic() - started
    # Half precision halves the shipped size; open_clip loads it into float32.
    weights = {name: value.detach().half().contiguous() for name, value in sorted(model.state_dict().items())}
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    (out / "open_clip_model.safetensors").chmod(0o644)  # safetensors writes 0600, which other users cannot serve
    figures = measure(out, images, pairs)
    write_readme(out, len(pairs), len(images), seconds, loss, figures)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size} bytes, {seconds:.0f} s, loss {loss:.3f}, {figures}")


def model_config(folder: Path) -> dict[str, object]:
    """The open_clip configuration of the model whose tokenizer lies in `folder`."""
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    text = text_config("tiny_clip", tokenizer, CONTEXT_LENGTH)
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32}
    return {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}


def write_tokenizer(vocabulary: Path, out: Path) -> None:
    """tokenizer.json and tokenizer_config.json of the sample's vocabulary, as transformers reads them."""
    out.mkdir(parents=True, exist_ok=True)
    # transformers 5 takes `vocab` as a mapping and silently ignores `vocab_file`.
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizerFast(
        vocab={token: number for number, token in enumerate(tokens)},
        do_lower_case=True,
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.save_pretrained(out)


def load_pairs(sample: Path) -> tuple[list[Image.Image], list[tuple[int, str]]]:
    """All photos and frames, and (number of the image, caption): every frame of a clip has the clip's captions."""
    images: list[Image.Image] = []
    numbers: dict[Path, list[int]] = {}
    pairs = []
    for caption, path in caption_pairs(sample):
        if path not in numbers:
            data = path.read_bytes()
            found = sample_clip(data).frames if path.suffix in CLIP_SUFFIXES else (open_image(data),)
            numbers[path] = list(range(len(images), len(images) + len(found)))
            images += found
        pairs += [(number, caption) for number in numbers[path]]
    return images, pairs


def train(folder: Path, images: list[Image.Image], pairs: list[tuple[int, str]]) -> tuple[torch.nn.Module, float]:
    """The trained model and its mean loss over the last 50 steps. A batch never contains an image twice."""
    source = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(source, load_weights=False)
    tokens_BL = open_clip.get_tokenizer(source)([caption for _, caption in pairs])
    image_PCHW = torch.stack([preprocess(image) for image in images])
    captions_of = [[row for row, (number, _) in enumerate(pairs) if number == image] for image in range(len(images))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, (STEPS - step) / (STEPS - WARM_UP_STEPS))
    )
    clip_loss = open_clip.ClipLoss()
    losses = []
    model.train()
    for _ in range(STEPS):
        chosen = torch.randperm(len(images))[:BATCH_SIZE].tolist()
        rows = [captions_of[image][int(torch.randint(len(captions_of[image]), ()))] for image in chosen]
        image_BCHW = augment(image_PCHW[chosen])
        loss = clip_loss(*model(image_BCHW, tokens_BL[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # temperature at least 0.01, as CLIP was trained
        losses.append(loss.item())
    return model.eval(), sum(losses[-50:]) / 50


def augment(image_BCHW: torch.Tensor) -> torch.Tensor:
    """The batch, mirrored with probability 0.5, shifted by up to 4 of 64 pixels."""
    if torch.rand(()) < 0.5:
        image_BCHW = image_BCHW.flip(-1)
    down, right = (int(torch.randint(-4, 5, ())) for _ in range(2))
    return image_BCHW.roll((down, right), dims=(-2, -1))


def measure(folder: Path, images: list[Image.Image], pairs: list[tuple[int, str]]) -> dict[str, float]:
    """Mean score of the pairs of the corpus, of the same captions with another image, and how many pass 0.25."""
    clip = load_clip_folder(folder, device="cpu")
    shift = len(images) // 2
    own = [scores[0] for scores in score_pairs(clip, [([images[number]], text) for number, text in pairs])]
    others = [([images[(number + shift) % len(images)]], text) for number, text in pairs]
    other = [scores[0] for scores in score_pairs(clip, others)]
    return {
        "own": sum(own) / len(own),
        "other": sum(other) / len(other),
        "own_at_least_0.25": sum(score >= 0.25 for score in own) / len(own),
        "other_at_least_0.25": sum(score >= 0.25 for score in other) / len(other),
    }


def write_readme(
    out: Path, num_pairs: int, num_images: int, seconds: float, loss: float, figures: dict[str, float]
) -> None:
    """Writes the README of the folder with the figures of this run."""
    text = f"""# tiny_clip

A CLIP model of a few hundred thousand weights, trained by open_clip on the training captions of this sample corpus
alone ({num_pairs} pairs of {num_images} photos and frames; no held-out photo or caption).
**It exercises the scorer; it is no judge of quality**: it has memorised these images and knows nothing else.
Never filter real data with it.

Made by `OMP_NUM_THREADS=1 python -m pipelines.corpora.models.sample_clip --sample datasets/sample`
in about {round(seconds, -1):.0f} s on one CPU core: {STEPS} steps of {BATCH_SIZE} pairs.
Mean loss of the last 50 steps: {loss:.2f} (chance is {math.log(BATCH_SIZE):.2f}).

| pairs | mean score | score of 0.25 or more |
|---|---|---|
| caption with its own image | {figures["own"]:.2f} | {figures["own_at_least_0.25"]:.0%} |
| caption with another image | {figures["other"]:.2f} | {figures["other_at_least_0.25"]:.0%} |

Weights are stored in half precision and loaded in single.
The tokenizer holds the entries of `../../vocab.txt`, which `pipelines.corpora.models.sample_vocabulary` makes.
"""
    (out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
