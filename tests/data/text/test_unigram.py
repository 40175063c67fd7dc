"""The tokenizer of XLM-R in training: words of pieces, and which of both kinds a vocabulary file is."""

import pytest

from tests.support.models.folders import tokenizer_of
from tests.support.training.corpus import WORDS
from x2vlm.data.loading.masking import MaskingConfig, mask_text
from x2vlm.data.randomness import Draws
from x2vlm.data.text.tokenizer import read_tokenizer, read_vocabulary
from x2vlm.errors import ConfigError


def test_pieces_of_xlm_r_are_masked_as_whole_words(tmp_path):
    """A piece without SentencePiece's blank continues the word before it; special tokens are no part of a word."""
    tokenizer = tokenizer_of("xlm-roberta", tmp_path)
    ids = tokenizer.encode("a dog ein Hundos", 20)
    continues = [tokenizer.continues_word[number] for number in ids]
    assert continues == [False, False, False, False, False, True, True, False]
    assert not any(tokenizer.continues_word[number] for number in tokenizer.special_ids)
    whole = {5, 6, 4}  # "Hund", "o", "s"
    config = MaskingConfig(prob=0.5, skipgram_prob=0)
    for label in range(60):
        masked = mask_text(ids, tokenizer, Draws("masking", label), config)
        assert set(masked.positions) <= set(range(1, len(ids) - 1))
        assert not whole & set(masked.positions) or whole <= set(masked.positions)
        assert not {masked.ids[spot] for spot in masked.positions} & (tokenizer.special_ids - {tokenizer.mask_id})


def test_a_vocabulary_is_read_by_its_content(tmp_path):
    tokenizer = tokenizer_of("xlm-roberta", tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "5d1e")
    (tmp_path / "vocab").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    assert read_tokenizer(read_vocabulary(tmp_path / "5d1e")).encode("ein Hund", 9) == tokenizer.encode("ein Hund", 9)
    assert read_tokenizer(read_vocabulary(tmp_path / "vocab")).entries == WORDS
    for content in (b"\xff\xfe\x00", None):
        path = tmp_path / "broken"
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(ConfigError, match=r"broken: not a readable text file"):
            read_vocabulary(path)
