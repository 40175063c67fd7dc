"""Stages that look at all sources at once: who goes for another's sake, what keepers get, and what runs again."""

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.flow.segments import read_segment
from pipelines.flow.stage import Input
from pipelines.s4_materialize import PARTITION, PartitionConfig
from pipelines.s4_materialize.buckets.evidence_rows import EVIDENCE, EvidenceConfig
from pipelines.s4_materialize.decisions import OWNED_SCHEMA, write_decisions
from pipelines.s4_materialize.decontaminate import DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DEDUPLICATE, DeduplicateConfig
from pipelines.s4_materialize.slices import shard_of
from tests.support.parts import as_part, run_stage
from tests.support.stages.curated import (
    BROKEN,
    EMPTY,
    PARTITIONED,
    Parts,
    build,
    clip,
    curate,
    decisions_of,
    encoded,
    row,
    scene,
)
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import Box, Concept, Grain

MERGE = DeduplicateConfig(merge_captions=True, merge_concepts=True)
DOG = Concept(Grain.OBJECT, "dog", Box(10.0, 10.0, 60.0, 50.0), (), "7")
TREE = Concept(Grain.OBJECT, "tree", Box(90.0, 10.0, 60.0, 90.0), (), "7")


def three_sources() -> dict[str, Parts]:
    """Three sources of two parts, with copies inside a part, between parts and between sources.

    | image | rows |
    |---|---|
    | 1 | coco:1 at half size; cc3m:1 the same pixels as a PNG of it; laion:1 full size; laion:9, re-encoded |
    | 2 | cc3m:2 as it is; laion:2 larger, but it scores too low |
    | clip | cc3m:clip; laion:clip, re-encoded, scores too low |
    | broken | cc3m:broken and laion:broken have the same bytes |
    """
    half = scene(1, (96, 72))
    small = encoded(half, "PNG")
    return {
        "coco": [[row("coco", "1", small, ["A dog."], [DOG])], [row("coco", "5", encoded(scene(5)), ["five"])]],
        "cc3m": [
            [
                row("cc3m", "1", encoded(half, "PNG", compress_level=1), ["a  DOG.", "a pet"], [DOG, TREE]),
                row("cc3m", "2", encoded(scene(2)), ["two"]),
                row("cc3m", "broken", BROKEN),
            ],
            [row("cc3m", "clip", clip(30, 31), ["waves"]), row("cc3m", "6", encoded(scene(6)), ["six"])],
        ],
        "laion": [
            [
                row("laion", "1", encoded(scene(1)), ["dog photo"], [TREE]),
                row("laion", "2", encoded(scene(2, (384, 288))), ["low"], score=0.1),
                row("laion", "broken", BROKEN),
            ],
            [
                row("laion", "9", encoded(scene(1), quality=60), ["dog photo"]),
                row("laion", "clip", clip(30, 31, quality=50), ["the sea"], score=0.2),
                row("laion", "7", encoded(scene(7)), []),
            ],
        ],
    }


LIMITS = PartitionConfig(num_shards=4, min_clip_score=0.25, image_min_clip_score=0.25)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Input, ...]]:
    return build(tmp_path_factory.mktemp("corpus"), three_sources())


def test_one_row_of_every_image_stays_and_it_is_the_best(corpus, tmp_path: Path) -> None:
    result = curate(corpus, tmp_path, MERGE, partition=LIMITS)
    assert {name: drop["rule"] for name, drop in result.drops.items()} == {
        "cc3m:1": "duplicate",
        "laion:1": "duplicate",
        "laion:9": "duplicate",
        "laion:2": "min_clip_score",  # never compared: else cc3m:2, the smaller one, would have gone for it
        "laion:clip": "min_clip_score",
        "cc3m:broken": "decode_failed",
        "laion:broken": "decode_failed",
    }
    assert set(result.kept) == {"coco:1", "coco:5", "cc3m:2", "cc3m:clip", "cc3m:6", "laion:7"}
    keeper = result.kept["coco:1"]["key"]
    assert result.drops["cc3m:1"]["reason"] == f"shows what {keeper} shows, by pixels"
    assert (result.drops["cc3m:1"]["value"], result.drops["cc3m:1"]["threshold"]) == (0.0, 0.0)
    assert result.drops["laion:1"]["reason"] == f"shows what {keeper} shows, by phash"
    assert result.drops["laion:1"]["value"] <= result.drops["laion:1"]["threshold"] == 6.0
    assert result.clusters is not None
    assert result.clusters.summary["dropped_by_method"] == {"phash": 2, "pixels": 1}
    assert result.partitioned.counts().dropped == {"duplicate": 3, "min_clip_score": 2, "decode_failed": 2}


def test_without_thresholds_what_scored_low_takes_part(corpus, tmp_path: Path) -> None:
    free = LIMITS.model_copy(update={"min_clip_score": None, "image_min_clip_score": None})
    result = curate(corpus, tmp_path, MERGE, partition=free)
    assert {name for name, drop in result.drops.items() if drop["rule"] == "duplicate"} == {
        *("cc3m:1", "laion:1", "laion:9"),
        "laion:2",  # of sources that are not annotated the first by name wins before the size does
        "laion:clip",
    }
    assert [one["text"] for one in result.kept["cc3m:clip"]["captions"]] == ["waves", "the sea"]


def test_the_keeper_gets_texts_of_all_and_boxes_of_those_with_its_pixels(corpus, tmp_path: Path) -> None:
    result = curate(corpus, tmp_path, MERGE, partition=LIMITS)
    kept = result.kept["coco:1"]
    texts = [one["text"] for one in kept["captions"]]
    assert texts[0] == "A dog."  # its own first; "a  DOG." says the same
    assert sorted(texts[1:]) == ["a pet", "dog photo"]
    # laion:1 is larger: its box would lie elsewhere. The id 7 is taken, so the tree gets the name of its row.
    assert [(one["text"], one["annotation_id"]) for one in kept["concepts"]] == [("dog", "7"), ("tree", "cc3m:1:7")]
    plain = curate(corpus, tmp_path / "plain", DeduplicateConfig(), partition=LIMITS)
    assert [one["text"] for one in plain.kept["coco:1"]["captions"]] == ["A dog."]
    assert set(plain.drops) == set(result.drops)


def test_what_is_added_is_counted(corpus, tmp_path: Path) -> None:
    result = curate(corpus, tmp_path, MERGE, partition=LIMITS)
    samples = [one.sample for parts in three_sources().values() for rows in parts for one in rows]
    for unit, added in (("captions", 2), ("concepts", 1)):
        count = result.partitioned.counts(unit)
        count.check(unit)
        assert sum(one.summary["added"][unit] for one in result.partitioned.results.values()) == added
        assert count.num_in == sum(len(getattr(sample, unit)) for sample in samples) + added
        assert count.num_out == sum(len(one[unit]) for one in result.kept.values())


def test_the_order_in_which_parts_run_changes_no_byte(corpus, tmp_path: Path) -> None:
    def everything(folder: Path, seed: int | None) -> list[dict[str, bytes]]:
        strict = DecontaminateConfig(readers=("", "", ""))
        result = curate(corpus, folder, MERGE, strict, partition=LIMITS, seed=seed)
        runs = (result.decontaminated, result.deduplicated, result.partitioned, result.packed)
        return [run.bytes_of() for run in runs if run is not None]

    first = everything(tmp_path / "first", None)
    assert len(first) == 4
    for seed in range(3):
        assert everything(tmp_path / str(seed), seed) == first


def test_the_order_of_sources_and_rows_decides_nothing(tmp_path: Path) -> None:
    def told(folder: Path, sources: dict[str, Parts]) -> tuple[set[str], dict[str, str]]:
        result = curate(build(folder / "in", sources), folder, MERGE, partition=LIMITS)
        return set(result.kept), {name: drop["reason"] for name, drop in result.drops.items()}

    turned = {name: [rows[::-1] for rows in parts[::-1]] for name, parts in reversed(three_sources().items())}
    assert told(tmp_path / "turned", turned) == told(tmp_path / "plain", three_sources())


def changed_parts(before, after) -> set[str]:
    return {name for name in before.fingerprints if before.fingerprints[name] != after.fingerprints.get(name)}


def test_taking_out_a_row_that_keeps_nothing_changes_one_shard(corpus, tmp_path: Path) -> None:
    sources = three_sources()
    less = {**sources, "cc3m": [sources["cc3m"][0], sources["cc3m"][1][:1]]}  # without cc3m:6
    before = curate(corpus, tmp_path / "before", MERGE, partition=LIMITS)
    after = curate(build(tmp_path / "in", less), tmp_path / "after", MERGE, partition=LIMITS)
    shard = f"{shard_of(before.kept['cc3m:6']['key'], LIMITS.num_shards):05d}"
    assert changed_parts(before.packed, after.packed) == {shard}
    assert changed_parts(before.partitioned, after.partitioned) == {"001-00001"}
    assert before.deduplicated is not None
    assert after.deduplicated is not None
    assert before.deduplicated.bytes_of() == after.deduplicated.bytes_of()  # nothing was said about it


def test_taking_out_a_keeper_changes_its_shard_and_that_of_the_row_that_comes_in(corpus, tmp_path: Path) -> None:
    sources = three_sources()
    less = {**sources, "coco": [[], sources["coco"][1]]}  # without coco:1
    before = curate(corpus, tmp_path / "before", MERGE, partition=LIMITS)
    after = curate(build(tmp_path / "in", less), tmp_path / "after", MERGE, partition=LIMITS)
    assert set(after.kept) - set(before.kept) == {"cc3m:1"}
    assert set(before.kept) - set(after.kept) == {"coco:1"}
    keys = (before.kept["coco:1"]["key"], after.kept["cc3m:1"]["key"])
    shards = {f"{shard_of(key, LIMITS.num_shards):05d}" for key in keys}
    assert len(shards) == 2
    assert changed_parts(before.packed, after.packed) == shards
    # The parts of the two rows, and those of the copies, whose reason names another keeper now.
    assert changed_parts(before.partitioned, after.partitioned) == {
        *("000-00000", "001-00000", "002-00000", "002-00001"),
    }


def test_the_rows_that_say_what_many_say_go_beyond_the_first_by_key(tmp_path: Path) -> None:
    rows = [row("shop", str(n), encoded(scene(n)), ["Image  for listing", "image FOR listing"]) for n in range(5)]
    rows.append(row("shop", "own", encoded(scene(20)), ["image for listing", "a red bicycle"]))
    rows.append(row("shop", "none", encoded(scene(21)), []))
    other = row("other", "1", encoded(scene(22)), ["image for listing"])
    corpus = build(tmp_path / "in", {"shop": [rows[:3], rows[3:]], "other": [[other]]})
    result = curate(corpus, tmp_path, DeduplicateConfig(max_rows_per_caption=2))
    saying = sorted(rows[:6], key=lambda one: one.sample.key)
    stay = {one.sample.source_row for one in saying[:2]} | {"own", "none"}
    assert set(result.kept) == {f"shop:{name}" for name in stay} | {"other:1"}
    assert {drop["rule"] for drop in result.drops.values()} == {"repeated_caption"}
    assert {(drop["value"], drop["threshold"]) for drop in result.drops.values()} == {(6.0, 2.0)}
    assert result.deduplicated is not None
    assert result.deduplicated.summary["dropped"] == {"repeated_caption": len(result.drops)}
    unlimited = curate(corpus, tmp_path / "all", DeduplicateConfig(max_rows_per_caption=6))
    assert unlimited.drops == {}


def test_a_row_that_says_what_many_say_keeps_no_other(tmp_path: Path) -> None:
    same = [row("shop", str(n), encoded(scene(n)), ["photo"]) for n in range(3)]
    dropped_row = max(same, key=lambda one: one.sample.key)
    copy = row("zoo", "1", encoded(scene(int(dropped_row.sample.source_row)), quality=60), ["a tiger"])
    corpus = build(tmp_path / "in", {"shop": [same], "zoo": [[copy]]})
    result = curate(corpus, tmp_path, MERGE.model_copy(update={"max_rows_per_caption": 2}))
    assert {name: drop["rule"] for name, drop in result.drops.items()} == {
        f"shop:{dropped_row.sample.source_row}": "repeated_caption"
    }


def test_a_source_listed_twice_is_decided_once_and_packed_once(tmp_path: Path) -> None:
    corpus = build(tmp_path / "in", three_sources())
    twice = {name: (*inputs, inputs[2]) for name, inputs in corpus.items()}
    strict = DecontaminateConfig(readers=("",) * 4)
    once = curate(corpus, tmp_path / "once", MERGE, DecontaminateConfig(readers=("",) * 3), partition=LIMITS)
    again = curate(twice, tmp_path / "twice", MERGE, strict, partition=LIMITS)
    assert again.kept == once.kept
    assert again.partitioned.counts().dropped["duplicate"] == 3 + 2  # both copies of laion:1 and laion:9
    assert again.packed.counts().dropped == {"duplicate_key": 1}  # laion:7


def test_sources_parts_and_stages_without_rows(tmp_path: Path) -> None:
    sources = {"empty": [[], []], "none": [], "one": [[], [row("one", "1", encoded(scene(1)))]]}
    strict = DecontaminateConfig(readers=("",) * 3)
    result = curate(build(tmp_path / "in", sources), tmp_path, MERGE, strict)
    assert set(result.kept) == {"one:1"}
    assert decisions_of(tmp_path / "deduplicate") == {}
    nothing = curate(EMPTY, tmp_path / "nothing", MERGE, DecontaminateConfig())
    assert nothing.partitioned.counts().num_in == 0
    assert nothing.clusters is not None
    assert nothing.clusters.summary["clusters"] == 0


def test_decisions_that_are_missing_are_named(corpus, tmp_path: Path) -> None:
    deduplicated = curate(corpus, tmp_path, MERGE, partition=LIMITS).deduplicated
    assert deduplicated is not None
    wider = build(tmp_path / "more", {"more": [[row("more", "1", encoded(scene(80)))]]})
    read = {name: (*corpus[name], *wider[name]) for name in ("rows", "scores", "media")}
    message = r"deduplicate/test says nothing about part 003-00000 of rows/more; does it read that source\?"
    with pytest.raises(ConfigError, match=message):
        run_stage(PARTITION, PARTITIONED, {**read, "decisions": (deduplicated.artifact,)}, tmp_path / "out")


def test_scores_that_do_not_fit_are_named(corpus, tmp_path: Path) -> None:
    read = {"rows": corpus["rows"], "scores": corpus["scores"][:2], "decisions": ()}
    with pytest.raises(ConfigError, match="deduplicate reads 3 rows artifacts but 2 scores artifacts"):
        run_stage(DEDUPLICATE, MERGE, read, tmp_path / "fewer")
    swapped = {"rows": corpus["rows"][1:], "scores": corpus["scores"][:0:-1], "links": ()}
    with pytest.raises(CorruptArtifact, match=r"scores\.parquet: its keys are not those of .*rerun the score stage"):
        run_stage(EVIDENCE, EvidenceConfig(), swapped, tmp_path / "swapped")
    scores = tuple(Input(one.node, one.root, one.parts[:1]) for one in corpus["scores"])
    with pytest.raises(ConfigError, match=r"scores/coco has no part 00001 of rows/coco; is it of that source\?"):
        run_stage(DEDUPLICATE, MERGE, {"rows": corpus["rows"], "scores": scores, "decisions": ()}, tmp_path / "part")
    with pytest.raises(ConfigError, match="`readers` and `test_readers` must name one reader for each source"):
        curate(corpus, tmp_path / "readers", None, DecontaminateConfig(readers=("coco",)))


def test_fingerprints_of_other_rows_are_refused(tmp_path: Path) -> None:
    corpus = build(
        tmp_path / "in", {"one": [[row("one", "1", encoded(scene(1)))]], "two": [[row("two", "2", encoded(scene(2)))]]}
    )
    folder = tmp_path / "in/one/0/scores"
    (folder / "fingerprints.parquet").write_bytes((tmp_path / "in/two/0/scores/fingerprints.parquet").read_bytes())
    scores = (Input("scores/one", "", (as_part("00000", folder),)), corpus["scores"][1])
    with pytest.raises(CorruptArtifact, match=r"fingerprints\.parquet: its keys are not those of .*rows\.parquet"):
        run_stage(EVIDENCE, EvidenceConfig(), {"rows": corpus["rows"], "scores": scores, "links": ()}, tmp_path / "out")


def test_a_broken_image_is_a_counted_drop_of_the_decoders_rule(corpus, tmp_path: Path) -> None:
    result = curate(corpus, tmp_path)
    broken = {name: drop for name, drop in result.drops.items() if name.endswith("broken")}
    assert len(broken) == 2
    for drop in broken.values():
        assert (drop["stage"], drop["rule"], drop["value"], drop["threshold"]) == (
            "partition",
            "decode_failed",
            None,
            None,
        )
        assert drop["reason"] == "its media could not be decoded when it was scored"
    assert result.partitioned.counts().dropped["decode_failed"] == 2


def decided(*rows: tuple[str, str]) -> pa.Table:
    made = [{"key": key, "rule": "x", "owner": owner} for owner, key in rows]
    return pa.Table.from_pylist(made, schema=OWNED_SCHEMA)


def test_a_stage_decides_about_a_row_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two decisions about k: a stage decides about a row once"):
        write_decisions(tmp_path, decided(("000-00000", "k"), ("000-00001", "l"), ("000-00000", "k")))


def test_decisions_are_dealt_to_the_parts_of_their_rows(tmp_path: Path) -> None:
    rows = [("001-00000", "d"), ("000-00001", "c"), ("000-00001", "a"), ("001-00000", "a")]
    assert write_decisions(tmp_path, decided(*rows)) == {"decisions.arrow": 4, "decisions.arrow.segments": 2}
    part = as_part("all", tmp_path, {"owners": ["000-00000", "000-00001", "001-00000"]})
    segments = part.segments("decisions.arrow")
    with open(tmp_path / "decisions.arrow", "rb") as stream:
        found = {}
        for name, file in segments.items():
            stream.seek(file.start or 0)
            found[name] = read_segment(BytesIO(stream.read(file.bytes)))["key"].to_pylist()
    assert found == {"000-00001": ["a", "c"], "001-00000": ["a", "d"]}


def test_images_with_a_turned_camera_are_one_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(scene(3).transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif)
    corpus = build(
        tmp_path / "in", {"a": [[row("a", "1", encoded(scene(3), quality=95))]], "b": [[row("b", "1", turned)]]}
    )
    assert set(curate(corpus, tmp_path, DeduplicateConfig()).drops) == {"b:1"}
