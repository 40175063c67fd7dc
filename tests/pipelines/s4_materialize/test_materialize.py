"""Partition and pack: who stays, in which shard, in which bytes, and what one sample more or less changes."""

import math
import tarfile
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.flow.segments import read_segment, segments_name
from pipelines.flow.stage import Input
from pipelines.s4_materialize import PACK, PARTITION, PackConfig, PartitionConfig
from pipelines.s4_materialize.slices import shard_of, shards_of
from pipelines.s4_materialize.thresholds import score_drops
from tests.support.parts import Run, as_part, run_stage
from tests.support.shard_samples import make_sample, payload, payloads, scored
from x2vlm.data.shards.shard import ShardReader
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import DROP_SCHEMA, Drop, Sample, sample_table, write_table

CONFIG = PartitionConfig(num_shards=5)
TEXT, INTEGER = pa.string(), pa.int64()
PACK_SCHEMA = pa.schema(
    {"sha256": TEXT, "format": TEXT, "member": TEXT, "offset": INTEGER, "bytes": INTEGER, "payload_sha256": TEXT}
)


@dataclass
class Corpus:
    """Filter, score and download artifacts of two sources, in the shape that the stages hand on."""

    rows: tuple[Input, ...]
    scores: tuple[Input, ...]
    media: tuple[Input, ...]


def images_and_clips() -> list[list[list[tuple[Sample, float | None]]]]:
    """Two sources, two parts each: images, then clips that score 0.1 apart, one unscored."""
    images = [make_sample(n, source="photos") for n in range(24)]
    clips = [make_sample(n, kind="video", stored="frames", source="clips") for n in range(100, 112)]
    scores: list[float | None] = [0.25, 0.2499, 0.9, None, math.nan, -0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7]
    return [
        [[(image, 0.01) for image in images[:10]], [(image, None) for image in images[10:]]],
        [list(zip(clips[:7], scores[:7], strict=True)), list(zip(clips[7:], scores[7:], strict=True))],
    ]


def build(folder: Path, sources: list[list[list[tuple[Sample, float | None]]]], without: str = "") -> Corpus:
    """Write the three artifacts of every source; the sample with key `without` is in none of them but media."""
    corpus: dict[str, list[Input]] = {"rows": [], "scores": [], "media": []}
    for number, parts in enumerate(sources):
        made: dict[str, list] = {name: [] for name in corpus}
        for index, pairs in enumerate(parts):
            base = folder / f"{number}-{index}"
            kept = [(sample, score) for sample, score in pairs if sample.key != without]
            write_rows(base / "rows", [sample for sample, _ in kept])
            write_scores(base / "scores", kept)
            write_pack(base / "media", [sample for sample, _ in pairs])
            for name in corpus:
                made[name].append(as_part(f"{index:05d}", base / name))
        for name in corpus:
            corpus[name].append(Input(f"{name}/{number}", "", tuple(made[name])))
    return Corpus(*(tuple(corpus[name]) for name in ("rows", "scores", "media")))


def write_rows(folder: Path, samples: list[Sample]) -> None:
    folder.mkdir(parents=True)
    write_table(sample_table(samples), folder / "rows.parquet")


def write_scores(folder: Path, pairs: list[tuple[Sample, float | None]]) -> None:
    folder.mkdir(parents=True)
    values = [score for _, score in pairs]
    columns = {
        "key": pa.array([sample.key for sample, _ in pairs], pa.string()),
        "clip_score": pa.array(values, pa.float32()),
        "clip_score_max": pa.array([None if v is None else v + 0.5 for v in values], pa.float32()),
        "clip_score_middle": pa.array([None if v is None else v - 0.5 for v in values], pa.float32()),
        "missing": pa.array(["" for _ in values], pa.string()),
    }
    write_table(pa.table(columns), folder / "scores.parquet")


def write_pack(folder: Path, samples: list[Sample]) -> None:
    """A media pack as the download stage promises it, made with tarfile alone."""
    folder.mkdir(parents=True)
    formats = {sample.media.sha256: sample.media.format for sample in samples if sample.media}
    with tarfile.open(folder / "media.tar", "w") as tar:
        for sha256, data in sorted(payloads(samples).items()):
            member = tarfile.TarInfo(f"{sha256}.{formats[sha256]}")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    with tarfile.open(folder / "media.tar") as tar:
        index = [
            {
                "sha256": member.name.split(".")[0],
                "format": member.name.split(".")[1],
                "member": member.name,
                "offset": member.offset_data,
                "bytes": member.size,
                "payload_sha256": member.name.split(".")[0],
            }
            for member in tar.getmembers()
        ]
    write_table(pa.Table.from_pylist(index, schema=PACK_SCHEMA), folder / "media.parquet")


def materialize(
    corpus: Corpus, folder: Path, config: PartitionConfig = CONFIG, seed: int | None = None
) -> tuple[Run, Run]:
    read = {"rows": corpus.rows, "scores": corpus.scores, "media": corpus.media, "decisions": ()}
    buckets = run_stage(PARTITION, config, read, folder / "partition", seed)
    inputs = {"buckets": (buckets.artifact,), "media": corpus.media}
    return buckets, run_stage(PACK, PackConfig(), inputs, folder / "pack", seed)


def readers(run: Run) -> dict[str, ShardReader]:
    return {name: ShardReader(run.folder / name / f"shard-{name}.tar") for name in run.results}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tmp_path_factory.mktemp("corpus"), images_and_clips())


def test_every_kept_row_is_in_the_shard_of_its_key_with_its_own_bytes(corpus: Corpus, tmp_path: Path) -> None:
    _, packed = materialize(corpus, tmp_path)
    kept = {
        sample.key: sample
        for parts in images_and_clips()
        for pairs in parts
        for sample, score in pairs
        if sample.kind == "image" or (score is not None and score >= 0.25)  # NaN >= 0.25 is False
    }
    found = {}
    for name, reader in readers(packed).items():
        assert reader.table["key"].to_pylist() == sorted(reader.table["key"].to_pylist())
        for row, sample in enumerate(reader.samples()):
            assert int(name) == math.floor(Fraction(int(sample.key[:16], 16), 2**64) * 5)
            assert reader.payload(row) == payload(int(sample.source_row))
            found[sample.key] = sample
    assert found == kept


def test_clips_below_the_threshold_or_without_score_are_counted_drops(corpus: Corpus, tmp_path: Path) -> None:
    buckets, packed = materialize(corpus, tmp_path)
    assert buckets.counts().dropped == {"clip_score_missing": 2, "min_clip_score": 2}
    assert (buckets.counts().num_in, buckets.counts().num_out) == (36, 32)
    assert packed.counts().num_in == packed.counts().num_out == 32
    drops = pa.concat_tables(
        [pq.read_table(tmp_path / "partition" / name / "drops.parquet", schema=DROP_SCHEMA) for name in buckets.results]
    ).to_pylist()
    assert [(drop["source_row"], drop["rule"]) for drop in drops] == [
        ("101", "min_clip_score"),
        ("103", "clip_score_missing"),
        ("104", "clip_score_missing"),
        ("105", "min_clip_score"),
    ]
    assert drops[0]["value"] == pytest.approx(0.2499)
    assert {(drop["stage"], drop["threshold"], drop["unit"]) for drop in drops} == {("partition", 0.25, "row")}


def test_captions_and_concepts_of_dropped_rows_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    buckets, _ = materialize(corpus, tmp_path)
    assert buckets.counts("captions").dropped == {"row_dropped": 8}  # four clips, two captions each
    assert buckets.counts("concepts").dropped == {"row_dropped": 2}  # clip 104 alone has concepts: two


def test_totals_per_grain_agree_with_the_samples_in_the_shards(corpus: Corpus, tmp_path: Path) -> None:
    buckets, packed = materialize(corpus, tmp_path)
    samples = [sample for reader in readers(packed).values() for sample in reader.samples()]
    images = [sample for sample in samples if sample.kind == "image"]
    clips = [sample for sample in samples if sample.kind == "video"]
    concepts = [concept for sample in samples for concept in sample.concepts]
    assert packed.summary["grains"] == {
        "images": len(images),
        "clips": len(clips),
        "images_with_captions": sum(bool(sample.captions) for sample in images),
        "clips_with_captions": sum(bool(sample.captions) for sample in clips),
        "images_with_concepts": sum(bool(sample.concepts) for sample in images),
        "captions": sum(len(sample.captions) for sample in samples),
        "objects": sum(concept.grain == "object" for concept in concepts),
        "regions": sum(concept.grain == "region" for concept in concepts),
    }
    assert len(images) == 24
    assert buckets.summary["grains"] == packed.summary["grains"]


def test_grains_left_out_are_counted_and_nothing_else_changes(corpus: Corpus, tmp_path: Path) -> None:
    before, _ = materialize(corpus, tmp_path / "all")
    after, packed = materialize(corpus, tmp_path / "some", CONFIG.model_copy(update={"without_grains": ("object",)}))
    grains = before.summary["grains"]
    assert grains["objects"] > 0
    assert after.summary["grains"]["objects"] == 0
    assert after.summary["grains"]["regions"] == grains["regions"] > 0
    assert after.counts("concepts").dropped == {"grain_left_out": grains["objects"], "row_dropped": 2}
    assert after.counts() == before.counts()
    assert after.counts("captions") == before.counts("captions")
    concepts = [concept for one in readers(packed).values() for sample in one.samples() for concept in sample.concepts]
    assert {concept.grain for concept in concepts} == {"region"}
    assert len(concepts) == grains["regions"]


def test_the_order_in_which_parts_run_changes_no_byte(corpus: Corpus, tmp_path: Path) -> None:
    first = [run.bytes_of() for run in materialize(corpus, tmp_path / "first")]
    for seed in range(3):
        assert [run.bytes_of() for run in materialize(corpus, tmp_path / str(seed), seed=seed)] == first


def test_taking_one_sample_out_changes_one_shard(corpus: Corpus, tmp_path: Path) -> None:
    gone = make_sample(4, source="photos").key
    name = f"{shard_of(gone, CONFIG.num_shards):05d}"
    _, before = materialize(corpus, tmp_path / "before")
    _, after = materialize(build(tmp_path / "less", images_and_clips(), without=gone), tmp_path / "after")
    assert before.results.keys() == after.results.keys()
    old, new = before.bytes_of(), after.bytes_of()
    changed = {path for path in old if old[path] != new[path]}
    assert changed == {f"{name}/shard-{name}.tar", f"{name}/shard-{name}.parquet"}
    assert {key for key in before.fingerprints if before.fingerprints[key] != after.fingerprints[key]} == {name}
    assert gone not in ShardReader(tmp_path / "after" / "pack" / name / f"shard-{name}.tar").table["key"].to_pylist()


@given(key=st.integers(0, 2**128 - 1), num_shards=st.integers(1, 99_999))
def test_a_shard_is_a_range_of_keys(key: int, num_shards: int) -> None:
    expected = math.floor(Fraction(key >> 64, 2**64) * num_shards)
    text = f"{key:032x}"
    assert shard_of(text, num_shards) == expected
    assert shards_of(pa.chunked_array([[text, "f" * 32, "0" * 32]]), num_shards).tolist() == [
        expected,
        num_shards - 1,
        0,
    ]


def test_a_seed_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="no seed deals them; remove the line"):
        PartitionConfig.model_validate({"num_shards": 4, "seed": 0})


def low_scores(config: PartitionConfig, table: pa.Table) -> list[Drop | None]:
    """Per row why it goes, None where it stays."""
    keep, drops = score_drops(config, table.append_column("missing", pa.array([""] * len(table), pa.string())))
    waiting = iter(drops)
    return [None if stays else next(waiting) for stays in keep]


@given(score=st.floats(-1, 1, width=32), threshold=st.floats(-1, 1))
def test_a_score_that_equals_the_threshold_stays(score: float, threshold: float) -> None:
    clip = make_sample(1, kind="video")
    config = PartitionConfig(num_shards=1, min_clip_score=threshold)
    (drop,) = low_scores(config, scored([clip], [score]))
    assert (drop is None) == (np.float32(score) >= np.float32(threshold))
    exact = PartitionConfig(num_shards=1, min_clip_score=score)
    assert low_scores(exact, scored([clip], [score])) == [None]


@pytest.mark.parametrize("threshold", [0.25, 0.1, 0.28, 0.7])
def test_threshold_edges(threshold: float) -> None:
    at = np.float32(threshold)
    below, above = np.nextafter(at, np.float32(-1)), np.nextafter(at, np.float32(1))
    clips = [make_sample(n, kind="video") for n in range(5)]
    table = scored(clips, [float(below), float(at), float(above), None, math.nan])
    rules = [drop and drop.rule for drop in low_scores(PartitionConfig(num_shards=1, min_clip_score=threshold), table)]
    assert rules == ["min_clip_score", None, None, "clip_score_missing", "clip_score_missing"]


def test_each_kind_has_its_own_threshold() -> None:
    table = scored([make_sample(0), make_sample(1, kind="video"), make_sample(2)], [0.1, None, None])
    nothing = PartitionConfig(num_shards=1, min_clip_score=None)
    assert low_scores(nothing, table) == [None, None, None]
    images = PartitionConfig(num_shards=1, min_clip_score=None, image_min_clip_score=0.2)
    assert [drop and drop.rule for drop in low_scores(images, table)] == [
        "min_clip_score",
        None,
        "clip_score_missing",
    ]


@pytest.mark.parametrize(("score", "kept"), [("mean", 8), ("max", 10), ("middle", 1)])
def test_the_chosen_aggregate_decides_and_is_recorded(corpus: Corpus, tmp_path: Path, score: str, kept: int) -> None:
    config = PartitionConfig.model_validate({"num_shards": 1, "score": score})
    _, packed = materialize(corpus, tmp_path, config)
    table = readers(packed)["00000"].table
    clips = table.filter(pa.compute.equal(table["kind"], "video"))
    assert clips.num_rows == kept
    shift = {"mean": 0.0, "max": 0.5, "middle": -0.5}[score]
    scores = {sample.key: value for parts in images_and_clips() for pairs in parts for sample, value in pairs}
    for row in clips.to_pylist():
        assert row["clip_score"] == pytest.approx(scores[row["key"]] + shift, abs=1e-6)


def test_a_source_listed_twice_loses_its_second_copy_as_duplicates(corpus: Corpus, tmp_path: Path) -> None:
    twice = Corpus(*(artifacts + artifacts[:1] for artifacts in (corpus.rows, corpus.scores, corpus.media)))
    _, once = materialize(corpus, tmp_path / "once")
    _, again = materialize(twice, tmp_path / "twice")
    assert again.counts().dropped == {"duplicate_key": 24}
    assert again.counts("captions").dropped == {"row_dropped": 46}  # image 3 has none
    for name, reader in readers(once).items():
        assert (again.folder / name / f"shard-{name}.tar").read_bytes() == reader.path.read_bytes()
    drops = [pq.read_table(again.folder / name / "drops.parquet") for name in again.results]
    assert pa.concat_tables(drops)["rule"].to_pylist() == ["duplicate_key"] * 24


def test_media_shared_by_two_rows_are_in_both(tmp_path: Path) -> None:
    first = make_sample(1)
    second = replace(make_sample(2), media=first.media, source_row="1")
    shared = build(tmp_path / "in", [[[(first, None), (second, None)]]])
    _, packed = materialize(shared, tmp_path, PartitionConfig(num_shards=1))
    reader = readers(packed)["00000"]
    assert [reader.payload(0), reader.payload(1)] == [payload(1), payload(1)]


def test_missing_media_are_corrupt_and_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="media artifact 1 is not among the 1 "):
        materialize(replace(corpus, media=corpus.media[:1]), tmp_path / "fewer")
    swapped = replace(corpus.media[0], parts=corpus.media[1].parts)
    with pytest.raises(CorruptArtifact, match=r"of sample [0-9a-f]{32} and \d+ more are not in the media pack"):
        materialize(replace(corpus, media=(swapped, corpus.media[1])), tmp_path / "others")


def test_payload_that_does_not_match_its_index_is_corrupt(tmp_path: Path) -> None:
    build(tmp_path / "in", [[[(make_sample(1), None)]]])
    folder = tmp_path / "in" / "0-0"
    index = pq.read_table(folder / "media" / "media.parquet").to_pylist()
    write_table(
        pa.Table.from_pylist([{**index[0], "offset": index[0]["offset"] + 1}]), folder / "media" / "media.parquet"
    )
    inputs = Corpus(
        *((Input(f"{name}/0", "", (as_part("00000", folder / name),)),) for name in ("rows", "scores", "media"))
    )
    with pytest.raises(CorruptArtifact, match=r"media\.tar.*rerun `download`"):
        materialize(inputs, tmp_path, PartitionConfig(num_shards=1))


def test_scores_of_other_rows_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    swapped = replace(corpus, scores=corpus.scores[::-1])
    with pytest.raises(CorruptArtifact, match="rerun the score stage"):
        materialize(swapped, tmp_path / "swapped")
    with pytest.raises(ConfigError, match="2 rows artifacts but 1 scores"):
        materialize(replace(corpus, scores=corpus.scores[:1]), tmp_path / "fewer")


def test_a_part_without_rows_gives_no_slices_and_no_error(tmp_path: Path) -> None:
    empty = build(tmp_path / "in", [[[], [(make_sample(1), None)]]])
    buckets, packed = materialize(empty, tmp_path)
    listing = read_segment((tmp_path / "partition" / "000-00000" / segments_name("rows.arrow")).open("rb"))
    assert listing.num_rows == (tmp_path / "partition" / "000-00000" / "rows.arrow").stat().st_size == 0
    assert packed.counts().num_out == 1
    assert buckets.counts().num_in == 1


def test_images_are_kept_without_scores_by_default(corpus: Corpus, tmp_path: Path) -> None:
    _, packed = materialize(corpus, tmp_path)
    assert packed.summary["grains"]["images"] == 24
