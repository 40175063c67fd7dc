"""Cleaning, tokens and the left/right test, against what the reference did with odd strings."""

import json
import re

import pytest
from transformers import BertTokenizerFast

from x2vlm.data.text.captions import mentions_a_side, pre_caption
from x2vlm.data.text.tokenizer import WordPieceTokenizer, load_tokenizer
from x2vlm.errors import ConfigError, InvalidSample


@pytest.fixture(scope="module")
def case(golden_dir):
    return json.loads((golden_dir / "data/texts/case.json").read_text())


@pytest.fixture(scope="module")
def vocabulary(golden_dir):
    return golden_dir / "vocab.txt"


def _cleaned(text, max_words):
    try:
        return pre_caption(text, max_words, parity="reference")
    except InvalidSample:
        return None


def test_captions_are_cleaned_like_the_reference_does(case):
    assert len(case["rows"]) > 50
    for row in case["rows"]:
        assert _cleaned(row["text"], row["max_words"]) == row["caption"], row


@pytest.mark.parametrize(
    ("text", "reference", "ours"),
    [
        ("\tdog", "\tdog", "dog"),
        ("dog\t", "dog\t", "dog"),
        ("\ndog\n", "\ndog", "dog"),
        ("dog\n\n", "dog", "dog"),
        ("\u3000dog ", "\u3000dog", "dog"),
        (" ? dog! ", "dog", "dog"),
        ("a\tdog\non", "a\tdog\non", "a\tdog\non"),
    ],
)
def test_the_reference_strips_blanks_and_a_newline_and_we_strip_white_space(vocabulary, text, reference, ours):
    """By its rule, written out: runs of white space are a blank, then the newline at the end and blanks go."""
    assert re.sub(r"\s{2,}", " ", re.sub(r"[?!]", " ", text)).rstrip("\n").strip(" ") == reference
    assert pre_caption(text, 5, parity="reference") == reference
    assert pre_caption(text, 5) == ours
    tokenizer = load_tokenizer(vocabulary)
    assert tokenizer.encode(reference, 20) == tokenizer.encode(ours, 20)


def test_a_caption_of_white_space_is_empty_to_us_only():
    assert pre_caption("\t", 5, parity="reference") == "\t"
    for parity in (None, "reference"):
        with pytest.raises(InvalidSample):
            pre_caption("\n", 5, parity=parity)
    with pytest.raises(InvalidSample):
        pre_caption("\t", 5)


def test_left_and_right_are_found_like_the_reference_does_where_asked(case):
    for text, expected in case["contains_left_or_right"].items():
        assert mentions_a_side([text], parity_reference=True) is expected, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("dog on the left", True), ("Left of it", True), ("left-right", True), ("bright", False), ("leftover", False)],
)
def test_left_and_right_are_words_in_any_case(text, expected):
    assert mentions_a_side(["a cat", text]) is expected


def test_tokens_agree_with_the_reference(case, vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    for text, expected in case["tokenization"].items():
        ids = tokenizer.encode(text, 10_000)
        assert tokenizer.tokens(ids)[1:-1] == expected["raw_tokens"], text
        assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)


def test_ids_agree_with_transformers(case, vocabulary):
    theirs = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    ours = load_tokenizer(vocabulary)
    for row in case["rows"]:
        assert ours.encode(row["text"], 12) == theirs(row["text"], truncation=True, max_length=12).input_ids, row


def test_a_cut_text_keeps_its_end_mark(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    ids = tokenizer.encode("a man riding a horse", 4)
    assert len(ids) == 4
    assert ids[-1] == tokenizer.sep_id


def test_a_vocabulary_without_special_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"\[MASK\] missing"):
        WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])


def test_a_caption_of_punctuation_is_refused_with_a_rule():
    with pytest.raises(InvalidSample) as caught:
        pre_caption("?!", 10)
    assert caught.value.rule == "empty_caption"
