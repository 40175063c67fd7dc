"""Single values of tables, as texts and lists of texts."""

import math
import re
from typing import Any

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def plain_value(value: Any) -> Any:
    """A value as Arrow or JSON give it, with None for NaN and text for bytes, inside lists and objects too.

    Raises UnicodeDecodeError for bytes that are not UTF-8.
    """
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8")
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {plain_value(key): plain_value(item) for key, item in value.items()}
    return value


def text_of(value: Any) -> str:
    """A value of an optional text column as text, "" where it is missing or no single value.

    A missing value is never a word ("nan", "None"), bytes are decoded and not shown ("b'en'"), and a whole number that
    a table holds as a float (pandas makes floats of numbers with gaps) has no decimal point.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    if value is None or isinstance(value, list | tuple | dict):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else "" if not math.isfinite(value) else str(value)
    return str(value)


def texts_of(value: Any) -> list[str]:
    """The texts of a value: one of a text, several of a list, none of a missing one. Empty texts of a list stay."""
    if isinstance(value, list | tuple):
        return [text_of(item) for item in value if item is not None]
    return [] if value is None or value == "" else [text_of(value)]


def without_lone_surrogates(value: Any) -> Any:
    """`value` with U+FFFD for halves of surrogate pairs ("\\ud83d" alone), which JSON can hold and UTF-8 cannot."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_lone_surrogates(key): without_lone_surrogates(item) for key, item in value.items()}
    return value
