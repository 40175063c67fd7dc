"""Makes datasets/world/models/clip: a small CLIP for the procedural world, trained from scratch by open_clip.

    OMP_NUM_THREADS=1 python -m pipelines.corpora.models.world_clip --out datasets/world/models/clip

One CPU core. The README that it writes beside the model gives the time and the measured figures. On one machine the
result has the same bytes; on another kind of CPU floating point may differ in the last bits.

The training world has a seed that no test uses. There are two phases, because shapes of a few pixels are learned slowly
from whole images: first objects cut out of the images against their names (a ninth of an image's cost each), then whole
images against captions. In a batch, every text that is true of an image is a positive and every text that is false of
it a negative (`pipelines.corpora.models.world_pairs`); the loss is that of SigLIP (Zhai et al. 2023), with positives
and negatives weighted equally.
"""

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus
from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # generated at run time

from pipelines.corpora.models.tiny_text import text_config
from pipelines.corpora.models.world_pairs import Truth, examples, named_looks
from pipelines.corpora.world.config import WorldConfig
from x2vlm.data.scores.clip_score import CONFIG_NAME, WEIGHTS_NAME

SEED = 20240601  # of the training world and of all draws
SCENES = 14_000
IMAGE_SIZE = 96  # pixels; a third of it is a cell of the last feature map, and the size of a cut-out thing
CELLS = 3
MEAN, STD = 0.5, 0.25
CONTEXT_LENGTH = 32
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
THING_STEPS, THINGS_A_STEP, NAMES_A_STEP = 2500, 192, 96
IMAGE_STEPS, IMAGES_PER_STEP, TEXTS_PER_IMAGE = 4500, 64, 2
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 40

log = logging.getLogger("world_clip")

# Tensor shapes: P images, N things, B batch, T texts, D embedding, C channels, H and W pixels, L tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, made if it is not there")
    parser.add_argument("--scenes", type=int, default=SCENES, help="of the training world")
    parser.add_argument("--thing-steps", type=int, default=THING_STEPS)
    parser.add_argument("--picture-steps", type=int, default=IMAGE_STEPS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    began = time.process_time()
    corpus, model = prepare(arguments.out, WorldConfig(seed=SEED, scenes=arguments.scenes))
    log.info("event=corpus images=%d cpu_seconds=%.0f", len(corpus.pixels_PCHW), time.process_time() - began)
    train_things(model, corpus, arguments.thing_steps)
    loss, boundary = train_images(model, corpus, arguments.picture_steps)
    weights = {name: value.detach().half().contiguous() for name, value in sorted(model.state_dict().items())}
    save_file(weights, arguments.out / WEIGHTS_NAME, metadata={"format": "pt"})
    (arguments.out / WEIGHTS_NAME).chmod(0o644)  # safetensors writes 0600
    seconds = time.process_time() - began
    write_readme(arguments.out, len(corpus.pixels_PCHW), len(corpus.truth.texts), seconds, loss, boundary)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size} bytes, {seconds:.0f} CPU seconds, loss {loss:.3f}, boundary {boundary:.3f}")


@dataclass(frozen=True)
class Corpus:
    """The training data; pixels as bytes after the model's own preprocessing."""

    pixels_PCHW: Tensor
    is_clip_P: Tensor
    truth: Truth
    first_text_P: np.ndarray  # texts of image p are first_text[p] .. first_text[p + 1] - 1
    tokens_TL: Tensor
    thing_image_N: np.ndarray
    thing_corner_N2: np.ndarray  # top and left of the cut-out, in the padded image
    thing_look_N: np.ndarray
    name_tokens_NL: Tensor


def prepare(out: Path, config: WorldConfig) -> tuple[Corpus, Any]:
    """The training corpus, and the untrained model, whose configuration and tokenizer are written to `out`."""
    found = list(examples(config))
    truth = Truth(found)
    names = [thing.text for example in found for thing in example.things]
    write_tokenizer([*truth.texts, *names], out)
    (out / CONFIG_NAME).write_text(json.dumps(model_config(out), indent=2) + "\n", encoding="utf-8")
    source = f"local-dir:{out}"
    model, _, preprocess = open_clip.create_model_and_transforms(source, load_weights=False)
    tokenize = open_clip.get_tokenizer(source)
    corners = [
        (round(thing.y * IMAGE_SIZE), round(thing.x * IMAGE_SIZE)) for example in found for thing in example.things
    ]
    looks = {look: number for number, look in enumerate(sorted({min(named_looks(name)) for name in names}))}
    corpus = Corpus(
        pixels_PCHW=torch.stack([_to_bytes(preprocess(example.image)) for example in found]),
        is_clip_P=torch.tensor([example.is_clip for example in found]),
        truth=truth,
        first_text_P=np.searchsorted(truth.owner, np.arange(len(found) + 1)),
        tokens_TL=tokenize(truth.texts),
        thing_image_N=np.array([number for number, example in enumerate(found) for _ in example.things]),
        thing_corner_N2=np.array(corners),
        thing_look_N=np.array([looks[min(named_looks(name))] for name in names]),
        name_tokens_NL=tokenize(names),
    )
    return corpus, model.to(memory_format=torch.channels_last)  # a quarter less time for convolutions (5.1 of 7.2 ms)


def _to_bytes(image_CHW: Tensor) -> Tensor:
    return ((image_CHW * STD + MEAN) * 255).round().to(torch.uint8)


def _to_floats(pixels_BCHW: Tensor) -> Tensor:
    return (pixels_BCHW.float() / 255 - MEAN) / STD


def model_config(folder: Path) -> dict[str, object]:
    """The open_clip configuration of the model whose tokenizer lies in `folder`.

    Images are resized to a square: clips are 4 to 3, and a crop would cut off their edges.
    """
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    text = text_config("world_clip", tokenizer, CONTEXT_LENGTH)
    vision = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 14, "head_width": 32}
    preprocess = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    model = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def write_tokenizer(texts: Sequence[str], out: Path) -> None:
    """A tokenizer of the words of the texts and every printable character: no English text has unknown pieces."""
    out.mkdir(parents=True, exist_ok=True)
    spaced = ("".join(char if char.isalnum() else f" {char} " for char in text.lower()) for text in texts)
    words = sorted({word for text in spaced for word in text.split()})
    printable = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    inner = [f"##{char}" for char in printable if char.isalnum()]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *words, *printable, *inner]))
    tokenizer = BertTokenizerFast(
        vocab={token: number for number, token in enumerate(tokens)},
        do_lower_case=True,
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.save_pretrained(out)


def train_things(model: Any, corpus: Corpus, steps: int) -> None:
    """First phase: a thing cut out of its image, in one cell of the last feature map, against names of things.

    Cross-entropy over the names, with all matching names as one class: similar ones get the largest gradient.
    """
    side = IMAGE_SIZE // CELLS
    padded_PCHW = torch.nn.functional.pad(corpus.pixels_PCHW, (side,) * 4, value=128)
    draws = np.random.Generator(np.random.PCG64(SEED))
    optimizer, schedule = _optimizer(list(model.named_parameters()), [], steps)
    losses, began = [], time.process_time()
    model.train()
    for step in range(steps):
        chosen = draws.choice(len(corpus.thing_look_N), THINGS_A_STEP, replace=False)
        shift = draws.integers(-4, 5, (THINGS_A_STEP, 2))
        corner = corpus.thing_corner_N2[chosen] + side - side // 2 + shift
        cut = [
            padded_PCHW[image, :, top : top + side, left : left + side]
            for image, (top, left) in zip(corpus.thing_image_N[chosen], corner, strict=True)
        ]
        pixels_BCHW = _to_floats(torch.stack(cut)).contiguous(memory_format=torch.channels_last)
        cell_B = torch.from_numpy(draws.integers(0, CELLS * CELLS, THINGS_A_STEP))
        names = chosen[:NAMES_A_STEP]
        image_BD = normalize(embed_in_cell(model.visual, pixels_BCHW, cell_B), dim=-1)
        text_TD = normalize(model.encode_text(corpus.name_tokens_NL[names]), dim=-1)
        logit_BT = model.logit_scale.exp() * image_BD @ text_TD.T
        fits_BT = torch.from_numpy(corpus.thing_look_N[chosen][:, None] == corpus.thing_look_N[names][None, :])
        found_B = fits_BT.any(dim=1)
        right_B = logit_BT.masked_fill(~fits_BT, -math.inf).logsumexp(dim=1)[found_B]
        texts_T = torch.arange(len(names))  # text t is the name of thing t: in its column only one thing is correct
        column_TB = logit_BT.T.masked_fill(fits_BT.T & (texts_T[:, None] != torch.arange(len(chosen))), -math.inf)
        loss = (logit_BT.logsumexp(dim=1)[found_B] - right_B).mean() + cross_entropy(column_TB, texts_T)
        _step(loss, model, optimizer, schedule)
        losses.append(loss.item() / 2)
        if step % 25 == 24:
            hits = fits_BT[torch.arange(len(chosen)), logit_BT.argmax(dim=1)][found_B].float().mean().item()
            log.info(
                "event=things step=%d loss=%.3f right=%.3f cpu_seconds=%.0f",
                *(step + 1, np.mean(losses[-25:]), hits, time.process_time() - began),
            )


def embed_in_cell(visual: Any, pixels_BCHW: Tensor, cell_B: Tensor) -> Tensor:
    """(B, D) embeddings of images of one cell's size, placed in that cell of an otherwise empty image."""
    feature_BCHW = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels_BCHW)))))
    feature_BC = feature_BCHW.mean(dim=(2, 3))
    one_BN = torch.nn.functional.one_hot(cell_B, CELLS * CELLS).to(feature_BC.dtype)
    embedded: Tensor = visual.attnpool((feature_BC[:, :, None] * one_BN[:, None, :]).unflatten(2, (CELLS, CELLS)))
    return embedded


def train_images(model: Any, corpus: Corpus, steps: int) -> tuple[float, float]:
    """Second phase: images against captions. Mean loss of the last 50 steps, and the cosine of the decision
    boundary of the loss."""
    scale, bias = (torch.nn.Parameter(torch.tensor(value)) for value in (math.log(12.0), -3.0))
    optimizer, schedule = _optimizer(list(model.named_parameters()), [scale, bias], steps)
    draws = np.random.Generator(np.random.PCG64(SEED + 1))
    losses, began = [], time.process_time()
    order = np.empty(0, dtype=np.int64)
    model.train()
    for step in range(steps):
        if len(order) < IMAGES_PER_STEP:
            order = draws.permutation(len(corpus.pixels_PCHW))
        chosen, order = order[:IMAGES_PER_STEP], order[IMAGES_PER_STEP:]
        texts = np.concatenate([_texts_of(corpus, image, draws) for image in chosen])
        is_true, is_wrong = (torch.from_numpy(table) for table in corpus.truth.judge(chosen, texts))
        image_BCHW = augment(_to_floats(corpus.pixels_PCHW[chosen]), corpus.is_clip_P[chosen])
        image_BD = normalize(model.encode_image(image_BCHW), dim=-1)
        text_TD = normalize(model.encode_text(corpus.tokens_TL[texts]), dim=-1)
        logit_BT = scale.exp() * image_BD @ text_TD.T + bias
        loss = (softplus(-logit_BT[is_true]).mean() + softplus(logit_BT[is_wrong]).mean()) / 2
        _step(loss, model, optimizer, schedule)
        losses.append(loss.item())
        if step % 25 == 24:
            missed = (logit_BT[is_true] < 0).float().mean().item()
            accepted = (logit_BT[is_wrong] >= 0).float().mean().item()
            log.info(
                "event=images step=%d loss=%.3f missed=%.3f accepted=%.3f boundary=%.3f cpu_seconds=%.0f",
                *(step + 1, np.mean(losses[-25:]), missed, accepted, -bias.item() / math.exp(scale.item())),
                time.process_time() - began,
            )
    model.eval()
    return float(np.mean(losses[-50:])), -bias.item() / math.exp(scale.item())


def _texts_of(corpus: Corpus, image: int, draws: np.random.Generator) -> np.ndarray:
    first, end = corpus.first_text_P[image], corpus.first_text_P[image + 1]
    chosen: np.ndarray = first + draws.permutation(end - first)[:TEXTS_PER_IMAGE]
    return chosen


def augment(image_BCHW: Tensor, is_clip_B: Tensor) -> Tensor:
    """The batch, shifted by up to 4 pixels. Texts of clips contain neither left nor right, so half are mirrored."""
    mirrored = is_clip_B & (torch.rand(len(is_clip_B)) < 0.5)
    image_BCHW = torch.where(mirrored[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
    down, right = (int(torch.randint(-4, 5, ())) for _ in range(2))
    return image_BCHW.roll((down, right), dims=(-2, -1)).contiguous(memory_format=torch.channels_last)


def _optimizer(named: Sequence[tuple[str, Tensor]], undecayed: list[Tensor], steps: int) -> tuple[Any, Any]:
    """AdamW with a warm-up and a cosine; gains, biases and temperatures do not decay."""
    decayed = [value for _, value in named if value.ndim > 1]
    undecayed = [*undecayed, *(value for _, value in named if value.ndim <= 1)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, 0.52 + 0.48 * math.cos(math.pi * step / steps))
    )
    return optimizer, schedule


def _step(loss: Tensor, model: Any, optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, 4.6052)  # temperature at least 0.01, as CLIP was trained


def write_readme(out: Path, num_images: int, num_texts: int, seconds: float, loss: float, boundary: float) -> None:
    """Writes the README of the folder with the figures of this run."""
    sha256 = hashlib.sha256((out / WEIGHTS_NAME).read_bytes()).hexdigest()
    text = f"""# A CLIP of the procedural world

Made by `OMP_NUM_THREADS=1 python -m pipelines.corpora.models.world_clip --out datasets/world/models/clip`
in {seconds:.0f} CPU seconds on one core, from {num_images} images (frames of clips and still images, four to one) and
{num_texts} texts of a world with seed {SEED}. It contains no other data; its licence is that of the project.

**It knows coloured shapes and nothing else**: it makes the score stage and thresholds testable against a known truth.
Never filter real data with it.

Weights: sha256 {sha256}, stored in half precision and loaded in single.
Loss of the last 50 steps: {loss:.3f} (chance is {math.log(2):.3f}). The loss puts the boundary between right and wrong
pairs at a cosine of {boundary:.2f}. What the model finds in a world that it has not seen is measured by
`tests/corpora/world/test_world_clip.py`.
"""
    (out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
