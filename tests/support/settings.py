"""Every setting that an experiment file can hold, and another valid value for each, made from its type."""

import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import pydantic
import yaml

from tests.support.experiments import ROOT

Path = tuple[str, ...]
SHA256 = "ab" * 32
# Of settings whose type says too little about what is valid, or that are valid in company only: what is written.
COMPANY: dict[str, dict[str, Any]] = {
    "allow_networks": {"allow_networks": ["10.1.0.0/16"]},
    "url_base": {"url_base": {"from": "http://x.invalid", "serve": "datasets/sample/media"}},
    "local_media": {"local_media": {"root": "datasets", "name": "{row}"}},
    "name_servers": {"name_servers": ["192.0.2.1"]},
    "retry": {"retry": ["dns"]},
    "download.store": {"store": {"kind": "reencoded"}},
    "language_from": {"language_from": "detector", "languages": ["en"]},
    "score.model": {"model": "ViT-B-32/other", "weights_sha256": SHA256},
    "score.weights_sha256": {"model": "ViT-B-32/other", "weights_sha256": SHA256},
    "decontaminate.tests": {
        "tests": [{"name": "t", "path": "datasets/sample/vocab.txt", "format": "coco", "split": "val"}]
    },
    "decontaminate.links": {"links": [{"path": "datasets/sample/vocab.txt", "format": "visual_genome"}]},
    "rate_parity": {"rate_parity": "reference", "min_rate": 0.1},
    "text_drop_path_parity": {
        "text_drop_path_parity": "reference",
        "text_drop_path": 0.1,
        "cross_drop_path": 0.1,
    },
    "position_init": {"position_init": "sincos", "backbone": "clip_vit"},
    "matching_follows": {"matching_follows": "image"},
    "vision_lr": {"vision_lr": 1e-5, "text_lr": 2e-5},
    "text_lr": {"vision_lr": 1e-5, "text_lr": 2e-5},
    "cross_lr": {"vision_lr": 1e-5, "text_lr": 2e-5, "cross_lr": 3e-5},
    "negative_group_size": {"negative_group_size": 2},
    "streams": {"streams": [{"kind": "image", "batch_size": 2}]},
}


def settings_of(config: type[pydantic.BaseModel], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, type) of every field below `config` that is no model itself."""
    for name, field in config.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel) and field.default is not None:
            yield from settings_of(inner, (*prefix, name))
        else:
            yield (*prefix, name), inner


def other_values(kind: Any, now: Any) -> Iterator[Any]:
    """Values of that type that differ from `now`; not all of them need be valid."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from other_values(arguments[0], now)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from other_values(argument, now)
    elif kind is type(None):
        yield None
    elif origin is Literal:
        yield from (value for value in arguments if value != now)
    elif kind is bool:
        yield not now
    elif kind is int:
        number = now if isinstance(now, int) else 0
        yield from (number * 2, number + 1, number // 2, number - 1, 64)
    elif kind is float:
        number = now if isinstance(now, (int, float)) else 0.0
        yield from (number / 2, number * 2, number + 0.25, 0.5)
    elif origin is tuple:
        kinds = arguments[:1] if arguments[-1] is Ellipsis else arguments
        inner = [next(iter(other_values(one, None)), None) for one in kinds]
        if None not in inner:
            yield [*now, *inner] if now and arguments[-1] is Ellipsis else inner
    elif kind is str:
        yield "other"


@cache
def sample_values() -> dict[str, Any]:
    """The sample experiment with every optional section, as its file would hold it. Not to be changed."""
    values = yaml.safe_load((ROOT / "pipelines/experiments/sample.yaml").read_text(encoding="utf-8"))
    values = {"name": "sample", **values, "deduplicate": {}, "decontaminate": {}}
    return changed(values, ("pretrain", "data", "validation_share"), 0.25)


def changed(values: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """`values` with `value` at `path`; what lies beside the path stays."""
    head, *rest = path
    inner = values.get(head)
    return {**values, head: changed(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value}


def at(value: Any, path: Path) -> Any:
    """What lies at `path` below a config."""
    for name in path:
        value = getattr(value, name)
    return value
