"""An experiment's shards as X-VLM JSON lines, so that the reference's own loader can train on our data."""

import json
import logging
import os
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from pipelines.flow.stage import InputPart
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from x2vlm.data.shards.media_files import index_name, is_media_file
from x2vlm.data.shards.shard import ShardReader
from x2vlm.data.shards.xvlm_export import LINE_KINDS, LineKind, xvlm_lines
from x2vlm.errors import ConfigError

log = logging.getLogger(__name__)

SUMMARY = "summary.json"


def export_shards(store: Store, experiment: str, out: Path) -> dict[str, Any]:
    """What was written below `out`: `<kind>/<shard>.jsonl` for every kind of line, then `summary.json`.

    The same shards always give the same bytes; a finished export of the same artifact is left alone. ConfigError if
    the experiment has no shards in `store`, or if `out` holds the export of other shards.
    """
    node = f"pack/{experiment}"
    ref = store.read_ref(experiment, node)
    stored = None if ref is None else store.read_manifest(ref.manifest_path)
    if ref is None or stored is None:
        raise ConfigError(
            f"{store.uri} holds no shards of {experiment}; run `jobs/run_stage.py {experiment} --only 'pack/*'` first"
        )
    if (out / SUMMARY).exists():
        summary: dict[str, Any] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        if summary["root"] != ref.root:
            raise ConfigError(f"{out} holds an export of other shards ({summary['root'][:12]}…); name another folder")
        return summary
    lines: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    num_samples = 0
    for part in store.as_input(stored[0]).parts:
        num_samples += _export_shard(store, part, out, lines, left_out)
        log.info("event=shard_exported part=%s lines=%d", part.name, lines.total())
    summary = {
        "experiment": experiment,
        "root": ref.root,
        "samples": num_samples,
        "lines": {kind: lines[kind] for kind in LINE_KINDS},
        "left_out": dict(sorted(left_out.items())),
    }
    _write_whole(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _export_shard(store: Store, part: InputPart, out: Path, lines: Counter[str], left_out: Counter[str]) -> int:
    """Write the lines of one shard, one sample in memory at a time; the number of its samples."""
    data = next(file for file in part.files if is_media_file(file.path))
    index = part.file(index_name(data.path))
    name = f"{Path(index.path).stem}.jsonl"
    with tempfile.TemporaryDirectory(prefix="x2vlm-export-") as links, ExitStack() as stack:
        reader = StoreReader(store, Path(links), part.name)
        shard = ShardReader(reader.local_path(data), reader.local_path(index))
        streams: dict[LineKind, TextIO] = {}
        for row, sample in enumerate(shard.samples()):
            for kind, line in xvlm_lines(sample, shard.payload(row), left_out):
                if kind not in streams:
                    (out / kind).mkdir(parents=True, exist_ok=True)
                    streams[kind] = stack.enter_context((out / kind / f".{name}").open("w", encoding="utf-8"))
                streams[kind].write(json.dumps(line, ensure_ascii=False) + "\n")
                lines[kind] += 1
        shard.close()
        num_samples = len(shard)
    for kind in streams:
        os.replace(out / kind / f".{name}", out / kind / name)
    return num_samples


def _write_whole(path: Path, text: str) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
