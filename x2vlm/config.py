"""Typed, frozen configuration values and the errors people get when a key or value is wrong."""

import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from x2vlm.errors import ConfigError


class FrozenConfig(pydantic.BaseModel):
    """Base of every config value: immutable, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=pydantic.BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing, broken or not a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level")
    return value


def parse_config(config_type: type[T], values: dict[str, Any], origin: str) -> T:
    """`values` as a `config_type`; ConfigError names `origin`, the key and, for unknown keys, the nearest known one."""
    try:
        return config_type.model_validate(values)
    except pydantic.ValidationError as error:
        lines = [f"{origin}: {len(error.errors())} problem(s)"]
        lines += [f"  {_explain(config_type, problem)}" for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _explain(config_type: type[pydantic.BaseModel], problem: Any) -> str:
    location = problem["loc"]
    where = ".".join(str(step) for step in location)
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']} (got {problem['input']!r})"
    known = _known_keys(config_type, location[:-1])
    guesses = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean `{guesses[0]}`?" if guesses else f"known keys: {', '.join(sorted(known))}"
    return f"{where}: unknown key; {hint}"


def _known_keys(config_type: type[pydantic.BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the model that sits at `path` below `config_type`."""
    models: list[type[pydantic.BaseModel]] = [config_type]
    for step in path:
        models = [
            inner
            for model in models
            if isinstance(step, str) and step in model.model_fields
            for inner in _models_in(model.model_fields[step].annotation)
        ] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """Every pydantic model mentioned anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias) or typing.get_origin(annotation) is not None:
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []
