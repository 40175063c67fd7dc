"""What a function that reads media makes of some bytes."""

from collections.abc import Callable
from typing import Any

from x2vlm.errors import InvalidSample


def rule_of(function: Callable[..., Any], data: bytes, **options: Any) -> str:
    """The rule under which `data` is dropped, "ok" if it is read."""
    try:
        function(data, **options)
    except InvalidSample as error:
        return error.rule
    return "ok"
