"""A page that shows what a model makes of some images: a caption for each, and where it sees the phrases asked for.

The qualitative study of the paper (X2-VLM, figures of captions and of concepts typed by hand) for anybody's images.
The page is one file: it opens offline, makes no request, works without JavaScript, and shows markup in texts as text.
"""

import argparse
import base64
import html
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from x2vlm.errors import ConfigError, InvalidSample, SourceUnavailable, X2VLMError
from x2vlm.inference.api import Grounded, Pretrained, caption, ground, load
from x2vlm.inference.visuals import Skipped, Visual, list_files, read_visuals

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ENVIRONMENT = 0, 1, 3, 4
LONGEST_SIDE_PIXELS = 960  # of an image in the page: 100 to 200 kB each
# Distinguishable in print and by most colour-blind readers (Okabe and Ito); every box also has its number.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1a; --paper: #fcfcfa; --faint: #6b6b66; --line: #dcdcd6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e9e4; --paper: #191918; --faint: #a3a39c; --line: #3a3a37; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; } .faint { color: var(--faint); font-size: .85rem; }
.all { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.6rem; }
figure { margin: 0; } figcaption p { margin: .4rem 0; } .caption { font-size: 1.05rem; }
.image { position: relative; line-height: 0; } .image img { width: 100%; height: auto; }
.image svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.frames { display: flex; gap: .2rem; } .frames img { flex: 1 1 0; min-width: 0; height: auto; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem .9rem .15rem 0; vertical-align: top; }
td, th { border-bottom: 1px solid var(--line); } .number { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.tag { color: #fff; padding: 0 .35rem; border-radius: .2rem; }
""" + "".join(f".c{number} {{ background: {colour}; }} " for number, colour in enumerate(COLOURS))


@dataclass(frozen=True)
class Shown:
    """What a page says about one image or clip."""

    visual: Visual
    caption: str
    grounded: tuple[Grounded, ...] = ()


def describe(pretrained: Pretrained, visual: Visual, phrases: Sequence[str]) -> Shown:
    """The model's caption, and its box for every phrase; clips get a caption only."""
    (text,) = caption(pretrained, [visual])
    return Shown(visual, text, () if visual.is_clip else tuple(ground(pretrained, visual, phrases)))


def render_page(model_name: str, shown: Iterable[Shown], skipped: Iterable[Skipped]) -> Iterator[str]:
    """The page as pieces of HTML; each image is asked for when its piece is due, so one at a time is in memory."""
    title = f"What {_text(model_name)} sees"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head><body>'
        f'<h1>What the model sees</h1><p class="faint">Model: {_text(model_name)}. '
        "Captions and boxes are the model's, unedited. It gives a box for every "
        "phrase, also for what is not there; the percentage is how probable it finds that the phrase describes the "
        'picture.</p><div class="all">\n'
    )
    for item in shown:
        yield _figure(item)
    yield "</div>\n"
    rows = [f"<tr><td>{_text(s.name)}</td><td>{_text(s.rule)}</td><td>{_text(s.message)}</td></tr>" for s in skipped]
    if rows:
        head = "<tr><th>file</th><th>rule</th><th>what was seen</th></tr>"
        yield f"<h2>Left out</h2><table>{head}{''.join(rows)}</table>\n"
    yield "</body></html>\n"


def show(description: str | None, arguments: Sequence[str] | None = None) -> tuple[str, int]:
    """What `jobs/show.py` prints, and its exit code: 0 done, 1 failed, 3 wrong usage, 4 model not to be had."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with config.json, or a hub name (owner/name)")
    parser.add_argument("images", nargs="+", help="images, clips, or folders of them")
    parser.add_argument("--phrases", nargs="+", default=[], help='what to look for, such as "a red bus"')
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of text")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return "", EXIT_USAGE if stop.code else EXIT_OK
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        num_shown, skipped = write_page(options)
    except X2VLMError as error:
        usage = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
        code = EXIT_ENVIRONMENT if isinstance(error, SourceUnavailable) else usage
        text, data = f"{type(error).__name__}: {error}", {"error": str(error), "exit_code": code}
        return (json.dumps(data) if options.json else text), code
    names = [f"left out {item.name}: {item.rule}" for item in skipped]
    data = {"page": str(options.out), "shown": num_shown, "skipped": [vars(item) for item in skipped], "exit_code": 0}
    text = "\n".join([f"{options.out}: {num_shown} shown, {len(skipped)} left out", *names])
    return (json.dumps(data) if options.json else text), EXIT_OK


def write_page(options: argparse.Namespace) -> tuple[int, list[Skipped]]:
    """Writes the page in one step; how many images and clips it shows, and what was left out.

    InvalidSample if none of the files can be shown; ConfigError for a device or a phrase that cannot be used.
    """
    pretrained = load(options.model, _device(options.device))
    try:
        pretrained.processor.texts(options.phrases)
    except InvalidSample as error:
        raise ConfigError(f"--phrases: {error}") from None
    skipped: list[Skipped] = []
    names: list[str] = []

    def shown() -> Iterator[Shown]:
        config = pretrained.processor.config
        for found in read_visuals(_files(options.images), config.frames_per_clip, config.frames_per_second):
            if isinstance(found, Skipped):
                log.warning("event=left_out file=%s rule=%s", found.name, found.rule)
                skipped.append(found)
                continue
            names.append(found.name)
            yield describe(pretrained, found, options.phrases)

    partial = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(render_page(Path(options.model).name, shown(), skipped))
        if not names:
            seen = "; ".join(f"{item.name}: {item.rule}" for item in skipped[:10])
            raise InvalidSample("nothing_to_show", f"no image or clip among the given files ({seen or 'none'})")
        os.replace(partial, options.out)
    except OSError as error:
        raise ConfigError(f"--out {options.out}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return len(names), skipped


def _files(names: Sequence[str]) -> list[Path]:
    paths = [Path(name) for name in names]
    return [file for path in paths for file in (list_files(path) if path.is_dir() else [path])]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"--device {name}: {error}") from None
    return device


def _figure(item: Shown) -> str:
    visual = item.visual
    width, height = visual.size
    size = f"{width} × {height} pixels" + (f", {len(visual.frames)} frames of a clip" if visual.is_clip else "")
    rows = [_row(number, found) for number, found in enumerate(item.grounded, start=1)]
    head = '<tr><th>phrase</th><th class="number">fits</th><th class="number">x, y, w, h in pixels</th></tr>'
    table = f"<table>{head}{''.join(rows)}</table>" if rows else ""
    return (
        f'<figure>{_media(item)}<figcaption><p class="caption">{_text(item.caption) or "(no words)"}</p>{table}'
        f'<p class="faint">{_text(visual.name)}, {size}</p></figcaption></figure>\n'
    )


def _media(item: Shown) -> str:
    visual = item.visual
    images = [f'<img alt="{_text(item.caption)}" src="{_data_uri(frame)}">' for frame in visual.frames]
    if visual.is_clip:
        return f'<div class="frames">{"".join(images)}</div>'
    width, height = visual.size
    unit = max(width, height) / 100  # boxes keep their look whatever the size of the original
    # All outlines first, so that no box is drawn over another's number.
    marks = [draw(number, found, unit) for draw in (_outline, _tag) for number, found in enumerate(item.grounded, 1)]
    overlay = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(marks)}</svg>' if marks else ""
    return f"<div .image>{images[0]}{overlay}</div>"


def _outline(number: int, found: Grounded, unit: float) -> str:
    box, colour = found.box, COLOURS[(number - 1) % len(COLOURS)]
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" fill="none"'
    return (
        f'<rect {place} stroke="#fff" stroke-width="{1.2 * unit:.2f}"/>'
        f'<rect {place} stroke="{colour}" stroke-width="{0.7 * unit:.2f}"/>'
    )


def _tag(number: int, found: Grounded, unit: float) -> str:
    """The number, in a corner that goes round with it: boxes of like phrases nearly coincide, their tags must not."""
    box, side = found.box, 5 * unit
    right, bottom = box.x + box.w - side, box.y + box.h - side
    x, y = ((box.x, box.y), (right, box.y), (right, bottom), (box.x, bottom))[(number - 1) % 4]
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'fill="{COLOURS[(number - 1) % len(COLOURS)]}"/>'
        f'<text x="{x + side / 2:.1f}" y="{y + 0.74 * side:.1f}" font-size="{0.75 * side:.1f}" fill="#fff" '
        f'font-family="sans-serif" text-anchor="middle">{number}</text>'
    )


def _row(number: int, found: Grounded) -> str:
    box = found.box
    tag = f'<span class="tag c{(number - 1) % len(COLOURS)}">{number}</span>'
    numbers = f"{box.x:.0f}, {box.y:.0f}, {box.w:.0f}, {box.h:.0f}"
    fits = f'<td class="number">{100 * found.match_probability:.0f} %</td>'
    return f'<tr><td>{tag} {_text(found.phrase)}</td>{fits}<td class="number">{numbers}</td></tr>'


def _data_uri(frame: Image.Image) -> str:
    copy, buffer = frame.copy(), BytesIO()
    copy.thumbnail((LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
    copy.info = {}  # no comment, place or time of the original goes into the page
    copy.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(text: str) -> str:
    return html.escape(text, quote=True)
