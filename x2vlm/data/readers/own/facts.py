"""What a JSON file or a table row says about one image or clip, whatever the tool that wrote it calls its fields.

Field names are looked for in any case; a card's `columns` names the field of a value where none of the usual names
(`NAMES`) is the right one.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from x2vlm.data.boxes import NORMALISED
from x2vlm.data.readers.hashes import published_hash
from x2vlm.data.readers.own.layout import BoxFormat, ColumnMap
from x2vlm.data.readers.source import Fault, finite_number, whole_number
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Box, Caption, Concept, Grain, SourceScores

NAMES: Mapping[str, tuple[str, ...]] = {  # value: its usual field names, the first that is there counts
    "caption": ("captions", "caption", "text", "texts", "txt", "alt_text", "alt"),
    "url": ("url", "image_url", "video_url"),
    "width": ("width",),
    "height": ("height",),
    "licence": ("license", "licence"),
    "author": ("author",),
    "language": ("language",),
    "sha256": ("sha256", "sha256hash"),
    "md5": ("md5",),
    "boxes": ("boxes", "regions", "objects"),
}
SCORES = ("similarity", "punsafe", "pwatermark")
BOX_TEXTS = ("text", "phrase", "caption", "label", "category", "categories", "name")
REGION_TEXTS = ("text", "phrase", "caption")  # a phrase; the others are labels of objects
BOX_VALUES = ("box", "bbox")
MAX_URL_CHARS = 8192


class Facts:
    """The fields of one row. Values of a type that cannot be what they are called are read as missing."""

    def __init__(self, values: Mapping[str, Any], columns: ColumnMap | None = None) -> None:
        self._values = {str(name).lower(): value for name, value in values.items()}
        self._columns = columns or {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def with_columns(self, columns: ColumnMap) -> "Facts":
        """The same fields under other names."""
        return Facts(self._values, columns)

    def get(self, what: str) -> Any:
        """The raw value of `what`, a key of NAMES or a field's own name; None where it is missing or NaN."""
        for name in self._columns.get(what) or NAMES.get(what, (what,)):
            value = self._values.get(str(name).lower())
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                return value
        return None

    def text(self, what: str) -> str:
        """A text, "" where it is missing or no text."""
        return text_of(self.get(what)) or ""

    @property
    def texts(self) -> list[str]:
        """The captions, uncleaned: of a text or a list of texts."""
        value = self.get("caption")
        values = value if isinstance(value, list | tuple) else [value]
        return [text for one in values if (text := text_of(one)) is not None]

    @property
    def url(self) -> str:
        """The address on the web, "" where there is none."""
        url = self.text("url").strip()
        return url if len(url) <= MAX_URL_CHARS and url.isprintable() else ""

    def sample_values(self) -> dict[str, Any]:
        """What a Sample takes from here beside captions, boxes and address."""
        licence = self.text("licence")
        values: dict[str, Any] = {
            "claimed_width": whole_number(self.get("width")),
            "claimed_height": whole_number(self.get("height")),
            "licence": "" if licence == "?" else clean_text(licence),
            "author": clean_text(self.text("author")),
            "published_hash": published_hash("sha256", self.get("sha256")) or published_hash("md5", self.get("md5")),
        }
        if any(name in self._values for name in (*SCORES, "nsfw")):
            nsfw = self.get("nsfw")
            scores = {name: finite_number(self.get(name)) for name in SCORES}
            values["source_scores"] = SourceScores(**scores, nsfw=None if nsfw is None else str(nsfw))
        return values

    def captions(self, texts: Sequence[str], language: str) -> tuple[Caption, ...]:
        """Texts as captions, each once and none empty; of the row's own language where it names one."""
        cleaned = dict.fromkeys(clean for text in texts if (clean := clean_text(text)))
        origin = "alt" if self.url else "human"
        return tuple(Caption(text, self.text("language") or language, origin) for text in cleaned)

    def concepts(self, boxes: BoxFormat) -> Iterator[tuple[str, Concept | Fault]]:
        """(annotation id, concept or what is wrong with it) of every box."""
        for number, (text, values, grain) in enumerate(_box_records(self.get("boxes"))):
            item = f"{NORMALISED if boxes.unit == 'fraction' else ''}{number}"
            box = box_of_format(values, boxes.format)
            label = clean_text(text or "")
            if box is None:
                yield str(number), ("malformed_box", f"{values!r:.100} is not four numbers")
            elif not label:
                yield str(number), ("empty_label", "")
            else:
                yield item, Concept(grain, label, box, (), item)


def text_of(value: Any) -> str | None:
    """A text or UTF-8 bytes as a text; None for everything else, also for bytes that are not UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) and _is_unicode(value) else None


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can hold and no file of ours can."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def parse_json(data: bytes) -> Facts | str:
    """The facts in a JSON file, or what is wrong with it. A text or a list of texts is read as the captions."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"no JSON in UTF-8: {error}"[:200]
    if isinstance(value, str | list):
        return Facts({"captions": value})
    return Facts(value) if isinstance(value, dict) else "neither an object nor captions"


def box_of_format(values: Any, order: str) -> Box | None:
    """Four numbers in `order` as a box; None unless they are four finite numbers."""
    try:
        a, b, c, d = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(map(math.isfinite, (a, b, c, d))):
        return None
    if order == "xyxy":
        return Box(a, b, c - a, d - b)
    if order == "cxcywh":
        return Box(a - c / 2, b - d / 2, c, d)
    return Box(a, b, c, d)


def _box_records(value: Any) -> Iterator[tuple[str | None, Any, Grain]]:
    """(text, numbers, grain) of every box: a list of objects, or an object of parallel lists as Hugging Face has it."""
    if isinstance(value, Mapping):
        fields = {str(name).lower(): list(one) for name, one in value.items() if isinstance(one, list | tuple)}
        size = max((len(one) for one in fields.values()), default=0)
        value = [{name: one[i] for name, one in fields.items() if i < len(one)} for i in range(size)]
    for record in value if isinstance(value, list | tuple) else ():
        fields = {str(k).lower(): v for k, v in record.items()} if isinstance(record, Mapping) else {}
        text_name = next((name for name in BOX_TEXTS if fields.get(name) is not None), "")
        grain = Grain.REGION if text_name in REGION_TEXTS else Grain.OBJECT
        numbers = next((fields[name] for name in BOX_VALUES if fields.get(name) is not None), None)
        yield text_of(fields.get(text_name)), numbers, grain
