"""Same value, same bytes; anything without stable bytes is refused."""

import hashlib
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.flow.fingerprint import canonical_json, merkle_root, sha256_of
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def no_surrogates(value: object) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in json.dumps(value, ensure_ascii=False))


@given(values.filter(no_surrogates))
def test_canonical_json_reads_back_as_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text().filter(no_surrogates), st.integers()), st.randoms())
def test_order_of_keys_does_not_count(mapping, random):
    items = list(mapping.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(mapping)


@given(values.filter(no_surrogates), values.filter(no_surrogates))
def test_different_values_have_different_bytes(one, other):
    # True == 1 for Python, but not for JSON.
    assert (canonical_json(one) == canonical_json(other)) == (_typed(one) == _typed(other))


def _typed(value):
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float) and value == int(value) and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return ("float", repr(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, {1: "a"}, object(), b"bytes", [{"deep": {1: 2}}]])
def test_what_has_no_stable_bytes_is_refused(value):
    with pytest.raises(ConfigError, match=r"\$"):
        canonical_json(value)


class Before(FrozenConfig):
    min_chars: int = 3


class After(FrozenConfig):
    min_chars: int = 3
    new_option: bool = False


def test_a_new_option_with_a_default_keeps_old_fingerprints():
    assert sha256_of(Before(min_chars=5)) == sha256_of(After(min_chars=5))
    assert sha256_of(After(new_option=True)) != sha256_of(After())


def test_another_process_gives_the_same_hash():
    value = {"z": [1, 2.5, "ü"], "a": None}
    code = f"from pipelines.flow.fingerprint import sha256_of; print(sha256_of({value!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == sha256_of(value)


def naive_root(leaves: list[str]) -> str:
    def node(items: list[str]) -> str:
        if len(items) == 1:
            return items[0]
        half = 1 << ((len(items) - 1).bit_length() - 1)  # the largest power of two below the number of leaves
        return hashlib.sha256(f"node:{node(items[:half])}{node(items[half:])}".encode()).hexdigest()

    hashed = [hashlib.sha256(b"leaf:" + leaf.encode()).hexdigest() for leaf in leaves]
    return node(hashed) if hashed else hashlib.sha256(b"empty").hexdigest()


@given(st.lists(st.integers(0, 2**32).map(lambda n: hashlib.sha256(str(n).encode()).hexdigest()), max_size=40))
def test_merkle_root_agrees_with_the_recursive_definition(leaves):
    assert merkle_root(leaves) == naive_root(leaves)


@given(st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), min_size=1, max_size=12, unique=True), st.data())
def test_any_change_of_the_leaves_changes_the_root(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = merkle_root(leaves)
    assert merkle_root(leaves[:index] + leaves[index + 1 :]) != root
    assert merkle_root([*leaves, leaves[-1]]) != root
    if len(leaves) > 1:
        swapped = [*leaves[1:], leaves[0]]
        assert merkle_root(swapped) != root
