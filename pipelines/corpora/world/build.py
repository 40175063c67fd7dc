"""Build a world: chunks on workers, then upstream files, truth and cards in one sequential pass."""

import gzip
import hashlib
import json
import logging
import multiprocessing
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpora.world.cards import write_cards
from pipelines.corpora.world.chunks import FILES, FINETUNING_SCENES, SCENES, Chunks, make_chunk
from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.files import Upstream, upstream_files
from pipelines.corpora.world.formats import write_parquet
from pipelines.corpora.world.records import ROW_NUMBER, TRUTH_SCHEMA, to_json
from pipelines.corpora.world.sources.finetuning import finetuning_scenes
from x2vlm.errors import ConfigError

logger = logging.getLogger(__name__)

BOX = pa.list_(pa.int64())
SCENE_SCHEMA = pa.schema(
    [
        ("scene", pa.int64()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("background", pa.string()),
        (
            "things",
            pa.list_(
                pa.struct(
                    [(name, pa.string()) for name in ("shape", "colour", "texture", "size")]
                    + [(name, pa.int64()) for name in ("x", "y", "radius", "degrees")]
                    + [("box", BOX), ("full_box", BOX), ("visible", pa.int64()), ("pixels", pa.int64())]
                )
            ),
        ),
        (
            "relations",
            pa.list_(pa.struct([("name", pa.string()), ("subject", pa.int64()), ("target", pa.int64())])),
        ),
        ("motion", pa.string()),
        ("tracks", pa.list_(pa.list_(pa.struct([("x", pa.int64()), ("y", pa.int64())])))),
    ]
)
CHUNK_SCENES = 250


@dataclass(frozen=True)
class Built:
    """The result of a build. `counts`: source -> unit -> number; `planted`: source -> kind -> number of truth rows."""

    counts: dict[str, dict[str, int]]
    planted: dict[str, dict[str, int]]
    content_sha256: str
    scenes_made: int  # by this call; 0 if the world was complete already
    seconds: float


def build_world(
    config: WorldConfig, out: Path, workers: int = 1, chunk_scenes: int = CHUNK_SCENES, project_root: Path | None = None
) -> Built:
    """Generate the world in folder `out`, or finish it; nothing is done if it is complete.

    ConfigError if the folder contains another world.
    """
    began = time.monotonic()
    done = out / "world.json"
    if done.is_file():
        world = json.loads(done.read_text(encoding="utf-8"))
        _check_same(world["config"], config, out)
        return Built(world["counts"], world["planted"], world["content_sha256"], 0, time.monotonic() - began)
    parts = out / ".chunks"
    _claim(parts, config, out)
    folders, made = _make_chunks(config, out, parts, workers, chunk_scenes)
    chunks = Chunks(folders)
    files = list(upstream_files(config, chunks))
    for file in files:
        (out / file.path).parent.mkdir(parents=True, exist_ok=True)
        file.write(chunks, out / file.path)
    counts, planted = _write_truth(chunks, out)
    truths = {"truth_scenes.parquet": SCENES, "truth_finetuning_scenes.parquet": FINETUNING_SCENES}
    for name, table in truths.items():
        write_parquet(chunks.payloads(table), SCENE_SCHEMA, out / name)
    paths = sorted([*(file.path for file in files), "truth.parquet", *truths])
    content = content_sha256(out, paths)
    write_cards(config, out, files, project_root)
    facts = {"config": _as_json(config), "counts": counts, "planted": planted, "content_sha256": content}
    _write_world(out, facts, paths, chunks)
    shutil.rmtree(parts)
    return Built(counts, planted, content, made, time.monotonic() - began)


def _check_same(found: dict[str, Any], config: WorldConfig, out: Path) -> None:
    wanted = _as_json(config)
    if found != wanted:
        keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        other = ", ".join(f"{key} {found.get(key)} there, {wanted.get(key)} asked for" for key in keys)
        raise ConfigError(f"{out} holds another world ({other}). Choose another folder, or delete this one")


def _as_json(config: WorldConfig) -> dict[str, Any]:
    """What is written of a config: a number of fine-tuning scenes only where one was asked for."""
    return config.model_dump(mode="json", exclude_none=True)


def _claim(parts: Path, config: WorldConfig, out: Path) -> None:
    """Chunks of another config must not be mixed in."""
    parts.mkdir(parents=True, exist_ok=True)
    claim = parts / "config.json"
    if claim.is_file():
        _check_same(json.loads(claim.read_text(encoding="utf-8")), config, out)
    claim.write_text(json.dumps(_as_json(config)), encoding="utf-8")


def _make_chunks(
    config: WorldConfig, out: Path, parts: Path, workers: int, chunk_scenes: int
) -> tuple[list[Path], int]:
    spans = [
        (start, min(start + chunk_scenes, scenes.stop))
        for scenes in (range(config.scenes), finetuning_scenes(config))
        for start in range(scenes.start, scenes.stop, chunk_scenes)
    ]
    folders = [parts / f"{start:09d}-{stop:09d}" for start, stop in spans]
    jobs = [(config, start, stop, out, folder) for (start, stop), folder in zip(spans, folders, strict=True)]
    if workers == 1:
        return folders, sum(_report(make_chunk(*job), job) for job in jobs)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(make_chunk, *job) for job in jobs]
        return folders, sum(_report(future.result(), job) for future, job in zip(futures, jobs, strict=True))


def _report(made: int, job: tuple[WorldConfig, int, int, Path, Path]) -> int:
    config, start, stop, _, _ = job
    logger.info("event=chunk_done scenes=%d..%d made=%d of=%d", start, stop - 1, made, config.scenes)
    return made if start < config.scenes else 0  # those for fine-tuning come on top of what was asked for


def _write_truth(chunks: Chunks, out: Path) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """truth.parquet, in the order of tables and of their records; counts of units and of what is planted."""
    counts: dict[str, Counter[str]] = {}
    planted: dict[str, Counter[str]] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for table in chunks.tables():
            for number, (_, truths) in enumerate(chunks.records(table)):
                for truth in truths:
                    truth["row_key"] = truth["row_key"].replace(ROW_NUMBER, str(number))
                    truth["item"] = truth["item"].replace(ROW_NUMBER, str(number))
                    counts.setdefault(truth["source"], Counter())[truth["unit"]] += 1
                    if truth["planted"]:
                        planted.setdefault(truth["source"], Counter())[f"{truth['unit']}:{truth['planted']}"] += 1
                    yield truth

    write_parquet(rows(), TRUTH_SCHEMA, out / "truth.parquet")
    return _sorted(counts), _sorted(planted)


def _sorted(counters: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {source: dict(sorted(counters[source].items())) for source in sorted(counters)}


def content_sha256(out: Path, paths: list[str]) -> str:
    """One checksum of annotations, evaluation files and truth: of their contents before compression."""
    total = hashlib.sha256()
    for path in sorted(paths):
        digest = hashlib.sha256()
        file = out / path
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=1000):
                    digest.update("\n".join(map(to_json, batch.to_pylist())).encode() + b"\n")
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    digest.update(f"{name}\n".encode() + archive.read(name))
        else:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        total.update(f"{path} {digest.hexdigest()}\n".encode())
    return total.hexdigest()


def _write_world(out: Path, facts: dict[str, Any], paths: list[str], chunks: Chunks) -> None:
    """world.json, written last: facts, then the checksum of every file on a line of its own."""
    draft = out / "world.json.draft"
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(facts, indent=1)[:-2])
        file.write(',\n "files": [\n')
        for number, entry in enumerate(_entries(out, paths, chunks)):
            file.write(f"{',' if number else ''}\n  {to_json(entry)}" if number else f"  {to_json(entry)}")
        file.write("\n ]\n}\n")
    draft.rename(out / "world.json")


def _entries(out: Path, paths: list[str], chunks: Chunks) -> Iterator[dict[str, Any]]:
    for path in [*paths, *(str(card.relative_to(out)) for card in sorted((out / "cards").rglob("*.yaml")))]:
        with (out / path).open("rb") as file:
            yield {
                "path": path,
                "bytes": (out / path).stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    yield from chunks.payloads(FILES)


__all__ = ["Built", "Upstream", "build_world", "content_sha256"]
