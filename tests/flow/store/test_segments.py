"""Files of segments: many tables in one file, each of which a part reads and depends on alone."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.flow.segments import SegmentWriter, encode, read_segment, segments_name
from pipelines.flow.store.artifact import CountRecord, Manifest, ManifestPart, PartRecord
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.store import Store
from x2vlm.errors import CorruptArtifact, StageFailed

TABLES = {f"{number:02d}": pa.table({"key": [f"{number}-{row}" for row in range(number)]}) for number in range(1, 4)}
FINGERPRINT = "a" * 64


@pytest.fixture(params=["local", "memory"])
def part(request, tmp_path):
    """A committed part with one file of segments, as its consumers see it, and its store."""
    store = Store(str(tmp_path / "store") if request.param == "local" else f"memory://segments-{tmp_path.name}")
    writer = store.begin_part("made", FINGERPRINT)
    with SegmentWriter(writer.path / "rows.arrow") as segments:
        for name, table in TABLES.items():
            segments.add(name, table)
    record = PartRecord(
        stage="made",
        version=1,
        fingerprint=FINGERPRINT,
        files=[],
        counts={"rows": CountRecord(num_in=6, num_out=6)},
    )
    record = store.commit_part(writer, record, segments.file_rows)
    manifest = Manifest(
        node="made/it",
        stage="made",
        version=1,
        fingerprint="b" * 64,
        config={},
        inputs=[],
        parts=[ManifestPart(name="all", record=record, record_sha256="c" * 64)],
        counts=record.counts,
        root="d" * 64,
    )
    return store.as_input(manifest).parts[0], store


def test_a_segment_is_read_alone_and_checked(part, tmp_path):
    made, store = part
    segments = made.segments("rows.arrow")
    assert list(segments) == list(TABLES)
    assert made.file("rows.arrow").rows == 6
    assert made.file(segments_name("rows.arrow")).rows == 3
    reader = StoreReader(store, tmp_path / "links")
    for name, table in TABLES.items():
        assert segments[name].rows == table.num_rows
        assert read_segment(reader.open(segments[name])).equals(table)
    assert reader.local_path(segments["02"]).stat().st_size == segments["02"].bytes
    moved = replace(segments["02"], start=segments["02"].start + 1)
    with pytest.raises(CorruptArtifact, match=r"rows\.arrow#02"):
        StoreReader(store, tmp_path / "others").local_path(moved)


def test_equal_tables_give_equal_bytes(tmp_path):
    def write(folder: Path, tables: dict[str, pa.Table]) -> tuple[bytes, bytes]:
        folder.mkdir()
        with SegmentWriter(folder / "rows.arrow") as segments:
            for name, table in tables.items():
                segments.add(name, table)
        return (folder / "rows.arrow").read_bytes(), (folder / segments_name("rows.arrow")).read_bytes()

    assert write(tmp_path / "a", TABLES) == write(tmp_path / "b", dict(TABLES))


def test_a_file_without_a_listing_has_no_segments(part):
    made, _ = part
    with pytest.raises(StageFailed, match="has no file"):
        made.segments(segments_name("rows.arrow"))


def test_a_name_comes_once(tmp_path):
    with SegmentWriter(tmp_path / "rows.arrow") as segments:
        segments.add("a", TABLES["01"])
        with pytest.raises(ValueError, match="two segments are called a"):
            segments.add("a", TABLES["02"])


def test_the_bytes_of_a_segment_say_nothing_of_the_rows_beside_it():
    """Decisions about one source must not make the parts of another run again because they lay in one table."""

    def cut(neighbours: list[str | None]) -> bytes:
        rows: list[str | None] = ["a", None, "c"]
        table = pa.table({"key": neighbours + rows + neighbours, "value": list(range(3 + 2 * len(neighbours)))})
        own = table.slice(len(neighbours), 3)
        return encode(own.set_column(1, "value", pa.array([1, None, 3])))

    assert cut([]) == cut(["x"]) == cut([None, None, "y", None, None])
