"""Cost of re-ranking a retrieval of COCO's size: keys and values of an image once, or for every pair again.

    python -m tests.benchmarks.reranking [--images 5000] [--texts 25000] [--shortlist 256] [--sample 4]

Shortlists of both directions and ranks are computed for all of them, from random features. Every pair of a `--sample`
of images is scored, with both ways of re-ranking; the rest is extrapolated from CPU seconds per pair. The model has
random weights: its scores are meaningless, its cost is real. Widths are a quarter of the base model's, at 224 pixels.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from x2vlm.models.blocks.fusion_plan import TextTable
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.tasks.matching.encoded import EncodedImages, room_for
from x2vlm.tasks.matching.reranking import rerank, shortlists, text_batch
from x2vlm.tasks.scoring import shortlist_ranks
from x2vlm.train.ranks import Ranks

BATCH = 64  # pairs
Numbers = np.ndarray


def small_model() -> X2VLM:
    torch.manual_seed(0)
    return build_model(
        ModelConfig(
            vision=VisionConfig(image_res=224, width=192, depth=1, num_heads=3),
            text=TextConfig(width=192, num_layers=1, num_heads=3, intermediate=768, vocab_size=64, max_positions=40),
            fusion=FusionConfig(num_layers=6, num_heads=3, intermediate=768),
            embed_dim=64,
        )
    ).eval()


def drawn_images(model: X2VLM, count: int, spool_above_bytes: int) -> EncodedImages:
    """Noise in place of encoded images: re-ranking does not care."""
    width, patches = model.config.vision.width, 196
    like = torch.zeros(0)
    tokens = VisionTokens(torch.randn(count, width), room_for((count, patches, width), like, spool_above_bytes))
    for start in range(0, count, 100):
        tokens.patches_MPD[start : start + 100] = torch.randn(
            len(tokens.patches_MPD[start : start + 100]), patches, width
        )
    features = torch.nn.functional.normalize(torch.randn(count, model.config.embed_dim), dim=1)
    return EncodedImages(features, tokens, np.arange(count), (range(count),))


def drawn_texts(model: X2VLM, count: int) -> tuple[TextTable, torch.Tensor]:
    """Captions of 9 to 17 tokens: those of COCO have 12.4 pieces with both ends on average."""
    lengths = np.random.default_rng(0).integers(9, 18, count)
    states = torch.randn(int(lengths.sum()), model.config.text.width)
    features = torch.nn.functional.normalize(torch.randn(count, model.config.embed_dim), dim=1)
    return TextTable(states, np.cumsum(lengths) - lengths, lengths, lengths), features


def every_pair_again(model: X2VLM, images: EncodedImages, texts: TextTable, image: Numbers, text: Numbers) -> Numbers:
    """The same logits, with keys and values projected from the image's tokens for every pair."""
    order = np.lexsort((texts.visible[text], image))
    logits = np.empty(len(image))
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        states, mask = text_batch(texts, text[some])
        fused = model.fuse(states, mask, images.of(image[some], torch.device("cpu")))
        logits[some] = model.match(fused)[:, 1].double().numpy()
    return logits


def seconds_of(work: Callable[[], Numbers]) -> tuple[float, Numbers]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--texts", type=int, default=25_000)
    parser.add_argument("--shortlist", type=int, default=256)
    parser.add_argument("--sample", type=int, default=4)
    parser.add_argument("--spool-above-bytes", type=int, default=4 * 2**30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = small_model()
    print(f"start: peak {peak_megabytes():.0f} MB")
    images = drawn_images(model, options.images, options.spool_above_bytes)
    texts, text_feature = drawn_texts(model, options.texts)
    print(f"{options.images} images, {options.texts} texts held: peak {peak_megabytes():.0f} MB")
    every_image, every_text = np.arange(options.images), np.arange(options.texts)
    seconds, texts_of = seconds_of(lambda: shortlists(images.features_IE, text_feature, every_text, options.shortlist))
    more, images_of = seconds_of(lambda: shortlists(text_feature, images.features_IE, every_image, options.shortlist))
    print(f"shortlists: {seconds + more:.1f} CPU seconds, peak {peak_megabytes():.0f} MB")
    pairs = np.unique(
        np.concatenate(
            [
                (every_image[:, None] * options.texts + texts_of).ravel(),
                (images_of * options.texts + every_text[:, None]).ravel(),
            ]
        )
    )
    image, text = np.divmod(pairs, options.texts)
    chosen = np.random.default_rng(1).choice(options.images, options.sample, replace=False)
    sampled = np.isin(image, chosen)
    image, text = image[sampled], text[sampled]
    shared, found = seconds_of(lambda: rerank(model, images, texts, [(image, text)], BATCH, Ranks())[0])
    after = peak_megabytes()
    again, expected = seconds_of(lambda: every_pair_again(model, images, texts, image, text))
    assert np.abs(found - expected).max() < 1e-4
    for name, cost in (("shared keys", shared), ("every pair again", again)):
        each = cost / len(image)
        print(
            f"{name}: {1e3 * each:.3f} CPU ms a pair of {len(image)}; all {len(pairs)} pairs: {each * len(pairs):.0f} "
            "CPU seconds, extrapolated"
        )
    print(f"{again / shared:.2f} times as fast; peak of shared keys {after:.0f} MB")
    scores = np.random.default_rng(2).random(texts_of.shape)
    seconds, _ = seconds_of(
        lambda: shortlist_ranks(texts_of, scores, options.texts, [[5 * i] for i in range(options.images)])
    )
    print(f"ranks of {options.images} queries: {seconds:.1f} CPU seconds")


if __name__ == "__main__":
    main()
