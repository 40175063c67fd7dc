"""Typed, frozen configuration values and the errors people get when a key or value is wrong."""

import difflib
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import InitErrorDetails, PydanticCustomError

from x2vlm.errors import ConfigError

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml: a tenth of the time
except ImportError:  # a PyYAML that was built without it
    from yaml import SafeLoader  # type: ignore[assignment]


class FrozenConfig(pydantic.BaseModel):
    """Base of every config value: immutable, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=pydantic.BaseModel)


class _UniqueKeyLoader(SafeLoader):
    """PyYAML's safe loader, which takes the last of two equal keys: here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"`{key.value}` is written in line {seen[key.value]} and again; keep one",
                        problem_mark=key.start_mark,
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing, broken, not a mapping or has a key twice."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
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


def parse_field(config_type: type[T], values: Any) -> T:
    """`values` as a `config_type`, for the validator of a field whose type another field decides.

    Raises pydantic's ValidationError; its unknown keys come with the nearest key of `config_type`.
    """
    try:
        return config_type.model_validate(values)
    except pydantic.ValidationError as error:
        problems = [field_problem(problem["loc"], _message(config_type, problem)) for problem in error.errors()]
        raise pydantic.ValidationError.from_exception_data(config_type.__name__, problems) from None


def field_problem(location: tuple[str | int, ...], message: str) -> InitErrorDetails:
    """A problem for `pydantic.ValidationError.from_exception_data`, below the field whose validator raises it."""
    # The message is a value and no template: it may hold braces.
    kind = PydanticCustomError("explained", "{message}", {"message": message})
    return {"type": kind, "loc": location, "input": None}


def did_you_mean(name: str, known: Iterable[str], what: str = "there are") -> str:
    """A hint for someone who wrote `name`: the nearest of the `known` names, or all of them."""
    names = sorted(known)
    guesses = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{guesses[0]}`?" if guesses else f"{what}: {', '.join(names)}"


def _explain(config_type: type[pydantic.BaseModel], problem: Any) -> str:
    where = ".".join(str(step) for step in problem["loc"])
    return f"{where}: {_message(config_type, problem)}"


def _message(config_type: type[pydantic.BaseModel], problem: Any) -> str:
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(config_type, problem["loc"][:-1])
            return f"unknown key; {did_you_mean(str(problem['loc'][-1]), known, 'known keys')}"
        case "literal_error" | "enum":
            known = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
            return f"{problem['msg']} (got {problem['input']!r}); {did_you_mean(str(problem['input']), known)}"
        case "union_tag_invalid":
            known = re.findall(r"'([^']*)'", str(problem["ctx"]["expected_tags"]))
            hint = did_you_mean(problem["ctx"]["tag"], known)
            return f"no {problem['ctx']['discriminator']} {problem['ctx']['tag']!r}; {hint}"
        case "explained":  # by `field_problem`
            return str(problem["msg"])
        case _:
            return f"{problem['msg']} (got {problem['input']!r})"


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
