"""Splits and media of a fine-tuning in its job: URIs with sha256, which every process opens for itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.flow.stage import InputFile, Part, Read
from x2vlm.data.loading.shard_cache import DEFAULT_FOLDER, ShardCache
from x2vlm.data.shards.packs import INDEX_NAME, PACK_NAME
from x2vlm.tasks.training.splits import EXAMPLES_FILE, LABELS_FILE, PackedMedia, Split, load_split
from x2vlm.train.config import TrainRuntime

Located = tuple[str, str]  # URI, sha256


def slot_of(split: str) -> str:
    """How the reads of a part say which split a file is of."""
    return f"data:{split}"


def located(part: Part) -> dict[str, Any]:
    """The data of a part for its job: tables and labels by split, and all media packs."""
    splits = [read.slot.removeprefix("data:") for read in part.reads if read.slot.startswith("data:")]
    return {
        "splits": {split: _of_split(part.reads, split) for split in dict.fromkeys(splits)},
        "packs": [
            [_place(tar.file), _place(index.file)]
            for tar, index in zip(part.lookups[::2], part.lookups[1::2], strict=True)
        ],
    }


def media_reads(parts: Sequence[Any]) -> list[Read]:
    """The packs of parts of task data, tar and index in turn."""
    return [Read("media", part.file(name)) for part in parts for name in (PACK_NAME, INDEX_NAME)]


def read_splits(data: Mapping[str, Any], runtime: TrainRuntime) -> dict[str, Split]:
    """The splits that `located` described."""
    cache = _cache(runtime)
    found = {}
    for name, split in data["splits"].items():
        tables = [cache.fetch(*place) for place in split["tables"]]
        found[name] = load_split(tables, cache.fetch(*split["labels"]).read_text(encoding="utf-8"))
    return found


def open_media(data: Mapping[str, Any], runtime: TrainRuntime) -> PackedMedia:
    """The media packs that `located` described; remote ones are fetched into the cache of shards."""
    cache = _cache(runtime)
    return PackedMedia([(cache.fetch(*tar), cache.fetch(*index)) for tar, index in data["packs"]])


def _of_split(reads: Sequence[Read], split: str) -> dict[str, Any]:
    files = [read.file for read in reads if read.slot == slot_of(split)]
    return {
        "tables": [_place(file) for file in files if file.path == EXAMPLES_FILE],
        "labels": next(_place(file) for file in files if file.path == LABELS_FILE),
    }


def _place(file: InputFile) -> Located:
    return file.uri, file.sha256


def _cache(runtime: TrainRuntime) -> ShardCache:
    folder = Path(runtime.shard_cache or DEFAULT_FOLDER)
    return ShardCache(folder, runtime.shard_cache_bytes, retry_seconds=runtime.store_retry_seconds)
