"""Text for people: without passwords and tokens, and without characters that a terminal would obey.

URLs, captions and file names come from strangers: an escape sequence in one can repaint the screen or set the
clipboard of whoever reads a log. Secrets come from users: in the address of MLflow, of a store, of an image.
"""

import logging
import re
import sys
import traceback
import urllib.parse
from types import TracebackType
from typing import Any

from x2vlm.command_line import printable

MASK = "***"
# A password may hold any character but those that end the authority of a URL, also "@".
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30}://)[^/?#\\\s\"'<>]*@")
_SIGNED = re.compile(
    # Bounded, so that a hostile URL costs linear time.
    r"(?P<name>[?&#;](?:[^=&?#;\s]{0,64}?(?:signature|token|secret|credential|passw|pwd|auth(?!or)|jwt|key)"
    r"[^=&?#;\s]{0,64}|sig)=)"
    r"[^&\s\"'<>)\]]+",
    re.IGNORECASE,
)
_known: set[str] = set()  # secrets that no pattern would find, as `hide` was told


def mask_url(text: str) -> str:
    """`text` with the user part of URLs and signatures in their queries masked."""
    return _SIGNED.sub(rf"\g<name>{MASK}", _USERINFO.sub(rf"\g<scheme>{MASK}@", text))


def mask(text: str) -> str:
    """`mask_url`, and whatever `hide` was told, in any place and spelling."""
    if "://" in text or "=" in text:
        text = mask_url(text)
    for secret in _known:
        text = text.replace(secret, MASK)
    return text


def hide(uri: str | None) -> None:
    """Mask the user's password in `uri` wherever `mask` meets it from now on in this process, also apart from it."""
    before, at, _ = (uri or "").partition("://")[2].rpartition("@")
    password = before.partition(":")[2] if at else ""
    if len(password) >= 4:  # a shorter one occurs in other words, and stands in its URL in any case
        _known.update({password, urllib.parse.unquote(password), urllib.parse.quote(password, safe="")})


def has_secret(text: str) -> bool:
    """Whether `text` has a URL with a password, a user of a web site, or a signed query.

    A user alone is none elsewhere: abfs://container@account.
    """
    for match in _USERINFO.finditer(text):
        is_web = match["scheme"].lower() in ("http://", "https://")
        if is_web or ":" in match[0][len(match["scheme"]) :]:
            return True
    return _SIGNED.search(text) is not None and "://" in text


def safe(text: str) -> str:
    """Text of several lines for a person or a log: masked, and printable but for ends of lines and tabs."""
    return printable(mask(text), keep="\n\t")


def safe_json(value: Any) -> Any:
    """A JSON value whose strings are masked; `json.dumps` escapes the rest by itself."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: safe_json(item) for key, item in value.items()}
    return [safe_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def protect_logs() -> None:
    """Make all log records of this process `safe`, whatever handlers it has, and the traceback that would end it."""
    make = logging.getLogRecordFactory()
    if getattr(make, "is_safe", False):
        return

    def make_safe(*args: Any, **values: Any) -> logging.LogRecord:
        record = make(*args, **values)
        try:
            record.msg, record.args = safe(record.getMessage()), None
        except (TypeError, ValueError):
            return record  # arguments that do not fit: the handler reports it
        if record.exc_info:
            record.exc_text = safe("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record

    def last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(safe("".join(traceback.format_exception(kind, error, trace))))

    make_safe.is_safe = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_safe)
    sys.excepthook = last_words
