"""The implementation of `jobs/make_world.py`: parse the command line, build a world, report the result."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from x2vlm.command_line import EXIT_FAILED, EXIT_OK, EXIT_USAGE, JobParser, one_of
from x2vlm.errors import ConfigError, X2VLMError

if TYPE_CHECKING:  # --help and a typing error need not wait for Arrow and FFmpeg
    from pipelines.corpora.world.build import Built


def make_world(description: str | None, arguments: list[str] | None = None) -> tuple[str, int]:
    """The text to print, and the exit code: 0 done, 1 failed, 3 wrong usage."""
    parser = JobParser(description)
    parser.add_argument("--out", type=Path, required=True, help="folder of the world; finished if it was begun")
    parser.add_argument("--scenes", type=int, default=1000, help="how many; a tenth is held out for evaluation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes; they do not change the result")
    parser.add_argument("--sources", help="comma-separated; default: all")
    parser.add_argument("--image-size", type=int, default=256, help="short side of an ordinary image, pixels")
    parser.add_argument("--finetuning-scenes", type=int, help="beyond these, for learning tasks; default: a tenth more")
    parser.add_argument("--media", type=one_of(("jpg", "none")), default="jpg", help="none: annotations only")
    try:
        options = parser.parse(arguments)
    except SystemExit as stop:
        return "", EXIT_USAGE if stop.code else EXIT_OK
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        text, data = _report(options.out, _build(options))
    except X2VLMError as error:
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
        text, data = f"{type(error).__name__}: {error}", {"error": str(error)}
        return (json.dumps({**data, "exit_code": code}) if options.json else text), code
    return (json.dumps({**data, "exit_code": EXIT_OK}) if options.json else text), EXIT_OK


def _build(options: argparse.Namespace) -> Built:
    from pipelines.corpora.world.build import build_world
    from pipelines.corpora.world.config import SOURCES, WorldConfig
    from x2vlm.config import parse_config

    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: at least 1")
    values = {
        "seed": options.seed,
        "scenes": options.scenes,
        "sources": tuple(options.sources.split(",")) if options.sources else SOURCES,
        "image_size": options.image_size,
        "finetuning_scenes": options.finetuning_scenes,
        "media": options.media,
    }
    return build_world(parse_config(WorldConfig, values, "command line"), options.out, options.workers)


def _report(out: Path, built: Built) -> tuple[str, dict[str, object]]:
    rate = built.scenes_made / built.seconds if built.seconds else 0.0
    lines = [f"{out}: {built.scenes_made} scenes made in {built.seconds:.1f} s ({rate:.1f} scenes/s)"]
    for source, counts in built.counts.items():
        units = ", ".join(f"{number} {unit}" for unit, number in counts.items())
        lines.append(f"  {source:16} {units}; planted {sum(built.planted.get(source, {}).values())}")
    lines.append(f"content sha256 {built.content_sha256}")
    data = {
        "out": str(out),
        "scenes_made": built.scenes_made,
        "seconds": round(built.seconds, 3),
        "scenes_per_second": round(rate, 2),
        "counts": built.counts,
        "planted": built.planted,
        "content_sha256": built.content_sha256,
    }
    return "\n".join(lines), data
