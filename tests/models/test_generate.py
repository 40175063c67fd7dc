"""Written texts against the naive version of the reference, brute force, and each other in a batch."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from tests.golden.naive import Naive, image_tokens, text_layer, word_logits
from tests.golden.synthetic import describe, drawn_state
from tests.golden.tasks.naive_captioning import search
from tests.golden.tasks.synthetic_captioning import BIAS
from tests.support.models.reference_shapes import Sizes, pretrained
from tests.support.models.tiny import tiny_model
from x2vlm.errors import InvalidSample
from x2vlm.inference.api import CAPTION
from x2vlm.models.checkpoints.reference import load_reference_state
from x2vlm.models.config import model_config_from_reference
from x2vlm.models.generate import GenerateConfig, generate, sample
from x2vlm.models.x2vlm import build_model, swap_text_encoder

SIZES = Sizes(
    vision=24, depth=1, vision_heads=2, grid=2, vision_inner=96, text=16, text_layers=2, fusion_layers=2, inner=40,
    vocab=12, positions=20, embed=8,
)  # fmt: skip
PROMPT, MASK, END = [2, 7, 8], 4, 3


@pytest.fixture(scope="module")
def both():
    """The same weights as a naive state and as our model, and three images."""
    cfg = describe(SIZES, text_heads=2, temperature=0.07)
    m = Naive(drawn_state(pretrained(SIZES), SIZES, seed=9, temperature=0.07), cfg)
    model = build_model(model_config_from_reference(cfg)).eval()
    load_reference_state(model, m.state)
    torch.manual_seed(3)
    return m, model, torch.randn(3, 3, 32, 32)


@torch.no_grad()
def naive_log_probs(m, pixels, written):
    """What the naive version puts at a [MASK] behind prompt and `written`, everything read again."""
    ids = torch.tensor([[*PROMPT, *written, MASK]])
    table = "text_encoder.bert.embeddings"
    x = m[f"{table}.word_embeddings.weight"][ids] + m[f"{table}.token_type_embeddings.weight"][0]
    x = x + m[f"{table}.position_embeddings.weight"][: ids.shape[1]]
    x = torch.nn.functional.layer_norm(x, (16,), m[f"{table}.LayerNorm.weight"], m[f"{table}.LayerNorm.bias"], 1e-12)
    causal = torch.ones(ids.shape[1], ids.shape[1]).triu(1) * -10000.0
    tokens = image_tokens(m, pixels[None])
    image = (tokens, torch.ones(tokens.shape[:2]))
    for number in range(4):
        x = text_layer(m, f"text_encoder.bert.encoder.layer.{number}", x, causal, image if number >= 2 else None)
    return word_logits(m, x, torch.tensor([[ids.shape[1] - 1]]))[0, 0].log_softmax(0)


def write(model, pixels, **config):
    with torch.no_grad():
        return generate(model, model.encode_image(pixels), PROMPT, MASK, END, GenerateConfig(**config))


@pytest.mark.parametrize("no_repeat", [0, None])
@pytest.mark.parametrize("min_tokens", [0, 4])
def test_greedy_text_takes_the_likeliest_word_of_the_naive_version(both, min_tokens, no_repeat):
    """Of all words, or by default of those that repeat no three words."""
    m, model, pixels = both
    config = {"max_tokens": 7, "min_tokens": min_tokens} | ({} if no_repeat is None else {"no_repeat": no_repeat})
    texts = write(model, pixels, **config)
    assert any(repeats(text.tokens, 3) for text in texts) is (no_repeat == 0)
    for image, found in zip(pixels, texts, strict=True):
        written, score = [], 0.0
        for step in range(7):
            log_probs = naive_log_probs(m, image, written)
            if step < min_tokens:
                log_probs[END] = -torch.inf
            if no_repeat is None:
                banned = [word for word in range(12) if repeats([*written, word], 3)]
                log_probs[banned] = -torch.inf
            score += log_probs.max().item()
            word = log_probs.argmax().item()
            if word == END:
                break
            written.append(word)
        assert found.tokens == written
        assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_enough_beams_find_the_best_of_all_texts(both, length_penalty):
    """Brute force over all texts of up to two words."""
    m, model, pixels = both
    found = write(model, pixels[:1], max_tokens=2, num_beams=12 * 12, length_penalty=length_penalty)[0]
    first = naive_log_probs(m, pixels[0], [])
    scores = {(END,): first[END].item()}
    for word in range(12):
        if word != END:
            second = naive_log_probs(m, pixels[0], [word])
            scores |= {(word, other): (first[word] + second[other]).item() for other in range(12)}
    ranked = {words: score / ((5 + len(words)) / 6) ** length_penalty for words, score in scores.items()}
    best = max(ranked, key=ranked.get)
    assert found.tokens == [word for word in best if word != END]
    assert found.score == pytest.approx(ranked[best], abs=1e-4)


@pytest.mark.parametrize("config", [{}, {"num_beams": 3}, {"num_beams": 3, "no_repeat": 0, "length_penalty": 1.0}])
def test_a_text_does_not_depend_on_the_batch(both, config):
    _, model, pixels = both
    together = write(model, pixels, max_tokens=8, min_tokens=8, **config)
    for number, image in enumerate(pixels):
        (alone,) = write(model, image[None], max_tokens=8, min_tokens=8, **config)
        assert alone.tokens == together[number].tokens
        assert len(alone.tokens) == 8
        assert alone.score == pytest.approx(together[number].score, abs=1e-4)


def test_no_run_of_words_comes_twice_when_forbidden(both):
    _, model, pixels = both
    free = write(model, pixels, max_tokens=12, min_tokens=12, no_repeat=0)
    assert any(repeats(text.tokens, 2) for text in free)  # else the test would prove nothing
    for num_beams in (1, 3):
        for text in write(model, pixels, max_tokens=12, min_tokens=12, no_repeat=2, num_beams=num_beams):
            assert not repeats(text.tokens, 2)


def test_the_released_setting_repeats_no_trigram():
    """The reference's `generate` forbids them unless it is told not to, whatever the number of beams."""
    assert GenerateConfig().no_repeat == CAPTION.no_repeat == 3
    assert (CAPTION.num_beams, CAPTION.min_tokens) == (3, 5)


def repeats(tokens, size):
    runs = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return any(first == second for first, second in itertools.combinations(runs, 2))


def test_only_the_newest_words_are_read(both):
    """3 prompt tokens and a [MASK] first, then two tokens a step, whatever the length."""
    _, model, pixels = both
    seen = []
    layer = model.fusion.layers[0].self_attention.query
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    write(model, pixels, max_tokens=6, min_tokens=6)
    handle.remove()
    assert seen == [4, 2, 2, 2, 2, 2]


def test_a_multilingual_text_tower_counts_positions_from_behind_its_padding():
    encoder = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
            max_position_embeddings=12, type_vocab_size=1, pad_token_id=1,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    model = swap_text_encoder(tiny_model(), encoder).eval()
    vision = model.encode_image(torch.randn(1, 3, 64, 64))
    prompt, seen = [0, 9], []
    encoder.embeddings.position_embeddings.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].tolist()))
    generate(model, vision, prompt, 29, 2, GenerateConfig(max_tokens=2, min_tokens=2))
    assert seen == [[[2, 3, 4]], [[4, 5]]]
    with pytest.raises(ValueError, match="positions"):
        generate(model, vision, prompt, 29, 2, GenerateConfig(max_tokens=9))


def test_regions_write_about_what_their_mask_shows(both):
    _, model, pixels = both
    with torch.no_grad():
        images = model.encode_image(pixels[:1])
        shown = model.pool_regions(images, torch.tensor([0]), torch.tensor([[True, False, False, False]]))
        changed_patches = replace(images, patches_MPD=images.patches_MPD.clone())
        changed_patches.patches_MPD[:, 1:] += 5.0
        same = model.pool_regions(changed_patches, torch.tensor([0]), torch.tensor([[True, False, False, False]]))
        config = GenerateConfig(max_tokens=5)
        first, second = (generate(model, vision, PROMPT, MASK, END, config)[0] for vision in (shown, same))
    assert first.tokens == second.tokens
    assert first.score == pytest.approx(second.score, abs=1e-5)


def test_a_search_that_forbids_everything_gives_an_empty_text(both):
    """No run of one token may come twice: after all but the end token were used, and that is not allowed yet."""
    _, model, pixels = both
    found = write(model, pixels[:1], max_tokens=14, min_tokens=14, no_repeat=1)[0]
    assert found.tokens == []
    assert found.score == -torch.inf


def test_images_are_projected_once_and_beams_share_their_keys(both):
    _, model, pixels = both
    projected, queries = [], []
    attention = model.fusion.layers[1].cross_attention
    handles = [
        attention.key.register_forward_hook(lambda _, inputs, __: projected.append(inputs[0].shape)),
        attention.register_forward_hook(lambda _, inputs, __: queries.append((inputs[0].shape[0], inputs[1].shape[0]))),
    ]
    write(model, pixels, max_tokens=6, min_tokens=6, num_beams=3)
    for handle in handles:
        handle.remove()
    assert [shape[0] for shape in projected] == [3, 3]  # the summary and the patches of each image
    assert queries == [(3, 3)] * 6  # 9 beams, as queries of 3 images


def test_the_search_ends_when_no_beam_can_win_any_more(both):
    """Fewer steps than allowed, and the text that the search to the very end finds."""
    m, model, pixels = both
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.word_head.bias[END] += 1.0
    m = Naive(m.state | {BIAS: model.word_head.bias.detach()}, m.cfg)
    steps = []
    handle = model.word_head.register_forward_hook(lambda *_: steps.append(1))
    texts = write(model, pixels, max_tokens=14, num_beams=3)
    handle.remove()
    assert len(steps) < 14
    for image, found in zip(pixels, texts, strict=True):
        best = search(m, image, PROMPT, 14, MASK, END, beams=3)
        assert found.tokens == [word for word in best if word != END]


def test_sampled_words_come_as_often_as_they_are_probable(both):
    m, model, pixels = both
    with torch.no_grad():
        vision = model.encode_image(pixels[:2])
    count = 3000
    drawn = sample(model, vision, PROMPT, MASK, END, 2, count, torch.Generator().manual_seed(1))
    again = sample(model, vision, PROMPT, MASK, END, 2, count, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.tokens_RT, again.tokens_RT)
    for image in range(2):
        tokens, written = (part[image * count :][:count] for part in (drawn.tokens_RT, drawn.written_RT))
        for prefix, words in (([], tokens[:, 0]), ([5], tokens[tokens[:, 0] == 5][:, 1])):
            expected = naive_log_probs(m, pixels[image], prefix).exp()
            share = torch.bincount(words, minlength=12) / len(words)
            assert len(words) > 50
            assert ((share - expected).abs() < 5 * (expected * (1 - expected) / len(words)).sqrt() + 1e-6).all()
        assert written[:, 0].all()
        assert torch.equal(written[:, 1], tokens[:, 0] != END)
        assert (tokens[:, 1][~written[:, 1]] == END).all()


def test_a_model_that_gives_no_numbers_is_an_error(both):
    _, model, pixels = both
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.word_head.bias[5] = torch.nan
    with pytest.raises(InvalidSample, match="nan_score"):
        write(broken, pixels, max_tokens=3)
    with pytest.raises(ValueError, match="positions"):
        sample(model, model.encode_image(pixels), PROMPT, MASK, END, 18, 1, torch.Generator())
