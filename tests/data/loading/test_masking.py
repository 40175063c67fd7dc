"""Which words are hidden: the reference's statistics in parity mode, and what we promise beyond them."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.loading.masking import MaskingConfig, choose_positions, mask_text
from x2vlm.data.randomness import Draws
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer

NUM_REPEATS = 1500
TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, *[f"w{number}" for number in range(50)], "##a", "##b"])
CLS, SEP, MASK = TOKENIZER.cls_id, TOKENIZER.sep_id, TOKENIZER.mask_id


def test_parity_mode_has_the_statistics_of_the_reference(golden_dir):
    """Mean squared z-score over all positions of all cases: 1 for the same distribution, above 2 for a shifted rule."""
    cases = json.loads((golden_dir / "data/masking/case.json").read_text())["cases"]
    scores = []
    for case in cases[::2]:
        config = MaskingConfig(
            prob=case["mask_prob"],
            max_masks=case["mask_max"],
            skipgram_prob=case["skipgram_prb"],
            skipgram_size=case["skipgram_size"],
            whole_word=case["whole_word"],
            parity="reference",
        )
        continues = [token.startswith("##") for token in case["tokens"]]
        hits = [0] * len(continues)
        for repeat in range(NUM_REPEATS):
            chosen = choose_positions(continues, Draws("golden", repeat), config, case["num_source_tokens"])
            assert len(chosen) == case["target_count"]
            for position in chosen:
                hits[position] += 1
        for position, count in enumerate(hits):
            rate = case["position_rate"][str(position)]
            if rate in (0.0, 1.0):
                assert count == rate * NUM_REPEATS
                continue
            variance = rate * (1 - rate) * (1 / NUM_REPEATS + 1 / case["repeats"])
            scores.append((count / NUM_REPEATS - rate) / math.sqrt(variance))
    assert len(scores) > 200
    assert sum(score * score for score in scores) / len(scores) < 1.5


words = st.lists(st.integers(0, 3), min_size=1, max_size=12)  # pieces that follow the first one of each word


def _pieces(word_lengths):
    return [False, *[piece > 0 for length in word_lengths for piece in range(length + 1)], False]


@settings(deadline=None, max_examples=300)
@given(words, st.integers(1, 12), st.floats(0.05, 1.0), st.integers())
def test_whole_words_within_the_limits(word_lengths, max_masks, prob, label):
    continues = _pieces(word_lengths)
    config = MaskingConfig(prob=prob, max_masks=max_masks)
    chosen = choose_positions(continues, Draws(label), config)
    num_pieces = len(continues) - 2
    assert chosen
    assert chosen <= set(range(1, num_pieces + 1))  # neither [CLS] nor [SEP]
    assert len(chosen) <= max_masks
    fits = min(length + 1 for length in word_lengths) <= min(max_masks, max(1, round(num_pieces * prob)))
    if fits:
        for position in chosen:
            if continues[position]:
                assert position - 1 in chosen
            if position + 1 <= num_pieces and continues[position + 1]:
                assert position + 1 in chosen


def test_fraction_is_reached_where_words_are_single_pieces():
    config = MaskingConfig(prob=0.5, max_masks=12)
    continues = [False] * 12  # ten words
    assert {len(choose_positions(continues, Draws(label), config)) for label in range(200)} == {5}


def test_nothing_to_mask_masks_nothing():
    assert choose_positions([False, False], Draws(0), MaskingConfig()) == set()


def test_eighty_ten_ten_and_no_special_replacements():
    ids = [CLS, *range(5, 45), SEP]
    config = MaskingConfig(prob=1.0, max_masks=40)
    counts = {"mask": 0, "kept": 0, "other": 0}
    for label in range(100):
        masked = mask_text(ids, TOKENIZER, Draws(label), config)
        assert masked.labels == [ids[position] for position in masked.positions]
        assert masked.positions == sorted(masked.positions)
        for position in masked.positions:
            new = masked.ids[position]
            counts["mask" if new == MASK else "kept" if new == ids[position] else "other"] += 1
            assert new == MASK or new not in TOKENIZER.special_ids
        untouched = set(range(len(ids))) - set(masked.positions)
        assert all(masked.ids[position] == ids[position] for position in untouched)
    assert sum(counts.values()) == 4000
    assert counts["mask"] / 4000 == pytest.approx(0.8, abs=0.03)
    assert counts["kept"] / 4000 == pytest.approx(0.1, abs=0.02)


def test_equal_labels_mask_equal_words():
    ids = [CLS, *range(5, 25), SEP]
    first, again = (mask_text(ids, TOKENIZER, Draws(1, 0, "key", "mask"), MaskingConfig()) for _ in range(2))
    assert first == again


def test_parity_counts_special_tokens_and_may_mask_the_closing_one():
    """Half of a text with [CLS] and [SEP]: texts of 1, 5, 10 and 14 words mask 2, 4, 6 and 8; by default 1, 2, 5, 7."""
    numbers, ends = {}, {}
    for parity in ("reference", None):
        config = MaskingConfig(prob=0.5, max_masks=12, parity=parity)
        masked = {
            words: [mask_text([CLS, *range(5, 5 + words), SEP], TOKENIZER, Draws(n), config) for n in range(200)]
            for words in (1, 5, 10, 14)
        }
        numbers[parity] = [{len(one.positions) for one in found} for found in masked.values()]
        ends[parity] = [sum(words + 1 in one.positions for one in found) for words, found in masked.items()]
        assert not any(0 in one.positions for found in masked.values() for one in found)
    assert numbers["reference"] == [{2}, {4}, {6}, {8}]
    assert numbers[None] == [{1}, {2}, {5}, {7}]
    assert ends["reference"][0] == 200  # of one word there is nothing else
    assert all(80 < count < 180 for count in ends["reference"][1:])
    assert ends[None] == [0, 0, 0, 0]
