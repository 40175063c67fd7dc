"""Opt-out signals in response headers: reservations of a site about machine use of its files.

Interpreted more strictly than by img2dataset, which takes the text before the first colon for the name of a crawler and
so misses `X-Robots-Tag: noai, unavailable_after: 1 Jan 2027`. A header that cannot be parsed counts as an opt-out.
"""

import re
from collections.abc import Collection
from email.message import Message

from pipelines.s1_download.http.head import Headers

VALUED_DIRECTIVES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
NAME = re.compile(r"[a-z0-9_.*/-]+")
UNREADABLE = "unreadable"
MAX_VALUE_CHARACTERS = 4096


def opt_out_signal(headers: Message | Headers, user_agent_token: str, directives: Collection[str]) -> str:
    """The header that opts out, as "name: directive", or "" if none does.

    `X-Robots-Tag` counts if one of `directives` applies to all crawlers, to "*" or to `user_agent_token`, or if it
    cannot be parsed. `tdm-reservation` counts unless it is 0, `Content-Usage` (IETF AI preferences) if it reserves
    training. Without `directives` nothing counts.
    """
    if not directives:
        return ""
    for value in headers.get_all("X-Robots-Tag", []):
        for token, directive in _scoped_directives(str(value)):
            if directive == UNREADABLE or (directive in directives and token in ("", "*", user_agent_token.lower())):
                return f"x-robots-tag: {directive}"
    for value in headers.get_all("tdm-reservation", []):
        if (text := str(value).strip()) != "0":
            return f"tdm-reservation: {text if text == '1' else UNREADABLE}"
    for value in headers.get_all("Content-Usage", []):
        if signal := usage_signal(str(value)):
            return f"content-usage: {signal}"
    return ""


def usage_signal(value: str) -> str:
    """The preference in a Content-Usage or Content-Signal value that reserves training, or "".

    `train-ai`, `train-genai` and `ai-train` are about training; `bots` applies where they are absent. A value other
    than y, yes, n or no is invalid and counts.
    """
    stated: dict[str, str] = {}
    for item in value.lower().split(","):
        name, _, preference = (text.strip() for text in item.partition(";")[0].partition("="))
        stated[name] = preference
    about_training = stated.keys() & {"train-ai", "train-genai", "ai-train"}
    for name in sorted(about_training or stated.keys() & {"bots"}):
        if stated[name] not in ("y", "yes"):
            return f"{name}={stated[name]}"[:100]
    return ""


def _scoped_directives(value: str) -> list[tuple[str, str]]:
    """(crawler or "", directive) of every directive; a crawler's name applies to the directives after it."""
    if len(value) > MAX_VALUE_CHARACTERS:
        return [("", UNREADABLE)]
    token, found, valued = "", [], ""
    for item in value.lower().split(","):
        name, colon, rest = (text.strip() for text in item.partition(":"))
        if valued == "unavailable_after" and name[:1].isdigit():
            continue  # the rest of a date like "Wed, 25 Jun 2030 15:00:00 GMT"
        valued = ""
        if not name and not colon:
            continue  # an empty list element
        if colon and name not in VALUED_DIRECTIVES:
            token, (name, _, rest) = name, (text.strip() for text in rest.partition(":"))
            if not NAME.fullmatch(token):
                return [("", UNREADABLE)]
        if not NAME.fullmatch(name):
            return [("", UNREADABLE)]
        valued = name if name in VALUED_DIRECTIVES else ""
        found.append((token, name))
    return found
