"""The card and the experiment of a user's source, as YAML."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.experiment import Experiment
from pipelines.new_source.found import Found
from pipelines.new_source.media import Hosts
from pipelines.new_source.sizes import PRESETS, ROWS_PER_SHARD, SAMPLE_CLIP, Size, steps_for, streams_for
from pipelines.project import PROJECT_ROOT
from x2vlm.config import parse_config
from x2vlm.data.cards import Card, CardFile, UrlBase
from x2vlm.data.readers.own.places import LOCAL_HOST
from x2vlm.errors import ConfigError
from x2vlm.samples import Grain


def card_of(name: str, title: str, licence: str, language: str, found: Found, networks: Sequence[str]) -> Card:
    """The facts of the source."""
    kinds = {sample.kind for sample in found.samples}
    grains = [grain for grain in (Grain.IMAGE, Grain.VIDEO) if str(grain) in kinds]
    grains += sorted({concept.grain for sample in found.samples for concept in sample.concepts})
    serve = None if found.media_folder is None else UrlBase(**{"from": LOCAL_HOST, "serve": shown(found.media_folder)})
    values: dict[str, Any] = {
        "id": name,
        "title": title,
        "licence": licence,
        "availability": "shipped",
        "grains": tuple(grains),
        "reader": found.reader,
        "language": language,
        "root": found.root if "://" in found.root else shown(Path(found.root)),
        "files": {role: CardFile(path=path) for role, path in found.files.items()},
        "columns": found.columns,
        "boxes": found.boxes,
        "url_base": serve,
        "allow_networks": tuple(networks),
    }
    return parse_config(Card, values, f"card of {name}")


def card_text(card: Card) -> str:
    """The card as YAML."""
    values = card.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    values["columns"] = {field: names[0] if len(names) == 1 else names for field, names in card.columns.items()}
    if not values["columns"]:
        del values["columns"]
    return f"# Written by jobs/new_source.py; datasets/README.md explains every field.\n{_yaml(values)}"


def experiment_values(
    name: str, card_path: Path, found: Found, hosts: Hosts, size: Size, vocabulary: str, clip_model: str
) -> dict[str, Any]:
    """The experiment, without what its defaults say. ConfigError if it is none."""
    preset = PRESETS[size]
    scale = found.num_rows / max(found.num_looked, 1)
    captioned = int(scale * sum(1 for one in found.samples if one.kind == "image" and one.captions))
    boxed = int(scale * sum(1 for one in found.samples if one.kind == "image" and one.concepts))
    clips = int(scale * sum(1 for one in found.samples if one.kind == "video" and one.captions))
    streams = streams_for(preset, captioned, boxed, clips)
    num_rows = captioned or boxed or clips
    steps = steps_for(preset, num_rows, streams[0].get("num_images", streams[0]["batch_size"]))
    model = {**preset.model, **({"num_frames": 3} if clips else {})}
    image_res = preset.model.get("vision", {}).get("image_res", 224)
    values: dict[str, Any] = {
        "sources": {name: {"card": _card_name(card_path), "rows_per_part": 2000 if size == "toy" else 10_000}},
        **({"download": {"allow_ports": [80, 443, *hosts.ports]}} if hosts.ports else {}),
        "filter": {"min_short_edge": 32, "max_aspect_ratio": None, "image_res": image_res} if size == "toy" else {
            "min_short_edge": image_res, "max_aspect_ratio": 3.0},
        "decontaminate": None,
        "vocabulary": vocabulary,
        "clip_model": clip_model,
        "partition": {
            "num_shards": max(4, min(4096, int(found.num_rows / ROWS_PER_SHARD))),
            **({"min_clip_score": None} if clip_model == SAMPLE_CLIP else {}),
        },
        "train_runtime": {"checkpoint_every": max(10, steps // 10)},
        "pretrain": {
            "world_size": preset.world_size,
            **({"model": model} if model else {}),
            "data": {"streams": streams, "examples": {"max_tokens": preset.max_tokens}},
            "train": {
                "steps": steps,
                "warmup_steps": steps // 10,
                **preset.train,
                "optimizer": {"lr": preset.lr},
            },
        },
    }  # fmt: skip
    parse_config(Experiment, {"name": name, **values}, f"experiment of {name}")
    return values


def experiment_text(values: dict[str, Any], header: Sequence[str]) -> str:
    """The experiment as YAML, below its header comment."""
    return "".join(f"# {line}\n" for line in header) + _yaml(values)


def write_files(texts: dict[Path, str], is_forced: bool) -> None:
    """Writes all files. ConfigError, before any is written, for one that is there and says something else."""
    other = [path for path, text in texts.items() if path.exists() and path.read_text(encoding="utf-8") != text]
    if other and not is_forced:
        names = ", ".join(shown(path) for path in other)
        raise ConfigError(f"{names}: there already, and may hold your changes; write them again with --force, "
                          "or elsewhere with --out")  # fmt: skip
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def shown(path: Path) -> str:
    """A path as cards and experiments give it: from the project's root, absolute outside of it."""
    resolved = path.resolve()
    inside = resolved.is_relative_to(PROJECT_ROOT)
    return str(resolved.relative_to(PROJECT_ROOT)) if inside else str(resolved)


def _card_name(path: Path) -> str:
    """How an experiment names a card: from datasets/, or absolute outside of the project."""
    resolved = path.resolve().with_suffix("")
    return (
        os.path.relpath(resolved, PROJECT_ROOT / "datasets") if resolved.is_relative_to(PROJECT_ROOT) else str(resolved)
    )


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
