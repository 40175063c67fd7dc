"""Every number of an experiment is checked when it is loaded: none waits for the start of a training to fail there."""

import math
import types
import typing
from typing import Any

import pytest

from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s6_evaluate.config import EvaluateConfig
from tests.support.settings import changed, settings_of
from x2vlm.config import FrozenConfig, parse_config
from x2vlm.data.loading.streams import StreamConfig
from x2vlm.errors import ConfigError
from x2vlm.tasks.catalog import TASKS, task_spec
from x2vlm.tasks.training.config import FinetuneConfig
from x2vlm.train.config import TrainRuntime

ROOTS: dict[str, type[FrozenConfig]] = {
    "pretrain": PretrainConfig,
    "stream": StreamConfig,
    "train_runtime": TrainRuntime,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    **{f"task {name}": task_spec(name).config_type for name in TASKS},
}
BASE: dict[str, dict[str, Any]] = {
    "stream": {"kind": "region", "batch_size": 8, "num_images": 4},
    "evaluate": {"task": "retrieval"},
}
# Where 0 means something: no warm-up, no decay, no dropout, nobody waits, at once.
ZERO_IS_FINE = {
    *("pad_id", "seed", "warmup_steps", "min_rate", "weight_decay", "betas", "stop_matching_at", "skipgram_prob"),
    *("drop_path", "dropout", "attention_dropout", "flip_prob", "num_ops", "op_prob", "strength", "min_share_in_crop"),
    *("validation_share", "aux_share", "checkpoint_vision_blocks", "steps_ahead", "profile_steps", "readers"),
    *("max_failures", "text_drop_path", "cross_drop_path", "spool_above_bytes", "min_tokens", "no_repeat"),
    *("length_penalty", "label_smoothing", "map_layer", "area_power", "warmup", "select_from_epoch"),
}
NEGATIVE_IS_FINE = {"seed", "length_penalty"}


def kinds(annotation: Any) -> set[type]:
    """int and float where a setting takes them, also in a tuple."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kinds(arguments[0])
    if origin in (typing.Union, types.UnionType, tuple):
        return set().union(*(kinds(one) for one in arguments if one is not ...))
    return {annotation} & {int, float}


def holds_tuple(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple or any(map(holds_tuple, typing.get_args(annotation)))


NUMBERS = [
    (root, path, annotation)
    for root, config in ROOTS.items()
    for path, annotation in settings_of(config)
    if kinds(annotation)
]


@pytest.mark.parametrize(
    ("root", "path", "annotation"), NUMBERS, ids=[f"{root}.{'.'.join(path)}" for root, path, _ in NUMBERS]
)
def test_a_number_that_cannot_be_is_refused_by_the_name_of_its_field(root, path, annotation):
    name = path[-1]
    wrong: list[float] = [] if name in NEGATIVE_IS_FINE else [-1]
    wrong += [] if name in ZERO_IS_FINE else [0]
    wrong += [math.nan, math.inf] if float in kinds(annotation) else []
    for value in wrong:
        values = changed(BASE.get(root, {}), path, [value, value] if holds_tuple(annotation) else value)
        with pytest.raises(ConfigError, match=rf"{root}.*(?s:.*){name}"):
            parse_config(ROOTS[root], values, root)


def test_the_walk_has_met_what_once_failed_in_training_only():
    met = {path[-1] for _, path, _ in NUMBERS}
    assert {"eps", "betas", "vision_lr", "recalls", "contrastive_gradient", "loss_weight", "depth"} <= met
    assert len(NUMBERS) > 80


@pytest.mark.parametrize(
    ("root", "path", "value"),
    [
        ("pretrain", ("train", "optimizer", "betas"), [0.9, 1.0]),
        ("pretrain", ("train", "optimizer", "betas"), [1.1, 0.9]),
        ("pretrain", ("train", "optimizer", "vision_lr"), 1e-5),  # without text_lr
        ("pretrain", ("train", "optimizer", "cross_lr"), 1e-5),
        ("pretrain", ("train", "objective", "negative_group_size"), 7),
        ("pretrain", ("train", "accumulate"), 129),  # more chunks than a process has rows
        ("pretrain", ("model", "text", "pad_id"), 40_000),
        ("task retrieval", ("recalls",), []),
    ],
    ids=str,
)
def test_what_only_company_makes_wrong_is_refused_too(root, path, value):
    with pytest.raises(ConfigError, match=path[-1]):
        parse_config(ROOTS[root], changed(BASE.get(root, {}), path, value), root)
