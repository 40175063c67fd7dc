"""The score stage on a few made photos."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines.flow.stage import Input
from pipelines.s3_score import SCORE, ScoreConfig
from tests.support.parts import Run, as_part, as_source, run_stage
from x2vlm.data.media.video import encode_frames
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.samples import Caption, Media, Sample, sample_key, sample_table, write_table

CPU = ScoreConfig(device="cpu")


def tiny_clip(project_root: Path) -> Path:
    return project_root / "datasets/sample/models/tiny_clip"


def photo(number: int, size: tuple[int, int] = (96, 80)) -> bytes:
    """A JPEG of coloured blocks, different for every number."""
    blocks = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def sample_of(number: int, payload: bytes, texts: list[str], stored: str = "jpeg") -> Sample:
    kind = "video" if stored == "frames" else "image"
    return Sample(
        key=sample_key("toy", str(number)),
        source="toy",
        source_row=str(number),
        split="train",
        kind=kind,
        url=f"http://sample.invalid/{number}",
        captions=tuple(Caption(text) for text in texts),
        media=Media(kind, hashlib.sha256(payload).hexdigest(), len(payload), 96, 80, stored),
    )


def toy_samples() -> list[tuple[Sample, bytes]]:
    """Two images, two clips, an image without caption, and an image and a clip whose bytes are broken."""
    clip = encode_frames([photo(10), photo(11), photo(12), photo(13)], [0.0, 1.0, 2.0, 3.0])
    short = encode_frames([photo(14)], [0.0])
    rows = [
        (photo(0), ["a man on skis", "another text"], "jpeg"),
        (clip, ["two men in a silent film"], "frames"),
        (photo(1), [], "jpeg"),
        (photo(2), ["Kites over the WATER at a park."], "jpeg"),
        (short, ["a rabbit"], "frames"),
        (photo(3)[:200], ["a truncated photo"], "jpeg"),
        (b"no frames at all", ["a broken clip"], "frames"),
    ]
    return [(sample_of(n, data, texts, stored), data) for n, (data, texts, stored) in enumerate(rows)]


def score(
    project_root: Path, folder: Path, pairs: list[tuple[Sample, bytes]], config: ScoreConfig = CPU, parts: int = 1
) -> Run:
    """The score stage over `pairs`, dealt into `parts` parts."""
    rows, media = [], []
    for index in range(parts):
        mine = pairs[index::parts]
        (folder / f"rows-{index}").mkdir(parents=True)
        (folder / f"media-{index}").mkdir()
        write_table(sample_table([sample for sample, _ in mine]), folder / f"rows-{index}" / "rows.parquet")
        payloads = []
        for sample, data in mine:
            path = folder / f"{sample.key}.bin"
            path.write_bytes(data)
            assert sample.media is not None
            payloads.append(Payload(sample.media.sha256, sample.media.format, path))
        write_media_pack(folder / f"media-{index}", payloads)
        rows.append(as_part(f"{index:05d}", folder / f"rows-{index}"))
        media.append(as_part(f"{index:05d}", folder / f"media-{index}"))
    inputs = {
        "rows": (Input("filter/toy", "", tuple(rows)),),
        "media": (Input("download/toy", "", tuple(media)),),
        "model": tuple(as_source(path) for path in sorted(tiny_clip(project_root).iterdir()) if path.suffix != ".md"),
    }
    return run_stage(SCORE, config, inputs, folder / "out")


def table_of(run: Run, part: str = "00000") -> list[dict]:
    return pq.read_table(run.folder / part / "scores.parquet").to_pylist()


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to
