"""How a text becomes token ids: the one home of cleaning and cutting, for training, evaluation and inference alike."""

from collections.abc import Iterable
from dataclasses import dataclass

from x2vlm.data.text.captions import pre_caption
from x2vlm.data.text.tokenizer import TextTokenizer
from x2vlm.errors import InvalidSample


@dataclass(frozen=True)
class TextEncoder:
    """`pre_caption` with at most `max_tokens` words, then at most `max_tokens` ids with start and end, as released."""

    tokenizer: TextTokenizer
    max_tokens: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as it was written; InvalidSample("empty_caption") if cleaning leaves nothing of it."""
        return self.encode_clean(pre_caption(text, self.max_tokens))

    def encode_clean(self, cleaned: str) -> list[int]:
        """Ids of a text that `clean` gave back: a second cleaning could change it."""
        return self.tokenizer.encode(cleaned, self.max_tokens)

    def clean(self, texts: Iterable[str]) -> list[str]:
        """The texts after cleaning, in order, without those of which nothing is left."""
        cleaned = []
        for text in texts:
            try:
                cleaned.append(pre_caption(text, self.max_tokens))
            except InvalidSample:
                continue  # the caller counts, if none is left
        return cleaned
