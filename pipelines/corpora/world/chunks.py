"""Chunks: the records and media of a run of scenes, made by any worker, in files that are later read in order."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from pipelines.corpora.world.config import CLIP_SOURCES, EVALUATION, WorldConfig, source_of
from pipelines.corpora.world.drawing.clips import make_clip
from pipelines.corpora.world.drawing.scene import Thing, make_scene
from pipelines.corpora.world.drawing.shots import evaluation_kind, own_scene, take_shot
from pipelines.corpora.world.records import Record, truth_line
from pipelines.corpora.world.sources.coco import emit_coco
from pipelines.corpora.world.sources.detection import emit_objects365, emit_openimages
from pipelines.corpora.world.sources.entities import emit_entities
from pipelines.corpora.world.sources.evaluation import emit_evaluation
from pipelines.corpora.world.sources.finetuning import emit_finetuning, finetuning_use
from pipelines.corpora.world.sources.more_evaluation import emit_more_evaluation
from pipelines.corpora.world.sources.video import emit_howto100m, emit_webvid, emit_yttemporal
from pipelines.corpora.world.sources.visual_genome import emit_visual_genome, is_also_coco
from pipelines.corpora.world.sources.web import emit_web

EMITTERS = {
    "coco": emit_coco,
    "visual_genome": emit_visual_genome,
    "sbu": emit_web,
    "cc3m": emit_web,
    "cc12m": emit_web,
    "laion_en": emit_web,
    "laion_multi": emit_web,
    "objects365": emit_objects365,
    "openimages": emit_openimages,
    "flickr_entities": emit_entities,
    "webvid": emit_webvid,
    "howto100m": emit_howto100m,
    "yttemporal": emit_yttemporal,
}
SCENES, FINETUNING_SCENES, FILES = "world/scenes", "world/finetuning_scenes", "world/files"


def emit_scene(config: WorldConfig, index: int) -> tuple[list[Record], dict[str, bytes]]:
    """All output of scene number `index`: records, and media files by path below media/."""
    if index >= config.scenes:
        return emit_finetuning(config, index)
    source = source_of(config, index)
    if source == EVALUATION:
        records, media = emit_evaluation(config, index)
        return [*records, *emit_more_evaluation(config, index)], media
    shot = take_shot(config, index)
    records = list(EMITTERS[source](config, shot))
    if source == "coco" and is_also_coco(config, index):
        records += emit_visual_genome(config, shot)
    return records, {shot.file: shot.data} if shot.file else {}


def scene_truth(config: WorldConfig, index: int) -> dict[str, Any]:
    """The contents of scene number `index` at the size of its row, whatever image its row points at."""
    if index >= config.scenes:
        source, kind = EVALUATION, finetuning_use(config, index)[0]
    else:
        source = source_of(config, index)
        kind = evaluation_kind(index) if source == EVALUATION else ("clip" if source in CLIP_SOURCES else "image")
    facts: dict[str, Any] = {"scene": index, "source": source, "kind": kind}
    if kind == "clip":
        clip = make_clip(config, index)
        tracks = [[{"x": x, "y": y} for x, y in track] for track in clip.tracks]
        things = [_thing(thing) for thing in clip.things]
        facts |= {"width": clip.width, "height": clip.height, "background": clip.background, "things": things}
        return facts | {"relations": [], "motion": clip.motion, "tracks": tracks}
    scene = make_scene(config, index) if source == EVALUATION else own_scene(config, index)
    facts |= {"width": scene.width, "height": scene.height, "background": scene.background}
    things = [_thing(thing) for thing in scene.things]
    relations = [asdict(relation) for relation in scene.relations]
    return facts | {"things": things, "relations": relations, "motion": "", "tracks": []}


def _thing(thing: Thing) -> dict[str, Any]:
    values = asdict(thing)
    return values | {"box": list(thing.box), "full_box": list(thing.full_box)}


def make_chunk(config: WorldConfig, start: int, stop: int, out: Path, folder: Path) -> int:
    """Write scenes start..stop-1: media below `out`, records below `folder`; returns the number of scenes.

    A complete chunk is not written again; `folder` gets its name only when it is complete.
    """
    if folder.is_dir():
        return 0
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        tables = _Tables(draft, stack)
        for index in range(start, stop):
            records, media = emit_scene(config, index)
            table = SCENES if index < config.scenes else FINETUNING_SCENES
            tables.add(Record(table, scene_truth(config, index)))
            for path, data in media.items():
                tables.add(_stored(out, f"media/{path}", data))
            for record in records:
                tables.add(record)
    draft.rename(folder)
    return stop - start


def _stored(out: Path, path: str, data: bytes) -> Record:
    target = out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return Record(FILES, {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})


class _Tables:
    """Open files of a chunk, one per table."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._files: dict[str, IO[str]] = {}

    def add(self, record: Record) -> None:
        if record.table not in self._files:
            path = self._folder / table_file(record.table)
            self._files[record.table] = self._stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        line = json.dumps([record.payload, truth_line(record.truths)], separators=(",", ":"), ensure_ascii=False)
        self._files[record.table].write(f"{line}\n")


def table_file(table: str) -> str:
    return f"{table.replace('/', '--')}.jsonl"


class Chunks:
    """The chunks of a world in the order of their scenes."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def tables(self) -> list[str]:
        """All non-empty tables, by name."""
        names = {path.stem.replace("--", "/") for folder in self._folders for path in folder.glob("*.jsonl")}
        return sorted(names)

    def records(self, table: str) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """(payload, truths) of a table's records, in order."""
        for folder in self._folders:
            path = folder / table_file(table)
            if path.is_file():
                with path.open(encoding="utf-8") as file:
                    for line in file:
                        payload, truths = json.loads(line)
                        yield payload, truths

    def payloads(self, table: str) -> Iterator[Any]:
        return (payload for payload, _ in self.records(table))
