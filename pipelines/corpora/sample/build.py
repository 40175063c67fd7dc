"""Makes datasets/sample from the samples folder. The same inputs and library versions give the same bytes.

    python -m tests.support.corpora.inputs runs/samples
    python -m pipelines.corpora.sample.build --samples runs/samples --out datasets/sample

Replaces media/, annotations/, ATTRIBUTION.csv and planted.csv below --out; does not touch other files (README.md).
Fails before it writes if a sample's bytes or licence are not as recorded, or the corpus is too big.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from pipelines.corpora.sample.attribution import (
    Attribution,
    attribution_csv,
    clip_attribution,
    made_attribution,
    photo_attribution,
)
from pipelines.corpora.sample.bad_media import made_files
from pipelines.corpora.sample.coco_files import write_coco
from pipelines.corpora.sample.openimages_files import write_openimages
from pipelines.corpora.sample.photos import CC3M, CLIPS, COCO_TRAIN, HELD_OUT, LAION, OPENIMAGES, VISUAL_GENOME
from pipelines.corpora.sample.planted import planted_csv
from pipelines.corpora.sample.upstream import Upstream, read_upstream
from pipelines.corpora.sample.visual_genome_files import write_visual_genome
from pipelines.corpora.sample.web_files import write_cc3m, write_laion, write_webvid

MAX_BYTES = 12_000_000
OWNED = ["media", "annotations", "ATTRIBUTION.csv", "planted.csv"]


def main() -> None:
    """Builds beside --out first, then swaps, so that a failure leaves the old corpus intact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, required=True, help="folder with PROVENANCE.csv, coco/, videos/, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus, usually datasets/sample")
    arguments = parser.parse_args()
    upstream = read_upstream(arguments.samples)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix=".build-") as scratch:
        new = Path(scratch) / "new"
        build(upstream, new)
        size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            raise SystemExit(f"the corpus would have {size} bytes, {MAX_BYTES} allowed; choose smaller photos")
        replace_owned(new, arguments.out)
    print(f"{arguments.out}: {size} bytes")


def build(upstream: Upstream, out: Path) -> None:
    """Writes the whole corpus below `out`."""
    attributions = copy_media(upstream, out / "media")
    annotations = out / "annotations"
    plants = [
        *write_coco(upstream, annotations / "coco"),
        *write_visual_genome(upstream, annotations / "visual_genome"),
        *write_cc3m(upstream, annotations / "cc3m"),
        *write_laion(upstream, annotations / "laion"),
        *write_openimages(upstream, annotations / "openimages"),
        *write_webvid(annotations / "webvid"),
    ]
    (out / "planted.csv").write_text(planted_csv(plants), encoding="utf-8")
    (out / "ATTRIBUTION.csv").write_text(attribution_csv(attributions), encoding="utf-8")


def copy_media(upstream: Upstream, media: Path) -> list[Attribution]:
    """Copies photos and clips unmodified, writes crops and broken files; returns their attributions."""
    train = {*COCO_TRAIN, *VISUAL_GENOME, *OPENIMAGES, *CC3M, *LAION}
    if leaked := train & set(HELD_OUT):
        raise SystemExit(f"held-out photos used for training: {sorted(leaked)}")
    for folder in ("photos", "clips", "bad"):
        (media / folder).mkdir(parents=True)
    rows = []
    for image_id in sorted(train | set(HELD_OUT)):
        shutil.copyfile(upstream.photo_path(image_id), media / "photos" / upstream.images[image_id]["file_name"])
        rows.append(photo_attribution(upstream, image_id))
    for clip in CLIPS:
        shutil.copyfile(upstream.checked(clip.sample), media / "clips" / clip.name)
        rows.append(clip_attribution(upstream, clip))
    with tempfile.TemporaryDirectory() as scratch:
        for made in made_files(upstream, Path(scratch)):
            (media / made.name).write_bytes(made.data)
            rows.append(made_attribution(upstream, made))
    return rows


def replace_owned(new: Path, out: Path) -> None:
    """Replaces the old files by the new ones; touches only OWNED."""
    for name in OWNED:
        old = out / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        (new / name).rename(old)


if __name__ == "__main__":
    main()
