"""Losses of captioning against torch's own divergence, step-by-step reading, and REINFORCE written out."""

import pytest
import torch
from torch.nn.functional import kl_div

from tests.support.models.tiny import tiny_model
from x2vlm.models.checkpoints.task_parts import smoothed_targets
from x2vlm.models.generate import GenerateConfig, generate
from x2vlm.objectives.captioning import left_to_right, self_critical, smoothed_words, text_log_probs, word_logits

PROMPT, MASK, END = [2, 7, 8], 4, 3


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_words_agree_with_the_divergence_from_the_whole_target(smoothing: float) -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(3, 4, 30) * 4, torch.randint(3, 30, (3, 4))
    counts = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    labels = labels.where(counts == 1, 2)  # unused slots hold the start token, as in the reference
    targets = smoothed_targets(30, start_id=2, label_smoothing=smoothing).repeat(12, 1)
    targets.scatter_(1, labels.view(-1, 1), 1 - smoothing)
    words = kl_div(logits.log_softmax(-1).view(12, 30), targets, reduction="none").sum(1)
    expected = (words * counts.view(-1)).sum() / (6 + 1e-5)
    assert smoothed_words(logits, labels, counts, 2, smoothing).item() == pytest.approx(expected.item(), abs=2e-6)


def test_without_smoothing_words_are_the_plain_cross_entropy_and_without_words_nothing() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 3, 30), torch.randint(3, 30, (2, 3))
    expected = torch.nn.functional.cross_entropy(logits.view(6, 30), labels.view(6), reduction="sum") / (6 + 1e-5)
    counts = torch.ones(2, 3)
    assert smoothed_words(logits, labels, counts, 2, 0.0).item() == pytest.approx(expected.item(), abs=1e-6)
    assert smoothed_words(logits, labels, counts * 0, 2).item() == 0


def test_an_inserted_mask_is_seen_by_itself_alone() -> None:
    seen = left_to_right(torch.tensor([[False, True, False], [False, False, False]]))
    assert seen[0].tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert torch.equal(seen[1], torch.ones(3, 3).tril().bool())


@torch.no_grad()
def test_a_mask_of_pairs_and_given_places_are_what_a_plain_text_has_anyway() -> None:
    model = tiny_model()
    ids, mask = torch.randint(5, 50, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    vision = model.encode_image(torch.randn(2, 3, 64, 64))
    states = model.encode_text(ids, mask)
    pairs, places = mask[:, None, :].expand(-1, 6, -1), torch.arange(6).expand(2, -1)
    assert torch.equal(model.encode_text(ids, pairs, places), states)
    assert torch.equal(model.fuse(states, pairs, vision), model.fuse(states, mask, vision))
    later = model.encode_text(ids, pairs, places + 1)
    assert not torch.allclose(later, states)


@torch.no_grad()
def test_one_pass_reads_a_text_as_it_was_written() -> None:
    model = tiny_model()
    vision = model.encode_image(torch.randn(3, 3, 64, 64))
    config = GenerateConfig(max_tokens=6, min_tokens=6, no_repeat=0)
    written = generate(model, vision, PROMPT, MASK, END, config)
    log_probs = text_log_probs(model, vision, PROMPT, torch.tensor([text.tokens for text in written]), MASK)
    assert log_probs.sum(dim=1).tolist() == pytest.approx([text.score for text in written], abs=1e-4)


def test_the_gradient_of_self_critical_training_is_that_of_reinforce_written_out() -> None:
    """Each text read token by token, with the whole prefix and a [MASK] behind it, in a pass of its own."""
    model = tiny_model()
    torch.manual_seed(5)
    pixels = torch.randn(2, 3, 64, 64)
    texts = [[9, 11, END], [12, 12, 30], [40, END], [9, 9, 9]]
    tokens = torch.tensor([[*text, *[END] * (3 - len(text))] for text in texts])
    written = torch.tensor([[place < len(text) for place in range(3)] for text in texts])
    advantages = torch.tensor([0.7, -1.2, 2.0, 0.0])

    rows = torch.tensor([0, 0, 1, 1])
    log_probs = text_log_probs(model, model.encode_image(pixels).select(rows), PROMPT, tokens, MASK)
    loss = self_critical(log_probs, written, advantages)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    total = torch.zeros(())
    for text, image, advantage in zip(texts, rows.tolist(), advantages.tolist(), strict=True):
        vision, of_text = model.encode_image(pixels[image][None]), torch.zeros(())
        for place, token in enumerate(text):
            ids = torch.tensor([[*PROMPT, *text[:place], MASK]])
            length = ids.shape[1]
            seen = torch.ones(1, length, length).tril().bool()
            logits = word_logits(model, vision, ids, seen, torch.arange(length)[None], torch.tensor([[length - 1]]))
            of_text = of_text + logits[0, 0].log_softmax(0)[token]
        total = total - advantage * of_text / len(text) / len(texts)
    total.backward()
    assert loss.item() == pytest.approx(total.item(), abs=1e-5)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5, rtol=1e-3), name
    assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-3
