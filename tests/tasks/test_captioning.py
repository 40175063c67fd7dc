"""Captioning: rows to learn from, both ways to train, self-critical training, and the evaluation."""

import json
from typing import Any

import pytest
import torch

from tests.support.models.tasks import VOCABULARY, clip_of, context, load, small_task_model
from tests.support.training.processes import on_ranks
from x2vlm.data.loading.config import AugmentConfig
from x2vlm.data.loading.masking import MaskingConfig
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample, X2VLMError
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.tasks import captioning
from x2vlm.tasks.captioning import CAPTIONING, as_written, evaluate_captioning
from x2vlm.tasks.captions.learning import CaptionReward, inserted
from x2vlm.tasks.captions.scores import CaptionScores
from x2vlm.tasks.config import CaptioningConfig
from x2vlm.tasks.task import LossContext, TaskResult
from x2vlm.tasks.training.loader import TaskLoader
from x2vlm.tasks.training.objective import LABEL
from x2vlm.train.ranks import current_ranks

PAD, UNK, CLS, SEP, MASK, RED, GREEN, BLUE, BLACK, WHITE, DOG, CAT, BUS = range(13)
STILL = AugmentConfig(min_area=1.0, flip_prob=0.0, num_ops=0)
OPTIONS = CaptioningConfig(prompt="white ", max_tokens=8, min_tokens=0, scst_max_tokens=4, scst_samples=6)
TEXTS = ["red dog", "green cat", "blue bus", "black dog cat", "red bus green"]


def examples_of(count: int = 5, **fields: Any) -> list[Example]:
    return [
        Example(str(n), "test", (f"{n:x}",), (TEXTS[n], "a " + TEXTS[n]), group=f"0{n}", **fields) for n in range(count)
    ]


def loader_of(options: CaptioningConfig, examples: list[Example], batch_size: int = 4) -> TaskLoader:
    assert CAPTIONING.training is not None
    processor = context(small_task_model(), []).processor
    return TaskLoader(examples, CAPTIONING.training, options, processor, load, batch_size, 1, STILL)


def losses_of(
    model: TaskModel, loader: TaskLoader, options: CaptioningConfig, step: int, seed: int, prepared: Any = None
) -> dict[str, torch.Tensor]:
    assert CAPTIONING.training is not None
    given = LossContext(torch.Generator().manual_seed(seed), (), current_ranks(), step, prepared)
    return CAPTIONING.training.losses(model, loader[step].batches[LABEL], options, given)


def prepared_for(options: CaptioningConfig, examples: list[Example]) -> CaptionReward:
    assert CAPTIONING.training is not None
    reward = CAPTIONING.training.before(examples, context(small_task_model(), []).processor, options)
    assert isinstance(reward, CaptionReward)
    return reward


def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_a_mask_is_inserted_before_the_true_token_at_the_same_place() -> None:
    text = inserted([CLS, RED, DOG, SEP], [3, 1], MASK)
    assert text.ids == [CLS, MASK, RED, DOG, MASK, SEP]
    assert text.offsets == [0, 1, 1, 2, 3, 3]
    assert text.inserted == [False, True, False, False, True, False]
    assert text.masked_positions == [1, 4]
    assert text.labels == [RED, SEP]


@pytest.mark.parametrize("mode", ["fg_free", "causal"])
def test_rows_hold_each_caption_behind_the_prompt_which_is_never_asked_for(mode: str) -> None:
    options = OPTIONS.model_copy(update={"mode": mode})
    loader = loader_of(options, examples_of(), batch_size=10)
    assert len(loader.rows) == 10
    asked = set()
    for step in range(6):
        batch = loader[step].batches[LABEL]
        tensors = batch.tensors
        for row in range(10):
            used = tensors["counts"][row].bool()
            spots, labels = tensors["masked_positions"][row][used], tensors["labels"][row][used]
            offsets, ids = tensors["offsets"][row], tensors["ids"][row]
            assert len(labels) >= 1
            assert (offsets[spots] >= 2).all()  # behind the start and the prompt
            real = ids[tensors["mask"][row] & ~tensors["inserted"][row]].tolist()
            assert real[:2] == [CLS, WHITE]
            if mode == "fg_free":
                assert (ids[spots] == MASK).all()
                assert tensors["inserted"][row].sum() == used.sum()
                assert ids[spots + 1].tolist() == labels.tolist()
                assert offsets[spots + 1].tolist() == offsets[spots].tolist()
                assert real[-1] == SEP
                assert " ".join(VOCABULARY[token] for token in real[2:-1] if token != UNK) in TEXTS
            else:
                assert not tensors["inserted"].any()
            asked |= set(labels.tolist())
    assert asked >= {SEP, DOG, RED}  # where a text ends is asked for like any word


def test_as_many_words_are_masked_as_released() -> None:
    long = Example("a", "train", ("1",), (" ".join(["red", "dog"] * 6),))  # 12 words and the end: 60 % are 7.8
    options = CaptioningConfig(prompt="white")
    batch = loader_of(options, [long], batch_size=1)[0].batches[LABEL]
    assert batch.tensors["counts"].sum() == 8
    few = options.model_copy(update={"masking": MaskingConfig(prob=0.6, max_masks=3)})
    assert loader_of(few, [long], batch_size=1)[0].batches[LABEL].tensors["counts"].sum() == 3


def test_a_caption_that_is_cut_has_no_end_and_punctuation_stays() -> None:
    long = Example("a", "train", ("1",), ("red . " + "dog " * 30,))
    batch = loader_of(OPTIONS, [long], batch_size=1)[0].batches[LABEL]
    ids = batch.tensors["ids"][0]
    assert SEP not in ids.tolist()
    assert ids[batch.tensors["mask"][0] & ~batch.tensors["inserted"][0]].tolist() == [CLS, WHITE, RED, UNK, *[DOG] * 12]


def test_a_blank_caption_is_replaced_and_counted() -> None:
    examples = [Example("a", "train", ("1",), (" ",)), Example("b", "train", ("2",), ("red dog",))]
    data = loader_of(OPTIONS, examples, batch_size=2)[0]
    assert data.batches[LABEL].keys == ["b", "b"]
    assert [(s.key, s.rule) for s in data.substitutes][:1] == [("a", "empty_caption")]


def learn(model: TaskModel, options: CaptioningConfig, examples: list[Example], steps: int) -> list[float]:
    """The loss of every step."""
    loader, losses = loader_of(options, examples), []
    optimizer = torch.optim.AdamW(model.eval().parameters(), lr=3e-3)
    for step in range(steps):
        loss = losses_of(model, loader, options, step, step)["words"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_few_captions_are_learned_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    without_java(monkeypatch)
    options = OPTIONS.model_copy(update={"label_smoothing": 0.0})
    examples = [Example(str(n), "train", (f"{n:x}",), (TEXTS[n],), group=str(n)) for n in range(4)]
    model = small_task_model()
    learn(model, options, examples, 120)
    result = evaluate_captioning(model, options, context(model, examples))
    assert result.predictions["caption"].to_pylist() == TEXTS[:4]
    assert result.metrics["bleu_1"] == pytest.approx(100)


def test_masks_in_place_are_learned_though_they_hide_what_is_read_when_writing() -> None:
    options = OPTIONS.model_copy(update={"mode": "causal", "label_smoothing": 0.0})
    losses = learn(small_task_model(), options, examples_of(4), 60)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def evaluated(model: TaskModel, batch_size: int, **fields: Any) -> TaskResult:
    return evaluate_captioning(model, OPTIONS, context(model, examples_of(**fields), batch_size))


def test_an_evaluation_scores_and_writes_the_official_file(monkeypatch: pytest.MonkeyPatch) -> None:
    without_java(monkeypatch)
    model = small_task_model()
    one, all_together = evaluated(model, 1), evaluated(model, 5)
    assert one.predictions["caption"] == all_together.predictions["caption"]
    assert one.metrics == all_together.metrics
    assert one.data_digest == all_together.data_digest
    assert set(one.metrics) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    low, high = one.intervals["cider"]
    assert low <= one.metrics["cider"] <= high
    assert sum(one.predictions["cider"].to_pylist()) / 5 == pytest.approx(one.metrics["cider"])
    assert one.measured_as["tokenizer"] == "plain"
    assert one.measured_as["decoding"].startswith("3 beams, 0 to 8 tokens behind 'white'")
    (name,) = one.submission
    assert name == "captions_test_results.json"
    rows = json.loads(one.submission[name])
    assert [row["image_id"] for row in rows] == list(range(5))
    assert [row["caption"] for row in rows] == one.predictions["caption"].to_pylist()


def test_an_image_is_encoded_and_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_java(monkeypatch)
    model, encoded, projected = small_task_model(), [], []
    model.base.vision.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    key = model.base.fusion.layers[0].cross_attention.key
    key.register_forward_hook(lambda _, inputs, __: projected.append(tuple(inputs[0].shape[:2])))
    evaluated(model, 2)
    assert encoded == [2, 2, 1]
    assert projected == [(2, 1), (2, 4), (2, 1), (2, 4), (1, 1), (1, 4)]  # its summary and its patches


def test_clips_have_captions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    without_java(monkeypatch)
    model = small_task_model()
    result = evaluate_captioning(model, OPTIONS, context(model, examples_of(kind="video"), load=clip_of))
    assert result.num_examples == 5


def test_without_references_the_file_is_the_result() -> None:
    model = small_task_model()
    bare = [Example(str(n), "test-dev", (f"{n:x}",), group=f"image {n}") for n in range(2)]
    result = evaluate_captioning(model, OPTIONS, context(model, bare))
    assert (result.metrics, result.intervals) == ({}, {})
    assert json.loads(result.submission["captions_test-dev_results.json"])[1]["image_id"] == "image 1"


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([], InvalidSample, "empty_split"),
        ([Example("a", "val", ("1", "2"), ("red",))], ConfigError, "takes one"),
        ([Example("a", "val", ("1",), ("red",)), Example("b", "val", ("2",))], ConfigError, "no reference caption"),
        ([Example(i, "val", ("1",), ("red",), group="7") for i in "ab"], InvalidSample, "duplicate_id"),
    ],
)
def test_examples_that_cannot_be_scored_are_refused(examples: list, error: type, message: str) -> None:
    model = small_task_model()
    with pytest.raises(error, match=message):
        evaluate_captioning(model, OPTIONS, context(model, examples))


def test_captions_longer_than_the_model_are_refused() -> None:
    model = small_task_model()
    with pytest.raises(ConfigError, match="set max_tokens to 14"):
        evaluate_captioning(model, OPTIONS.model_copy(update={"max_tokens": 50}), context(model, examples_of()))


def on_one_of_two(rank: int, world_size: int, how: str) -> dict[str, Any]:
    model, ranks = small_task_model(), current_ranks()
    if how == "fails":
        captioning.score_captions = lambda *_: (_ for _ in ()).throw(X2VLMError("no scores today"))
        with pytest.raises(X2VLMError, match="no scores today"):
            evaluate_captioning(model, OPTIONS, context(model, examples_of(), 2, ranks=ranks))
        return {}
    scored: list[int] = []
    captioning.score_captions = lambda _, captions: (
        scored.append(rank) or CaptionScores({"cider": 1.0 + rank}, [1.0] * len(captions), {"tokenizer": "plain"})
    )
    result = evaluate_captioning(model, OPTIONS, context(model, examples_of(), 2, ranks=ranks))
    return {"captions": result.predictions["caption"].to_pylist(), "metrics": dict(result.metrics), "scored": scored}


def test_two_processes_share_the_images_and_one_of_them_scores() -> None:
    alone = evaluate_captioning(small_task_model(), OPTIONS, context(small_task_model(), examples_of(), 2))
    first, second = on_ranks(on_one_of_two, 2, "scores")
    assert first["captions"] == second["captions"] == alone.predictions["caption"].to_pylist()
    assert first["metrics"] == second["metrics"] == {"cider": 1.0}
    assert (first["scored"], second["scored"]) == ([0], [])
    assert on_ranks(on_one_of_two, 2, "fails") == [{}, {}]  # and neither waits for ever


def test_self_critical_training_is_a_function_of_weights_step_and_seed() -> None:
    options, examples = OPTIONS.model_copy(update={"mode": "scst"}), examples_of()
    model, loader, reward = small_task_model().train(), loader_of(options, examples), prepared_for(options, examples)
    first, again, other = (losses_of(model, loader, options, 0, seed, reward) for seed in (1, 1, 2))
    assert first["self_critical"].item() == again["self_critical"].item() != other["self_critical"].item()
    assert model.training
    with pytest.raises(ValueError, match="prepared"):
        losses_of(model, loader, options, 0, 1)


def test_a_reward_counts_the_end_of_a_text() -> None:
    examples = examples_of()
    reward = prepared_for(OPTIONS.model_copy(update={"mode": "scst"}), examples)
    whole, broken_off = reward.of([RED, DOG], True, ["red dog"]), reward.of([RED, DOG], False, ["red dog"])
    assert whole == pytest.approx(10 * 3 / 4)  # three words have no run of four
    assert 0 < broken_off < whole
    assert reward.of([WHITE], True, ["red dog"]) == 0  # in every text is only the end, which weighs nothing


def test_self_critical_training_raises_the_reward() -> None:
    options = OPTIONS.model_copy(update={"mode": "scst"})
    examples = [Example(str(n), "train", (f"{n:x}",), (TEXTS[n],)) for n in range(2)]
    model, loader, reward = small_task_model(), loader_of(options, examples, 2), prepared_for(options, examples)
    rewards = []
    of = reward.of
    object.__setattr__(reward, "of", lambda *given: rewards.append(of(*given)) or rewards[-1])
    optimizer = torch.optim.AdamW(model.eval().parameters(), lr=3e-3)
    for step in range(60):
        loss = losses_of(model, loader, options, step, step, reward)["self_critical"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    per_step = len(rewards) // 60
    early, late = rewards[: 10 * per_step], rewards[-10 * per_step :]
    assert sum(late) > 1.5 * sum(early) > 0


def test_text_is_joined_as_people_write_it() -> None:
    assert as_written("a man ' s dog , on a bus .") == "a man's dog, on a bus."
