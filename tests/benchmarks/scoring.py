"""Utilisation of the model in the score stage, with and without decoding ahead.

    python -m tests.benchmarks.scoring [--model ViT-B-32] [--pictures 128] [--device auto]

The model has random weights of the named open_clip architecture: its scores are meaningless, its cost is real. Images
are the shipped photos, repeated with other keys.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch

from pipelines.s3_score.config import ScoreConfig
from pipelines.s3_score.rows import Throughput, prepare, score_rows
from x2vlm.data.media.images import probe
from x2vlm.data.scores.clip_score import Clip, embed_pixels, embed_texts
from x2vlm.data.shards.packs import MediaPack, Payload, write_media_pack
from x2vlm.samples import Caption, Media, Sample, sample_key

ROOT = Path(__file__).resolve().parents[2]


def random_clip(name: str, device: str) -> Clip:
    """An open_clip architecture with random weights."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = model.eval().requires_grad_(False).to(device)
    return Clip(model, preprocess, open_clip.get_tokenizer(name), "random", torch.device(device))


def photo_samples(folder: Path, num_images: int) -> list[Sample]:
    """`num_images` rows over the shipped photos, and their pack in `folder`."""
    photos = sorted((ROOT / "datasets/sample/media/photos").glob("*.jpg"))
    media = []
    for path in photos:
        data = path.read_bytes()
        header = probe(data)
        sha256 = f"{len(media):064x}"
        media.append(Media("image", sha256, len(data), header.width, header.height, header.format))
    write_media_pack(folder, [Payload(one.sha256, one.format, path) for one, path in zip(media, photos, strict=True)])
    first = Sample("", "bench", "", "train", "image", "http://sample.invalid/", (Caption("a photo of the street"),))
    return [
        replace(first, key=sample_key("bench", str(number)), source_row=str(number), media=media[number % len(media)])
        for number in range(num_images)
    ]


def measure(clip: Clip, samples: list[Sample], pack: MediaPack, batch_size: int, threads: int) -> tuple[float, float]:
    """Images per second and the busy fraction of the model; with 0 threads decoding is sequential."""
    throughput = Throughput()
    if threads:
        config = ScoreConfig(batch_size=batch_size, decode_threads=threads)
        for _ in score_rows(clip, samples, pack, config, throughput):
            pass
        return len(samples) / throughput.seconds, throughput.model_busy
    for start in range(0, len(samples), batch_size):
        rows = [prepare(clip, sample, pack, ScoreConfig()) for sample in samples[start : start + batch_size]]
        began = time.monotonic()
        embed_pixels(clip, torch.cat([row.pixels_FCHW for row in rows if row.pixels_FCHW is not None]), batch_size)
        embed_texts(clip, [row.text for row in rows], batch_size)
        throughput.model_seconds += time.monotonic() - began
    return len(samples) / throughput.seconds, throughput.model_busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    clip = random_clip(options.model, options.device)
    with TemporaryDirectory() as folder:
        samples = photo_samples(Path(folder), options.images)
        with MediaPack(Path(folder) / "media.tar", Path(folder) / "media.parquet") as pack:
            measure(clip, samples[: options.batch_size], pack, options.batch_size, 0)  # warm
            print(f"{options.model} on {clip.device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
            for threads in (0, options.threads, 0, options.threads):
                speed, busy = measure(clip, samples, pack, options.batch_size, threads)
                print(f"decode threads {threads}: {speed:7.1f} images/s, model busy {busy:.1%}")


if __name__ == "__main__":
    main()
