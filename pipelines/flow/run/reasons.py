"""Why a node has to run: what differs between now and its nearest earlier manifest, in words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from pipelines.flow.stage import Node
from pipelines.flow.store.artifact import InputRecord, Manifest

MAX_VALUE_CHARS = 40


def config_changes(node: Node, earlier: Manifest) -> list[tuple[str, Any, Any]]:
    """(dotted field, earlier value, present value) for every config field that differs, defaults filled in."""
    config_type = node.stage.config_type
    try:
        before = config_type.model_validate(earlier.config).model_dump(mode="json")
    except pydantic.ValidationError:
        # Written by another version of the stage, or with a default that names the type of a value left out: compared
        # as recorded, without defaults.
        return _differences("", dict(earlier.config), node.config.model_dump(mode="json", exclude_defaults=True))
    return _differences("", before, node.config.model_dump(mode="json"))


def why_it_runs(node: Node, inputs: Sequence[InputRecord], earlier: Manifest) -> str:
    """One line: stage version, config fields and inputs that differ from `earlier`."""
    reasons = []
    if earlier.version != node.stage.version:
        reasons.append(f"stage version {earlier.version} -> {node.stage.version}")
    reasons += [f"config field {f} {_show(old)} -> {_show(new)}" for f, old, new in config_changes(node, earlier)]
    reasons += input_changes(inputs, earlier.inputs)
    return "; ".join(reasons) or "its parts are cut differently than before"


def input_changes(now: Sequence[InputRecord], before: Sequence[InputRecord]) -> list[str]:
    """One phrase for every slot and producer whose roots differ."""
    new, old = _roots(now), _roots(before)
    phrases = []
    for slot, producer in sorted(new.keys() | old.keys()):
        key = (slot, producer)
        if new.get(key) == old.get(key):
            continue
        verb = "changed" if key in new and key in old else "added" if key in new else "removed"
        phrases.append(f"input {slot} of {producer} {verb}")
    return phrases


def _roots(records: Sequence[InputRecord]) -> Mapping[tuple[str, str], list[str]]:
    roots: dict[tuple[str, str], list[str]] = {}
    for record in records:
        roots.setdefault((record.slot, record.node), []).append(record.root)
    return roots


def _differences(prefix: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in sorted(before.keys() | now.keys()):
            found += _differences(f"{prefix}.{key}" if prefix else key, before.get(key), now.get(key))
        return found
    return [] if before == now else [(prefix, before, now)]


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"
