"""Texts as token ids and back, without transformers: WordPiece of a BERT `vocab.txt`, Unigram of an XLM-R file.

Ids are those of transformers' BertTokenizerFast and XLMRobertaTokenizerFast. The four special ids that a model needs
go by BERT's names: `pad_id`, `cls_id` (start), `sep_id` (end) and `mask_id`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from x2vlm.errors import ConfigError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_KEPT_WORDS, LONGEST_KEPT_WORD = 50_000, 30  # below 20 MB
XLMR_SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


class TextTokenizer(Protocol):
    """What a model and its training ask of a tokenizer of either kind.

    `special_ids`: those of padding, start, end, mask and unknown; `continues_word`: by id, whether the piece continues
    the word of the piece before it.
    """

    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: frozenset[int]
    continues_word: tuple[bool, ...]

    def __len__(self) -> int: ...

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Start, the pieces of `text`, end: at most `max_tokens` ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens and without ids that stand for nothing."""


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
        self._tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        self.lowercase = lowercase
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self.special_ids = frozenset(ids[token] for token in SPECIAL_TOKENS)
        self.continues_word = tuple(entry.startswith("##") for entry in self.entries)
        self._pieces: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """[CLS], the word pieces of `text`, [SEP]: at most `max_tokens` ids."""
        pieces: list[int] = []
        for word in text.split(" "):
            pieces += self._pieces.get(word) or self._pieces_of(word)
        return [self.cls_id, *pieces[: max_tokens - 2], self.sep_id]

    def _pieces_of(self, word: str) -> list[int]:
        """Ids of what stands between two blanks, remembered: 100 captions of 12 words take 0.2 ms and not 8.

        No step of BERT's looks beyond a blank, so words can be cut one by one.
        """
        pieces: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(word) <= LONGEST_KEPT_WORD:
            if len(self._pieces) >= MAX_KEPT_WORDS:
                self._pieces.clear()
            self._pieces[word] = pieces
        return pieces

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of `ids`."""
        return [self.entries[number] for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, pieces joined to words, without special tokens and ids beyond the vocabulary."""
        written = [number for number in ids if number < len(self) and number not in self.special_ids]
        text: str = self._tokenizer.decode(written)
        return text


class UnigramTokenizer:
    """Text to ids and back for the content of an XLM-R `tokenizer.json`.

    ConfigError if it is not such a file, or has other than XLMR_SPECIAL_TOKENS.
    """

    def __init__(self, content: str, origin: str = "tokenizer.json") -> None:
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the Rust parser raises bare Exception
            raise ConfigError(f"{origin}: not a tokenizer.json of the tokenizers library: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        found = {token: self._tokenizer.token_to_id(token) for token in XLMR_SPECIAL_TOKENS}
        if missing := [token for token, number in found.items() if number is None]:
            raise ConfigError(f"{origin}: {', '.join(missing)} missing; the tokenizer.json of XLM-R has them")
        self.content = content
        ids: list[int] = [number for number in found.values() if number is not None]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self.special_ids = frozenset(ids)
        tokens = [self._tokenizer.id_to_token(number) or "" for number in range(len(self))]
        # A word begins with a blank, which SentencePiece writes as U+2581.
        self.continues_word = tuple(
            not token.startswith("\u2581") and number not in self.special_ids for number, token in enumerate(tokens)
        )

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """<s>, the pieces of `text`, </s>: at most `max_tokens` ids."""
        pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.cls_id, *pieces[: max_tokens - 2], self.sep_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens and ids beyond the vocabulary."""
        written = [number for number in ids if number < len(self) and number not in self.special_ids]
        text: str = self._tokenizer.decode(written)
        return text


def read_tokenizer(vocabulary: str | Sequence[str], origin: str = "vocabulary") -> TextTokenizer:
    """The tokenizer of the entries of a `vocab.txt`, or of the content of a `tokenizer.json`."""
    if isinstance(vocabulary, str):
        return UnigramTokenizer(vocabulary, origin)
    return WordPieceTokenizer(vocabulary, origin)


def read_vocabulary(path: Path) -> str | list[str]:
    """What `read_tokenizer` takes, of a `vocab.txt` or `tokenizer.json` under any name: the second is a JSON object."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vocabulary {path}: not a readable text file: {error}") from error
    return content if content.lstrip().startswith("{") else content.rstrip("\n").split("\n")


def load_tokenizer(path: Path) -> WordPieceTokenizer:
    """The tokenizer of a `vocab.txt`."""
    return parse_vocabulary(path.read_text(encoding="utf-8"), str(path))


def parse_vocabulary(content: str, origin: str = "vocabulary", lowercase: bool = True) -> WordPieceTokenizer:
    """The tokenizer of a `vocab.txt` with this content."""
    return WordPieceTokenizer(content.rstrip("\n").split("\n"), origin, lowercase)
