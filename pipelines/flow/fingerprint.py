"""Stable bytes for values, and the hashes that are made of them."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pydantic

from x2vlm.errors import ConfigError

CHUNK_BYTES = 1 << 20


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON of `value` with sorted keys and no spaces; the same value gives the same bytes on every machine.

    Pydantic models are written without the fields that equal their default, so a new option with a default keeps old
    fingerprints. Raises ConfigError for anything without stable bytes: sets, NaN, infinity, objects, non-string keys.
    """
    return plain_json(_plain(value))


def plain_json(value: object) -> bytes:
    """`canonical_json` of a value that holds nothing but strings, whole numbers, lists and mappings: not checked."""
    return _ENCODER.encode(value).encode("utf-8")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_AS_THEY_ARE = frozenset({str, int, bool, type(None)})  # types; what is of none of them is looked at


def _plain(value: object, where: tuple[str | int, ...] = ()) -> object:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, dict):
        return _plain_mapping(value, where)
    if isinstance(value, list | tuple):
        return [
            item if type(item) in _AS_THEY_ARE else _plain(item, (*where, index)) for index, item in enumerate(value)
        ]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{_path(where)}: {value} has no stable JSON form")
        # 1.0 and 1 mean the same threshold; 0.0 and -0.0 too.
        return int(value) if value == int(value) and abs(value) < 2**53 else value
    if isinstance(value, bool | int | str):  # of a subclass, such as an enumeration
        return value
    if isinstance(value, pydantic.BaseModel):
        return _plain(value.model_dump(mode="json", exclude_defaults=True), where)
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    raise ConfigError(
        f"{_path(where)}: {type(value).__name__} has no stable bytes; use numbers, strings, lists or mappings"
    )


def _plain_mapping(value: Mapping[Any, object], where: tuple[str | int, ...]) -> dict[str, object]:
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{_path(where)}: key {key!r} is not a string")
    return {key: item if type(item) in _AS_THEY_ARE else _plain(item, (*where, key)) for key, item in value.items()}


def _path(where: tuple[str | int, ...]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)


def sha256_of(value: object) -> str:
    """Hex sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_of_stream(stream: BinaryIO) -> tuple[str, int]:
    """Hex sha256 and number of bytes of everything left in `stream`."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def sha256_of_file(path: Path) -> tuple[str, int]:
    """Hex sha256 and size in bytes of a local file."""
    with path.open("rb") as stream:
        return sha256_of_stream(stream)


def merkle_root(leaves: Iterable[str]) -> str:
    """Root of a binary hash tree over hex digests, in order.

    Leaf and inner nodes hash under different prefixes, so a leaf cannot pose as a subtree; an odd node just moves up.
    """
    return merkle_join([hashlib.sha256(b"leaf:" + leaf.encode()).hexdigest() for leaf in leaves])


def merkle_join(roots: Sequence[str]) -> str:
    """The root over the roots of subtrees, in order.

    It is the `merkle_root` of all their leaves if each but the last has the same power of two of them: such a subtree
    can be checked alone.
    """
    level = list(roots)
    if not level:
        return hashlib.sha256(b"empty").hexdigest()
    while len(level) > 1:
        pairs = [level[index : index + 2] for index in range(0, len(level), 2)]
        level = [
            hashlib.sha256(f"node:{pair[0]}{pair[1]}".encode()).hexdigest() if len(pair) == 2 else pair[0]
            for pair in pairs
        ]
    return level[0]
