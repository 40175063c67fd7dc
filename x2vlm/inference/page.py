"""The page that shows what a model makes of images: one file of HTML that grows figure by figure.

It opens offline, makes no request, works without JavaScript, and shows markup in texts as text. While it grows, the
file that people open is always a whole page: it is replaced, never written into.
"""

from __future__ import annotations

import base64
import html
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from PIL import Image

from x2vlm.command_line import printable

if TYPE_CHECKING:  # the page knows no model
    from x2vlm.inference.api import Grounded
    from x2vlm.inference.visuals import Skipped, Visual

PUBLISHING_SHARE = 0.05  # of the time: copying a page of many gigabytes after every batch would take most of it
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


class GrowingPage:
    """The page at `path`, while it is made: figures are added, and `publish` shows what there is so far.

    Memory holds one figure at a time. OSError where the folder or the file cannot be written.
    """

    def __init__(self, path: Path, model_name: str) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Hidden, and in the same folder: only there a replacement is one step.
        self._body = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._whole = path.with_name(f".{path.name}.{os.getpid()}.new.tmp")
        self._file = self._body.open("wb")
        self._num_bytes = 0  # of whole figures: Ctrl-C may come in the middle of one
        self._write(_head(model_name))
        self._published_at = self._took = 0.0

    def __enter__(self) -> GrowingPage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for path in (self._body, self._whole):
            path.unlink(missing_ok=True)

    def add(self, item: Shown) -> None:
        """One figure more at the end."""
        self._write(_figure(item))

    def publish(self, skipped: Sequence[Skipped], note: str) -> None:
        """Replaces the file by a whole page of all figures so far, and says `note` in it.

        Nothing happens while the copies would take more than a twentieth of the time.
        """
        begun = time.monotonic()
        if begun - self._published_at < self._took / PUBLISHING_SHARE:
            return
        self._file.flush()
        shutil.copyfile(self._body, self._whole)
        with self._whole.open("a", encoding="utf-8") as whole:
            whole.write(_tail(skipped, note))
        os.replace(self._whole, self._path)
        self._published_at = time.monotonic()
        self._took = self._published_at - begun

    def finish(self, skipped: Sequence[Skipped], note: str = "") -> None:
        """Replaces the file by the page as it stays; nothing can be added any more."""
        self._file.flush()
        self._file.seek(self._num_bytes)
        self._file.truncate()
        self._write(_tail(skipped, note))
        self._file.close()
        os.replace(self._body, self._path)

    def _write(self, text: str) -> None:
        self._num_bytes += self._file.write(text.encode("utf-8"))


def _head(model_name: str) -> str:
    title = f"What {_text(model_name)} sees"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head><body>'
        f'<h1>What the model sees</h1><p class="faint">Model: {_text(model_name)}. '
        "Captions and boxes are the model's, unedited. It gives a box for every "
        "phrase, also for what is not there; the percentage is how probable it finds that the phrase describes the "
        'image.</p><div class="all">\n'
    )


def _tail(skipped: Sequence[Skipped], note: str) -> str:
    rows = [f"<tr><td>{_text(s.name)}</td><td>{_text(s.rule)}</td><td>{_text(s.message)}</td></tr>" for s in skipped]
    head = "<tr><th>file</th><th>rule</th><th>what was seen</th></tr>"
    table = f"<h2>Left out</h2><table>{head}{''.join(rows)}</table>\n" if rows else ""
    words = f'<p class="faint">{_text(note)}</p>\n' if note else ""
    return f"</div>\n{table}{words}</body></html>\n"


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
    return f'<div class="image">{images[0]}{overlay}</div>'


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
    return html.escape(printable(text), quote=True)
