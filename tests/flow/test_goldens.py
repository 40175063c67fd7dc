"""Fingerprints of the toy stages are pinned, and the pinning itself works."""

import json
from dataclasses import replace

import pytest

from pipelines.flow.stage import InputFile, Part, Read, part_fingerprint
from tests.support.flow import fingerprint_goldens as goldens
from tests.support.flow import toy

PART = Part(
    "00001", reads=(Read("rows", InputFile("rows.txt", 3, "ab" * 32, "/anywhere/rows.txt")),), spec={"shard": 1}
)


def test_toy_fingerprints_are_the_pinned_ones():
    goldens.check_golden("toy-filter@1", part_fingerprint(toy.FILTER, toy.FilterConfig(), PART))
    goldens.check_golden("toy-filter@1 min_chars=5", part_fingerprint(toy.FILTER, toy.FilterConfig(min_chars=5), PART))


def test_place_size_and_lookups_never_count():
    moved = Part(
        "another name",
        reads=(Read("rows", InputFile("other.txt", 4, "ab" * 32, "s3://elsewhere", rows=9)),),
        spec={"shard": 1},
        lookups=PART.reads,
    )
    config = toy.FilterConfig()
    assert part_fingerprint(toy.FILTER, config, moved) == part_fingerprint(toy.FILTER, config, PART)


def test_everything_that_decides_the_bytes_counts():
    config = toy.FilterConfig()
    other_bytes = (Read("rows", InputFile("rows.txt", 3, "cd" * 32, "")),)
    variants = [
        part_fingerprint(toy.FILTER, config, PART),
        part_fingerprint(replace(toy.FILTER, version=2), config, PART),
        part_fingerprint(replace(toy.FILTER, name="other"), config, PART),
        part_fingerprint(toy.FILTER, toy.FilterConfig(upper=True), PART),
        part_fingerprint(toy.FILTER, config, replace(PART, spec={"shard": 2})),
        part_fingerprint(toy.FILTER, config, replace(PART, reads=other_bytes)),
        part_fingerprint(toy.FILTER, config, replace(PART, reads=PART.reads * 2)),
        part_fingerprint(toy.FILTER, config, replace(PART, reads=(Read("media", PART.reads[0].file),))),
    ]
    assert len(set(variants)) == len(variants)


def test_a_pin_is_added_once_and_never_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(goldens, "GOLDEN_PATH", tmp_path / "golden" / "fingerprints.json")
    with pytest.raises(AssertionError, match="not pinned"):
        goldens.check_golden("s@1", "aa")
    goldens.add_golden("s@1", "aa")
    goldens.add_golden("s@1", "aa")
    goldens.check_golden("s@1", "aa")
    with pytest.raises(AssertionError, match="bump"):
        goldens.check_golden("s@1", "bb")
    with pytest.raises(SystemExit):
        goldens.add_golden("s@1", "bb")
    assert json.loads(goldens.GOLDEN_PATH.read_text()) == {"s@1": "aa"}
