"""Seals notice every changed byte; counts and roots add up."""

import pytest

from pipelines.flow.fingerprint import canonical_json, sha256_of
from pipelines.flow.stage import Count
from pipelines.flow.store.artifact import (
    CountRecord,
    FileRecord,
    Manifest,
    PartRecord,
    Ref,
    content_root,
    seal,
    total_counts,
    unseal,
)
from x2vlm.errors import CorruptArtifact


def part(**changes) -> PartRecord:
    record = PartRecord(
        stage="toy",
        version=1,
        fingerprint="ab" * 32,
        files=[FileRecord(path="a.txt", bytes=3, sha256="cd" * 32, rows=1)],
        counts={"rows": CountRecord(num_in=2, num_out=1, dropped={"short": 1})},
        summary={"ü": 0.5},
        seconds=1.25,
    )
    return record.model_copy(update=changes)


REF = Ref(experiment="e", node="s/n", manifest_path="p", manifest_sha256="m", fingerprint="f", root="r")


def test_a_sealed_record_reads_back():
    data, digest = seal(part())
    assert unseal(PartRecord, data, "here") == (part(), digest)
    assert digest == sha256_of(part().model_dump(mode="json"))


def test_sealed_bytes_are_canonical_json():
    data, digest = seal(REF)
    assert data == canonical_json({"body": REF.model_dump(mode="json"), "seal": digest}) + b"\n"


def test_every_flipped_bit_of_every_byte_is_noticed():
    data, _ = seal(REF)
    for index in range(len(data)):
        for bit in range(8):
            damaged = data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]
            with pytest.raises(CorruptArtifact, match="here"):
                unseal(Ref, damaged, "here")


def test_every_truncation_and_extension_is_noticed():
    data, _ = seal(REF)
    for length in range(len(data)):
        with pytest.raises(CorruptArtifact):
            unseal(Ref, data[:length], "here")
    for extra in (b" ", b"\n", b"x", data):
        with pytest.raises(CorruptArtifact):
            unseal(Ref, data + extra, "here")


def test_a_record_of_another_type_is_refused():
    data, _ = seal(REF)
    with pytest.raises(CorruptArtifact, match="not a Manifest"):
        unseal(Manifest, data, "here")


def test_content_ignores_time_and_place_but_nothing_else():
    same = part(seconds=9.0, files=[part().files[0].model_copy(update={"location": "attempt/a.txt"})])
    assert same.content_sha256 == part().content_sha256
    for changes in (
        {"summary": {}},
        {"counts": {"rows": CountRecord(num_in=1, num_out=1)}},
        {"files": []},
        {"files": [part().files[0].model_copy(update={"sha256": "00" * 32})]},
    ):
        assert part(**changes).content_sha256 != part().content_sha256


def test_root_depends_on_names_order_and_content():
    one, two = part(), part(summary={})
    root = content_root({"1": one, "2": two})
    assert content_root({"1": one, "2": two}) == root
    assert len({root, content_root({"2": two, "1": one}), content_root({"1": two, "2": one}), content_root({})}) == 4


def test_counts_add_up_per_unit():
    more = part(
        counts={
            "rows": CountRecord(num_in=4, num_out=2, dropped={"long": 2}),
            "boxes": CountRecord(num_in=1, num_out=1),
        }
    )
    totals = total_counts({"1": part(), "2": more})
    assert totals == {"rows": Count(6, 3, {"long": 2, "short": 1}), "boxes": Count(1, 1)}
