"""The implementation of `jobs/new_source.py`: look at data, say what they are, and write a card and an experiment."""

import argparse
import re
import shlex
import urllib.parse
from pathlib import Path
from typing import Any

from pipelines.experiment import shipped_experiments
from pipelines.new_source.arguments import COLUMN_OPTIONS
from pipelines.new_source.found import SHOWN_ROWS, Found, Wishes
from pipelines.new_source.media import Hosts, hosts_of
from pipelines.new_source.places import Place, find_place
from pipelines.new_source.sets import look_at_set
from pipelines.new_source.sizes import (
    HUB_CLIP,
    HUB_VOCABULARY,
    PRESETS,
    SAMPLE_CLIP,
    SAMPLE_VOCABULARY,
    Size,
    size_for,
)
from pipelines.new_source.tables import look_at_table
from pipelines.new_source.write import card_of, card_text, experiment_text, experiment_values, shown, write_files
from pipelines.project import PROJECT_ROOT
from x2vlm.config import parse_config
from x2vlm.data.readers.own.layout import BoxFormat
from x2vlm.data.readers.own.places import LOCAL_HOST
from x2vlm.errors import ConfigError
from x2vlm.samples import Sample

SOURCES = PROJECT_ROOT / "runs" / "sources"


def new_source(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What to print, and the same as data. ConfigError says what is missing, before anything is written."""
    place = find_place(options.path)
    name = _name(options, place)
    found = look_at(place, Wishes(name, _columns(options), _boxes(options), options.media))
    hosts = hosts_of(sample.url for sample in found.samples if not found.places)  # of a set nothing is fetched
    if hosts.private and not options.allow_private:
        listed = ", ".join(f"{host} ({', '.join(networks)})" for host, networks in list(hosts.private.items())[:5])
        raise ConfigError(
            f"{place.name}: addresses lead to this machine or a private network: {listed}. Nothing is fetched from "
            "there unless you say so: give --allow-private, which writes `allow_networks` into the card"
        )
    size: Size = options.size or size_for(int(found.num_rows * found.share_kept))
    vocabulary = options.vocabulary or (SAMPLE_VOCABULARY if size == "toy" else HUB_VOCABULARY)
    clip_model = options.clip or (SAMPLE_CLIP if size == "toy" else HUB_CLIP)
    out = (options.out or SOURCES / name).resolve()
    experiment_path, card_path = out / f"{name}.yaml", out / "card" / f"{name}.yaml"
    card = card_of(name, place.name, options.text_licence, options.text_language, found, hosts.networks)
    values = experiment_values(name, card_path, found, hosts, size, vocabulary, clip_model)
    command = f"python jobs/full_pretrain.py {shlex.quote(shown(experiment_path))}" + (
        " --inline" if size == "toy" else ""
    )
    header = [
        f"{printable(place.name, 200)}: {_count(found)}, a model of size `{size}`.",
        "Written by jobs/new_source.py; change what you like.",
        f"Run:     {command}",
        f"Needs:   {PRESETS[size].needs}",
    ]
    write_files({card_path: card_text(card), experiment_path: experiment_text(values, header)}, options.force)
    lines = [
        *_understood(options.path[0], found),
        "",
        *_decided(size, vocabulary, clip_model, hosts),
        f"card        {shown(card_path)}",
        f"experiment  {shown(experiment_path)}",
        "",
        f"next: {command}",
        f"      {command.replace(' --inline', '')} --dry-run     shows every step without running any",
    ]
    data = {
        "name": name,
        "reader": found.reader,
        "card": str(card_path),
        "experiment": str(experiment_path),
        "num_rows": found.num_rows,
        "is_counted": found.is_counted,
        "dropped": dict(found.dropped),
        "size": size,
        "next": command,
    }
    return "\n".join(lines), data


def look_at(place: Place, wishes: Wishes) -> Found:
    """What a user's data are. ConfigError names what is missing to understand them."""
    is_table = place.reader == "table"
    found = look_at_table(Path(place.root, place.path), wishes) if is_table else look_at_set(place, wishes)
    if not found.samples:
        rules = "; ".join(f"{rule} {number} ({found.reasons[rule]})" for rule, number in found.dropped.most_common(3))
        raise ConfigError(
            f"{place.name}: none of the first {found.num_looked} rows can be used: {rules or 'it is empty'}"
        )
    return found


def _name(options: argparse.Namespace, place: Place) -> str:
    given = options.name or re.sub(r"[^a-z0-9_]+", "_", place.name.partition(".")[0].lower()).strip("_") or "own"
    if not re.fullmatch("[a-z0-9_]+", given):
        raise ConfigError(f"--name {given}: lower case letters, digits and _ only")
    if given in shipped_experiments():
        raise ConfigError(
            f"{given}: a shipped experiment has that name, and a store keeps them apart by it; give --name"
        )
    return given


def _columns(options: argparse.Namespace) -> dict[str, tuple[str | int, ...]]:
    """The columns that were named; all by position if all are numbers."""
    given = {field: tuple(names) for field in COLUMN_OPTIONS if (names := getattr(options, field))}
    flat = [name for names in given.values() for name in names]
    if flat and all(name.isdecimal() for name in flat):
        return {field: tuple(int(name) for name in names) for field, names in given.items()}
    return dict(given)


def _boxes(options: argparse.Namespace) -> BoxFormat | None:
    named = [field for field in ("boxes", "labels", "phrases") if getattr(options, field)]
    if options.box_format is None:
        if named:
            raise ConfigError(f"--{named[0]}: say how boxes are written with --box-format xywh, xyxy or cxcywh")
        return None
    return parse_config(BoxFormat, {"format": options.box_format, "unit": options.box_unit}, "command line")


def _count(found: Found) -> str:
    return f"{found.num_rows:,} rows" if found.is_counted else f"about {found.num_rows:,} rows"


def _understood(path: str, found: Found) -> list[str]:
    """What was understood, with five rows as a table."""
    header = ("", "row", "media in", "captions", "boxes") if found.places else ("", "address", "captions", "boxes")
    places = found.places or [""] * SHOWN_ROWS
    rows = [header, *map(_cells, found.samples[:SHOWN_ROWS], places)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    drops = [f"{rule} {number} ({printable(found.reasons[rule], 70)})" for rule, number in found.dropped.most_common()]
    lines = [
        f"{printable(path, 200)}: {_count(found)}; of the first {found.num_looked:,}, {len(found.samples):,} "
        "can be used",
        *table,
    ]
    return [*lines, *(f"not used: {drop}" for drop in drops), *(f"note: {note}" for note in found.notes)]


def _cells(sample: Sample, place: str) -> tuple[str, ...]:
    more = f" (+{len(sample.captions) - 1})" if len(sample.captions) > 1 else ""
    caption = printable(sample.captions[0].text, 44) + more if sample.captions else "-"
    boxes = f"{len(sample.concepts)}: {printable(sample.concepts[0].text, 16)}" if sample.concepts else "-"
    if place:
        return sample.kind, printable(sample.source_row, 40), printable(place, 40), caption, boxes
    local = sample.url.removeprefix(f"{LOCAL_HOST}/")
    address = sample.url if local == sample.url else urllib.parse.unquote(local)
    return sample.kind, printable(address, 48), caption, boxes


def printable(text: str, width: int) -> str:
    """`text` in at most `width` characters, with escapes in place of what a terminal would obey."""
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[: width * 2])
    return safe if len(safe) <= width else safe[: width - 1] + "…"


def _decided(size: Size, vocabulary: str, clip_model: str, hosts: Hosts) -> list[str]:
    lines = [f"model       {size} (needs {PRESETS[size].needs}; --size for another)"]
    if vocabulary == SAMPLE_VOCABULARY:
        lines.append("vocabulary  the shipped one of 1,033 words: to try everything without a network, not to learn")
    elif vocabulary == HUB_VOCABULARY:
        lines.append(
            f"vocabulary  {vocabulary}: get it from the Hugging Face hub (google-bert/bert-base-uncased) first"
        )
    if clip_model == SAMPLE_CLIP:
        lines.append("clip_model  the shipped tiny one, which does not know your images: its scores drop nothing")
    elif clip_model == HUB_CLIP:
        lines.append(f"clip_model  {clip_model}: get it from the hub first (laion/CLIP-ViT-B-32-laion2B-s34B-b79K)")
    if hosts.ports:
        lines.append(
            f"download    allow_ports {', '.join(map(str, hosts.ports))} beside 80 and 443, as the addresses need"
        )
    if hosts.private:
        lines.append(f"download    allow_networks {', '.join(hosts.networks)}: private, by --allow-private")
    return lines
