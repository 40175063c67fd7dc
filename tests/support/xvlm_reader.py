"""A reader of X-VLM JSON lines written from the description of the reference's loader, sharing no code with ours.

Like the reference it takes a line or refuses it: no words after cleaning, a box that is not inside the image as
stored or has no whole pixel, bytes that do not decode. It knows nothing of EXIF orientation.
"""

import base64
import json
import random
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Accepted:
    """What the reader made of the lines it took, and the lines it refused."""

    captions: list[str] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)  # of every box, in the order of the file
    region_texts: list[str] = field(default_factory=list)
    clips: list[list[np.ndarray]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


def read_folder(folder: Path, rng: random.Random) -> Accepted:
    """Every line of every file below `folder`."""
    accepted = Accepted()
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            try:
                {"image_text": _image_text, "regions": _regions, "videos": _video}[path.parent.name](row, accepted, rng)
            except (AssertionError, OSError, KeyError, ValueError) as error:
                accepted.refused.append((row.get("key", "?"), f"{type(error).__name__}: {error}"))
    return accepted


def _image_text(row: dict[str, Any], accepted: Accepted, rng: random.Random) -> None:
    _image(row["binary"])
    accepted.captions.append(_clean(_any_of(row["desc"], rng)))


def _regions(row: dict[str, Any], accepted: Accepted, rng: random.Random) -> None:
    pixels = _image(row["binary"])
    height, width = pixels.shape[:2]
    if "caption" in row:
        accepted.captions.append(_clean(_any_of(row["caption"], rng)))
    assert row["elems"], "no element"
    for element in row["elems"]:
        x, y, w, h = (int(number) for number in element["bb"])
        assert min(x, y) >= 0, f"box {element['bb']}"
        assert min(w, h) > 0, f"box {element['bb']}"
        assert x + w <= width, f"box {element['bb']}"
        assert y + h <= height, f"box {element['bb']}"
        text = _any_of(element["caption"], rng)
        if "attributes" in element:
            text = f"{_any_of(element['attributes'], rng)} {text}"
        accepted.region_texts.append(_clean(text))
        accepted.crops.append(pixels[y : y + h, x : x + w])


def _video(row: dict[str, Any], accepted: Accepted, rng: random.Random) -> None:
    assert row["video_frames"], "no frame"
    accepted.clips.append([_image(frame) for frame in row["video_frames"]])
    accepted.captions.append(_clean(_any_of(row["text"], rng)))


def _image(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))).convert("RGB"))


def _any_of(texts: str | list[str], rng: random.Random) -> str:
    return rng.choice(texts) if isinstance(texts, list) else texts


def _clean(text: str) -> str:
    text = re.sub(r"[,.'!?\"()*#:;~\-/]", " ", text.lower()).replace("<person>", "person")
    text = " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:40])
    assert text, "nothing is left of the caption"
    return text
