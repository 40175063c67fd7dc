"""WordPiece tokens from a BERT `vocab.txt`: the ids of transformers' BertTokenizerFast, without transformers."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from x2vlm.errors import ConfigError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieceTokenizer:
    """Text to ids and back for one vocabulary (one entry a line; the line number is the id).

    ConfigError if one of SPECIAL_TOKENS is missing.
    """

    def __init__(self, vocabulary: Sequence[str], origin: str = "vocabulary", lowercase: bool = True) -> None:
        if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
            raise ConfigError(f"{origin}: {', '.join(missing)} missing; a BERT vocab.txt has one entry a line")
        self.entries = tuple(vocabulary)
        ids = {token: number for number, token in enumerate(self.entries)}
        self._tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self.special_ids = frozenset(ids[token] for token in SPECIAL_TOKENS)
        self.continues_word = tuple(entry.startswith("##") for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """[CLS], the word pieces of `text`, [SEP]: at most `max_tokens` ids."""
        pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.cls_id, *pieces[: max_tokens - 2], self.sep_id]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of `ids`."""
        return [self.entries[number] for number in ids]


def load_tokenizer(path: Path) -> WordPieceTokenizer:
    """The tokenizer of a `vocab.txt`."""
    return WordPieceTokenizer(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), origin=str(path))
