"""How captions and concept texts are cleaned before they are cut into word pieces, and what must not be mirrored."""

import re
from collections.abc import Iterable
from typing import Literal

from x2vlm.errors import InvalidSample

_TO_SPACE = re.compile(r"[,.'!?\"()*#:;~\-/]")
_SPACE_RUN = re.compile(r"\s{2,}")
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def pre_caption(text: str, max_words: int, parity: Literal["reference"] | None = None) -> str:
    """`text` in lower case without punctuation, at most `max_words` words.

    InvalidSample("empty_caption") if nothing is left. The rule of the released code, quirks included (a lone newline or
    tab inside stays; words end at blanks): changing it would change what published checkpoints were trained on. We
    remove any white space at both ends; the reference (`parity`) removes blanks and one trailing newline, and so keeps
    a caption that is a tab. The word pieces are the same.
    """
    text = _TO_SPACE.sub(" ", text.lower()).replace("<person>", "person")
    text = _SPACE_RUN.sub(" ", text)
    text = text.strip() if parity is None else text.removesuffix("\n").strip(" ")
    if not text:
        raise InvalidSample("empty_caption", "nothing is left of the caption after cleaning")
    return " ".join(text.split(" ")[:max_words])


def mentions_a_side(texts: Iterable[str], parity_reference: bool = False) -> bool:
    """True if a text would become false when its image is mirrored, because it says left or right.

    We look for the words in any case. The reference looks for lower-case substrings ("bright" counts, "Left" not).
    """
    if parity_reference:
        return any("left" in text or "right" in text for text in texts)
    return any(_SIDES.search(text) for text in texts)
