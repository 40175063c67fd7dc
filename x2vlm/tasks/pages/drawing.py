"""Images in a page: small copies of them within the file, with boxes drawn over them."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from x2vlm.command_line import printable
from x2vlm.samples import Box

if TYPE_CHECKING:
    from x2vlm.inference.visuals import Visual

LONGEST_SIDE_PIXELS = 320  # 10 to 30 kB each
QUALITY = 80
MAX_FRAMES = 5


@dataclass(frozen=True)
class Outline:
    """A box in pixels of the oriented original; `kind` is its class in the page: `found` or `truth`."""

    box: Box
    kind: str


def picture(visual: "Visual", outlines: Sequence[Outline] = (), caption: str = "") -> str:
    """The image with its outlines, or the frames of a clip side by side."""
    frames = "".join(f'<img alt="{text(caption)}" src="{_data_uri(frame)}">' for frame in visual.frames[:MAX_FRAMES])
    width, height = visual.size
    marks = "".join(_mark(one, max(width, height) / 100) for one in outlines)
    overlay = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{marks}</svg>' if marks else ""
    return f'<div class="{"frames" if visual.is_clip else "image"}">{frames}{overlay}</div>'


def text(value: object) -> str:
    """`value` for a page: markup and control characters are shown as characters."""
    return html.escape(printable(value), quote=True)


def _mark(outline: Outline, unit: float) -> str:
    """A light line below the coloured one, so that a box is seen on any background."""
    box = outline.box
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" fill="none"'
    return (
        f'<rect {place} stroke="#fff" stroke-width="{1.6 * unit:.2f}"/>'
        f'<rect {place} class="{outline.kind}" stroke-width="{0.9 * unit:.2f}"/>'
    )


def _data_uri(frame: Image.Image) -> str:
    copy, buffer = frame.convert("RGB"), BytesIO()
    copy.thumbnail((LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
    copy.info = {}  # no comment, place or time of the original goes into the page
    copy.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
