"""Texts as readers clean them, filters count and compare them, and training reads them."""

import re
import unicodedata

from x2vlm.samples import Concept

MADE_OF = "made of "


def clean_text(text: str) -> str:
    """`text` without control characters, every run of white space a single space, none at the ends."""
    if not text.isprintable():  # most texts are, and then no character needs a look of its own
        text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return " ".join(text.split())


def concept_text(concept: Concept) -> str:
    """The description a model reads: attributes, then the label ("green tall clock"; X2-VLM A.1).

    A material reads after the label: "handbag made of leather". A region's phrase has no attributes and stays as it is.
    """
    before = [attribute for attribute in concept.attributes if not attribute.startswith(MADE_OF)]
    after = [attribute for attribute in concept.attributes if attribute.startswith(MADE_OF)]
    return " ".join([*before, concept.text, *after])


def same_text(text: str) -> str:
    """`text` as it is compared with another as a whole: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def compared_words(text: str) -> list[str]:
    """The words of a text, ignoring case, compatibility forms and punctuation: what texts are compared by."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
