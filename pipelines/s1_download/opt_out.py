"""Opt-out signals in response headers: what a site says about use of its files by machines.

Read more strictly than img2dataset does, which takes the text before the first colon for the name of a crawler and so
misses `X-Robots-Tag: noai, unavailable_after: 1 Jan 2027`.
"""

from collections.abc import Collection
from email.message import Message

VALUED_DIRECTIVES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def opt_out_signal(headers: Message, user_agent_token: str, directives: Collection[str]) -> str:
    """The header that opts out, as "name: directive", or "" if none does.

    `X-Robots-Tag` counts if a directive of ours is meant for everyone, for "*" or for `user_agent_token`;
    `tdm-reservation: 1` (text and data mining reserved) always counts, unless no directives are honoured at all.
    """
    if not directives:
        return ""
    for value in headers.get_all("X-Robots-Tag", []):
        for token, directive in _scoped_directives(str(value)):
            if directive in directives and token in ("", "*", user_agent_token.lower()):
                return f"x-robots-tag: {directive}"
    if any(str(value).strip() == "1" for value in headers.get_all("tdm-reservation", [])):
        return "tdm-reservation: 1"
    return ""


def _scoped_directives(value: str) -> list[tuple[str, str]]:
    """(crawler or "", directive) of every directive; a crawler's name holds for what follows it."""
    token, found = "", []
    for item in value.lower().split(","):
        name, colon, rest = (text.strip() for text in item.partition(":"))
        if not colon or name in VALUED_DIRECTIVES:
            found.append((token, name))
        else:
            token = name
            found.append((token, rest.partition(":")[0].strip()))
    return found
