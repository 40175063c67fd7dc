"""Shards as X-VLM JSON lines, so that the reference's own loader can train on our data."""

import json
import logging
import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from pipelines.export.packed import opened
from pipelines.flow.stage import Input, InputPart
from pipelines.flow.store.store import Store
from x2vlm.data.shards.xvlm_export import LINE_KINDS, LineKind, xvlm_lines

log = logging.getLogger(__name__)


def export_lines(store: Store, shards: Input, out: Path) -> dict[str, Any]:
    """Counts of what was written below `out`: `<kind>/<shard>.jsonl` for every kind of line. One sample is in memory
    at a time."""
    lines: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    num_samples = 0
    for part in shards.parts:
        num_samples += _export_shard(store, part, out, lines, left_out)
        log.info("event=shard_exported part=%s lines=%d", part.name, lines.total())
    return {
        "samples": num_samples,
        "lines": {kind: lines[kind] for kind in LINE_KINDS},
        "left_out": dict(sorted(left_out.items())),
    }


def _export_shard(store: Store, part: InputPart, out: Path, lines: Counter[str], left_out: Counter[str]) -> int:
    """Write the lines of one shard; the number of its samples."""
    with opened(store, part) as shard, ExitStack() as stack:
        name = f"{shard.path.name.partition('.')[0]}.jsonl"
        streams: dict[LineKind, TextIO] = {}
        for row, sample in enumerate(shard.samples()):
            for kind, line in xvlm_lines(sample, shard.payload(row), left_out):
                if kind not in streams:
                    (out / kind).mkdir(parents=True, exist_ok=True)
                    streams[kind] = stack.enter_context((out / kind / f".{name}").open("w", encoding="utf-8"))
                streams[kind].write(json.dumps(line, ensure_ascii=False) + "\n")
                lines[kind] += 1
    for kind in streams:
        os.replace(out / kind / f".{name}", out / kind / name)
    return len(shard)
