"""Shards collected in a folder under names without gaps, beside a note that says how to read them."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.compute as pc

from pipelines.export import Format
from pipelines.export.note import PARQUET_NOTE, WEBDATASET_NOTE, write_note
from pipelines.export.packed import opened, packed_shards
from pipelines.export.xvlm import export_lines
from pipelines.flow.store.store import Store
from x2vlm.data.shards.media_files import PARQUET_SUFFIX, TAR_SUFFIX, write_parquet, write_tar
from x2vlm.data.shards.shard import SCORED_SCHEMA, ShardReader
from x2vlm.errors import ConfigError

log = logging.getLogger(__name__)

SIZES = "sizes.json"  # where open_clip looks for the number of samples
COUNTED = ("samples", "images", "with_caption", "linked", "copied", "rewritten")


def export_shards(store: Store, experiment: str, out: Path, as_format: Format, copy: bool = False) -> dict[str, Any]:
    """What was written to `out`, as its summary has it.

    | format | files |
    |---|---|
    | webdataset | `00000.tar` ..., `sizes.json` (images per tar), `README.md`, `summary.json` |
    | parquet | `00000.parquet` ..., `_README.md`, `_summary.json`: readers of a folder pass over these two |
    | xvlm | `<kind>/<shard>.jsonl` for every kind of line, `summary.json` |

    A shard that is in the wanted format already is a hard link to the store's file where the file system allows it
    (`copy`: never), else a copy; any other is written anew, one row group or sample in memory at a time. The same
    shards always give the same bytes; a finished export of the same artifact is left alone. ConfigError if the
    experiment has no shards in `store`, or if `out` holds anything else.
    """
    shards = packed_shards(store, experiment)
    summary_path = out / ("_summary.json" if as_format == "parquet" else "summary.json")
    head = {"experiment": experiment, "format": as_format, "root": shards.root}
    if (finished := _finished(out, summary_path, head)) is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    if as_format == "xvlm":
        found = export_lines(store, shards, out)
    else:
        counts: Counter[str] = Counter()
        sizes = {}
        digits = max(5, len(str(len(shards.parts) - 1)))
        for number, part in enumerate(shards.parts):
            name = f"{number:0{digits}d}.{'tar' if as_format == 'webdataset' else 'parquet'}"
            with opened(store, part) as shard:
                how = _collect(shard, out / name, copy)
                images = pc.sum(pc.equal(shard.table["kind"], "image"), min_count=0).as_py()
                captioned = pc.sum(pc.greater(pc.list_value_length(shard.table["captions"]), 0), min_count=0).as_py()
                counts.update({"samples": len(shard), "images": images, "with_caption": captioned, how: 1})
            sizes[name] = images
            log.info("event=shard_exported part=%s file=%s how=%s", part.name, name, how)
        found = {"shards": len(sizes), **{name: counts[name] for name in COUNTED}}
        if as_format == "webdataset":
            _write_json(out / SIZES, sizes)
        write_note(out, WEBDATASET_NOTE if as_format == "webdataset" else PARQUET_NOTE, experiment, found, list(sizes))
    summary = {**head, **found}
    _write_json(summary_path, summary)  # last: what has it is whole
    return summary


def _finished(out: Path, summary_path: Path, head: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the same export that is in `out` already; None if `out` is empty or not there."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder that is empty or does not exist")
    if summary_path.exists():
        summary: dict[str, Any] = json.loads(summary_path.read_text(encoding="utf-8"))
        if {name: summary.get(name) for name in head} == head:
            return summary
        raise ConfigError(
            f"{out} holds an export of other shards or of another format (root {summary.get('root', '?')[:12]}…); "
            "name another folder, or empty this one"
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no finished export; name another folder, or empty this one")
    return None


def _collect(shard: ShardReader, target: Path, copy: bool) -> str:
    """Put a shard at `target` in the format of its suffix; how: linked, copied or rewritten."""
    wanted = TAR_SUFFIX if target.suffix == ".tar" else PARQUET_SUFFIX
    if not shard.path.name.endswith(wanted):
        _rewrite(shard, target, write_tar if wanted == TAR_SUFFIX else write_parquet)
        return "rewritten"
    if not copy:
        try:
            os.link(shard.path, target)
            return "linked"
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(shard.path, target)
    return "copied"


def _rewrite(shard: ShardReader, target: Path, write: Callable[..., Any]) -> None:
    """The shard's rows at `target` by another writer, payload by payload; it appears there whole."""
    media = pc.struct_field(shard.table["media"], "sha256").to_pylist()
    row_of = {sha256: row for row, sha256 in enumerate(media)}
    with TemporaryDirectory(dir=target.parent, prefix=".rewriting-") as scratch:
        path = Path(scratch) / target.name
        rows = shard.table.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)
        write(path, rows, lambda sha256: shard.payload(row_of[sha256]))
        os.replace(path, target)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """A file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
