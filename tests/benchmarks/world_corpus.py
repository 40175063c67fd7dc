"""Shards of the procedural world for measuring: any number of samples, straight from scenes by `write_shard`.

Twenty consecutive samples share one scene, as for sources of the world that annotate the images of another: twelve have
a caption (as CC3M), seven have five captions, objects with attributes and region phrases (as COCO and Visual Genome),
one is a clip. Every sample has its own key and random texts. Clips have a tenth as many renderings.

Images have 256 pixels on the short edge, clips 336 x 256 pixels and a frame a second, as `pack` would keep them,
but JPEG quality is 75: 200,000 samples then take 3.8 GB. Frames come from the renderer, not through an MP4.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.clips import FRAMES_PER_SECOND, Clip, make_clip, render_clip
from pipelines.corpora.world.drawing.render import encode_jpeg, render_scene
from pipelines.corpora.world.drawing.scene import PixelBox, Scene, Thing, make_scene
from pipelines.corpora.world.drawing.texts import captions, region_phrases
from pipelines.corpora.world.sources.video import describe_clip
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.media.video import encode_frames
from x2vlm.data.randomness import Draws
from x2vlm.data.shards.shard import SCORED_SCHEMA, index_path, read_index, write_shard
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key, sample_table

QUALITY = 75
IMAGES = WorldConfig(seed=11, image_size=256, jpeg_quality=QUALITY)
CLIPS = WorldConfig(seed=11, image_size=410, jpeg_quality=QUALITY)  # clips of the world have 5/8 of that
FORM: tuple[Literal["captions", "boxes", "clip"], ...] = (*("captions",) * 12, *("boxes",) * 7, "clip")
SOURCES = {"captions": "cc3m", "boxes": "visual_genome", "clip": "webvid"}
SAMPLES_PER_CLIP = 10


@dataclass(frozen=True)
class WorldShards:
    """The shards, and the time to make them."""

    files: tuple[ShardFiles, ...]
    num_scenes: int  # rendered
    num_clips: int  # rendered
    render_cpu_seconds: float
    write_cpu_seconds: float

    @property
    def num_bytes(self) -> int:
        """Total size of all files."""
        return sum(Path(str(path)).stat().st_size for item in self.files for path in (item.media, item.index))

    @cached_property
    def counts(self) -> dict[str, int]:
        """The contents of the written indexes, read back from the files."""
        wanted = ["key", "kind", "captions.list.element.text", "concepts.list.element.grain", "media.sha256"]
        table = pa.concat_tables([read_index(item.index, wanted) for item in self.files])
        grains = table["concepts"].combine_chunks().flatten().field("grain")
        kinds = pc.value_counts(table["kind"]).to_pylist()
        return {
            "samples": table.num_rows,
            "keys": pc.count_distinct(table["key"]).as_py(),
            "media": pc.count_distinct(pc.struct_field(table["media"], "sha256")).as_py(),
            **{item["values"]: item["counts"] for item in kinds},
            "image with boxes": pc.sum(pc.greater(pc.list_value_length(table["concepts"]), 0)).as_py(),
            "captions": pc.sum(pc.list_value_length(table["captions"])).as_py(),
            **{f"{item['values']}s": item["counts"] for item in pc.value_counts(grains).to_pylist()},
        }


def write_world(out: Path, num_samples: int, num_shards: int) -> WorldShards:
    """`num_samples` samples in `num_shards` shards below `out`; the shard of a sample depends on its key."""
    before = time.process_time()
    groups = -(-num_samples // len(FORM))
    images = [_render_image(index) for index in range(groups)]
    clips = [_render_clip(index) for index in range(-(-groups // SAMPLES_PER_CLIP))]
    rendered = time.process_time()
    payloads = {media.sha256: payload for _, media, payload in (*images, *clips)}
    files = []
    for shard, numbers in enumerate(_numbers_by_shard(num_samples, num_shards)):
        samples = [_sample(number, images, clips) for number in numbers]
        table = sample_table(samples).append_column("clip_score", pa.nulls(len(samples), pa.float32()))
        path = out / f"shard-{shard:05d}.tar"
        write_shard(path, table.cast(SCORED_SCHEMA), payloads.__getitem__)
        files.append(ShardFiles(path, index_path(path)))
    return WorldShards(tuple(files), len(images), len(clips), rendered - before, time.process_time() - rendered)


def _numbers_by_shard(num_samples: int, num_shards: int) -> list[list[int]]:
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    for number in range(num_samples):
        shards[int(_key(number)[:8], 16) % num_shards].append(number)
    return shards


def _key(number: int) -> str:
    return sample_key(SOURCES[FORM[number % len(FORM)]], str(number))


def _render_image(index: int) -> tuple[Scene, Media, bytes]:
    scene = make_scene(IMAGES, index)
    payload = encode_jpeg(render_scene(IMAGES.seed, scene), QUALITY)
    return scene, _media("image", payload, scene.width, scene.height, "jpeg", 1), payload


def _render_clip(index: int) -> tuple[Clip, Media, bytes]:
    clip = make_clip(CLIPS, index)
    frames = [pixels for number, pixels in enumerate(render_clip(CLIPS, clip)) if number % FRAMES_PER_SECOND == 0]
    payload = encode_frames([encode_jpeg(pixels, QUALITY) for pixels in frames], [float(n) for n in range(len(frames))])
    return clip, _media("video", payload, clip.width, clip.height, "frames", len(frames)), payload


def _media(kind: str, payload: bytes, width: int, height: int, stored: str, num_frames: int) -> Media:
    return Media(kind, hashlib.sha256(payload).hexdigest(), len(payload), width, height, stored, num_frames)


def _sample(
    number: int, images: Sequence[tuple[Scene, Media, bytes]], clips: Sequence[tuple[Clip, Media, bytes]]
) -> Sample:
    group, form = number // len(FORM), FORM[number % len(FORM)]
    draws = Draws(IMAGES.seed, number, "sample")
    concepts: tuple[Concept, ...] = ()
    if form == "clip":
        clip, media, _ = clips[group % len(clips)]
        texts = [describe_clip(clip, draws)]
    else:
        scene, media, _ = images[group]
        texts = captions(scene, draws, 5 if form == "boxes" else 1)
        concepts = tuple(_concepts(scene, draws)) if form == "boxes" else ()
    return Sample(
        key=_key(number),
        source=SOURCES[form],
        source_row=str(number),
        split="train",
        kind=media.kind,
        url=f"https://world.example/{media.kind}/{number}",
        captions=tuple(Caption(text) for text in texts),
        concepts=concepts,
        media=media,
    )


def _concepts(scene: Scene, draws: Draws) -> list[Concept]:
    objects = [Concept(Grain.OBJECT, thing.shape, _box(thing.box), _attributes(thing)) for thing in scene.things]
    return objects + [Concept(Grain.REGION, text, _box(box)) for text, box in region_phrases(scene, draws)]


def _attributes(thing: Thing) -> tuple[str, ...]:
    return (thing.colour,) if thing.texture == "plain" else (thing.colour, thing.texture)


def _box(box: PixelBox) -> Box:
    return Box(*(float(side) for side in box))
