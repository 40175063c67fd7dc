"""The searches in buckets find what `find_duplicates` and `find_leaks` find in one table, and run little again."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.deciding_nodes import bucket_configs
from pipelines.flow.segments import read_segment
from pipelines.flow.stage import Input
from pipelines.s3_score.stage import EMBEDDING_SCHEMA, FINGERPRINT_SCHEMA, SCORE_SCHEMA, VARIANT_SCHEMA
from pipelines.s4_materialize.buckets.evidence_rows import EVIDENCE, HASHES, ROWS, VALUES
from pipelines.s4_materialize.buckets.exact import EXACT
from pipelines.s4_materialize.buckets.leaks import FIND_LEAKS, TEST_INDEX
from pipelines.s4_materialize.buckets.near import COMPONENTS, NEAR, ComponentsConfig, NearConfig, check_embeddings
from pipelines.s4_materialize.buckets.stars import STARS
from pipelines.s4_materialize.decisions import GROUP_SIZE
from pipelines.s4_materialize.decontaminate import DECONTAMINATE, DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DEDUPLICATE, DeduplicateConfig
from pipelines.s4_materialize.evidence import EVIDENCE_SCHEMA, evaluation_images, row_ids
from pipelines.s4_materialize.thresholds import ScoreThresholds
from tests.support.corpora.random_rows import random_rows
from tests.support.parts import Run, as_part, run_stage
from x2vlm.data.duplicates.decontamination import DecontaminationConfig, Evaluation, Training, find_leaks
from x2vlm.data.duplicates.duplicates import DuplicateConfig, find_duplicates
from x2vlm.data.duplicates.identities import identify
from x2vlm.data.media.phash import FINGERPRINT_FIELDS
from x2vlm.errors import ConfigError
from x2vlm.samples import SAMPLE_SCHEMA, write_table

FREE = ScoreThresholds(min_clip_score=None)
PER_PART = 5
SMALL = {"rows_per_bucket": 60, "hashes_per_range": 120}  # several buckets of looks, several shares of hashes
STAGES = ("evidence", "near", "components", "exact", "stars", "deduplicate")


def rows_of(seed: int, size: int, source: str) -> pa.Table:
    """Random rows with media, of one source, as EVIDENCE_SCHEMA; some have an address in common."""
    rows = random_rows(seed, size)
    rows = rows.filter(pc.is_valid(rows["sha256"]))
    numbers = range(rows.num_rows)
    columns = {name: rows[name] for name in rows.column_names} | {
        "source": pa.repeat(pa.scalar(source), rows.num_rows),
        "source_row": pa.array([str(number) for number in numbers]),
        "url": pa.array([f"http://x.invalid/{number % (rows.num_rows * 9 // 10)}" for number in numbers]),
        "clip_score": pa.repeat(pa.scalar(0.5, pa.float32()), rows.num_rows),
        "missing": pa.repeat(pa.scalar(""), rows.num_rows),
    }
    columns |= {name: pa.nulls(rows.num_rows, pa.float64()) for name in ("start_seconds", "end_seconds")}
    return pa.table({name: columns[name] for name in EVIDENCE_SCHEMA.names}).cast(EVIDENCE_SCHEMA)


def artifacts(
    folder: Path, source: str, parts: Sequence[pa.Table], variants: pa.Table | None = None
) -> dict[str, Input]:
    """A `rows` and a `scores` artifact with these parts."""
    made: dict[str, list[Any]] = {"rows": [], "scores": []}
    for number, rows in enumerate(parts):
        for kind, tables in (("rows", {"rows": _samples(rows)}), ("scores", _scores(rows, variants))):
            place = folder / source / str(number) / kind
            place.mkdir(parents=True)
            for name, table in tables.items():
                write_table(table, place / f"{name}.parquet")
            made[kind].append(as_part(f"{number:05d}", place))
    return {kind: Input(f"{kind}/{source}", "", tuple(own)) for kind, own in made.items()}


def _samples(rows: pa.Table) -> pa.Table:
    made = []
    for row in rows.to_pylist():
        names = ("key", "source", "source_row", "kind", "url")
        media = {"kind": row["kind"]} | {name: row[name] for name in ("sha256", "width", "height")}
        captions = [{"text": f"{n}", "language": "en", "origin": "alt"} for n in range(row["num_captions"])]
        made.append({name: row[name] for name in names} | {"media": media, "captions": captions})
    return pa.Table.from_pylist(made, schema=SAMPLE_SCHEMA)


def _scores(rows: pa.Table, variants: pa.Table | None) -> dict[str, pa.Table]:
    prints = rows.select(["key", *(field.name for field in FINGERPRINT_FIELDS)]).cast(FINGERPRINT_SCHEMA)
    scores = [{"key": key, "clip_score": 0.5, "missing": ""} for key in rows["key"].to_pylist()]
    vectors = [{"key": key} for key in rows["key"].to_pylist()]
    tables = {"scores": pa.Table.from_pylist(scores, schema=SCORE_SCHEMA), "fingerprints": prints}
    tables |= {"embeddings": pa.Table.from_pylist(vectors, schema=EMBEDDING_SCHEMA)}
    return tables if variants is None else {**tables, "variants": variants}


def in_parts(rows: pa.Table) -> list[pa.Table]:
    return [rows.slice(start, PER_PART) for start in range(0, rows.num_rows, PER_PART)]


def searched(
    folder: Path, read: Mapping[str, tuple[Input, ...]], config: DeduplicateConfig, strict: DecontaminateConfig | None
) -> dict[str, Run]:
    """What every stage wrote, in buckets that are as small as the rows here are few."""
    evidence_config, near_config = bucket_configs(strict, config)
    evidence_config = evidence_config.model_copy(update=SMALL)
    runs: dict[str, Run] = {}

    def run(stage: Any, config: Any, **slots: tuple[Input, ...]) -> tuple[Input, ...]:
        runs[stage.name] = run_stage(stage, config, dict(slots), folder / stage.name)
        return (runs[stage.name].artifact,)

    evidence = run(EVIDENCE, evidence_config, **read, links=())
    labels = run(COMPONENTS, ComponentsConfig(), links=run(NEAR, near_config, evidence=evidence))
    exact = run(EXACT, ComponentsConfig(), evidence=evidence, components=labels)
    stars = run(STARS, config, rows=exact, decisions=())
    run(DEDUPLICATE, config, **read, decisions=stars)
    return runs


def of_all(run: Run, name: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(run.folder.glob(f"*/{name}")))


@pytest.fixture(scope="module")
def rows() -> dict[str, pa.Table]:
    return {"coco": rows_of(1, 120, "coco"), "web": rows_of(2, 60, "web")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, pa.Table]) -> dict[str, tuple[Input, ...]]:
    folder = tmp_path_factory.mktemp("corpus")
    made = [artifacts(folder, name, in_parts(table)) for name, table in rows.items()]
    return {kind: tuple(one[kind] for one in made) for kind in ("rows", "scores")}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, tuple[Input, ...]]) -> dict[str, Run]:
    return searched(tmp_path_factory.mktemp("before"), corpus, DeduplicateConfig(thresholds=FREE), None)


def test_stars_in_buckets_are_those_among_all_rows(before: dict[str, Run], rows: dict[str, pa.Table]) -> None:
    expected = find_duplicates(pa.concat_tables(rows.values()), DuplicateConfig())
    found = of_all(before["stars"], "clusters.parquet").sort_by([("keeper", "ascending"), ("key", "ascending")])
    assert found.equals(expected)
    assert expected.num_rows > 100
    assert len(before["exact"].results) == 8  # buckets
    assert len(before["near"].results) == 7 * 4 + 8  # shares of the hashes by each of seven blocks, buckets of values
    assert {name.partition("-")[0] for name in before["deduplicate"].results} == {"000", "001"}  # groups of parts
    assert sum(one.num_rows for one in rows.values()) > GROUP_SIZE * PER_PART


def test_every_dropped_row_is_decided_about_once(before: dict[str, Run], rows: dict[str, pa.Table]) -> None:
    clusters = of_all(before["stars"], "clusters.parquet")
    dropped = clusters.filter(pc.equal(clusters["action"], "drop"))["key"].to_pylist()
    assert before["deduplicate"].summary["dropped"] == {"duplicate": len(dropped)}
    decided = [
        key
        for part in before["deduplicate"].artifact.parts
        for owner, file in part.segments("decisions.arrow").items()
        for key in _segment(file)["key"].to_pylist()
    ]
    assert sorted(decided) == sorted(dropped)


def _segments(run: Run, path: str) -> set[tuple[str, str, str]]:
    """Part, name and sha256 of every segment of the files called `path`."""
    parts = [part for part in run.artifact.parts if any(file.path == path for file in part.files)]
    return {(part.name, name, one.sha256) for part in parts for name, one in part.segments(path).items()}


def _segment(file: Any) -> pa.Table:
    data = Path(file.uri).read_bytes()
    return read_segment(BytesIO(data[file.start : file.start + file.bytes]))


def test_taking_out_a_row_runs_little_again_and_changes_nothing(
    before: dict[str, Run], rows: dict[str, pa.Table], tmp_path: Path
) -> None:
    """A row that is alone: of each bucketed stage one part runs again, of `near` one a block and one a value; no link
    and no row of another changes."""
    busy = set(of_all(before["exact"], "busy.parquet")["key"].to_pylist())
    alone = next(
        number
        for number, row in enumerate(rows["web"].to_pylist())
        if bytes.fromhex(row["key"]) not in busy and row["phash"] is not None and not row["phash_flat"]
    )
    parts = in_parts(rows["web"])
    place = alone % PER_PART
    parts[alone // PER_PART] = pa.concat_tables(
        [parts[alone // PER_PART].slice(0, place), parts[alone // PER_PART].slice(place + 1)]
    )
    made = [artifacts(tmp_path, "coco", in_parts(rows["coco"])), artifacts(tmp_path, "web", parts)]
    read = {kind: tuple(one[kind] for one in made) for kind in ("rows", "scores")}
    after = searched(tmp_path / "after", read, DeduplicateConfig(thresholds=FREE), None)
    again = {
        name: sum(before[name].fingerprints[part] != one for part, one in after[name].fingerprints.items())
        for name in STAGES[:-1]
    }
    blocks, values = NearConfig().radius + 1, len(("key", "sha256"))
    assert again == {"evidence": 1, "near": blocks + values, "components": 0, "exact": 1, "stars": 0}
    for file, number in ((ROWS, 1), (VALUES, values), (HASHES, blocks)):
        old, new = (_segments(runs["evidence"], file) for runs in (before, after))
        assert len(old - new) == number
        assert len(new - old) <= number
    for name in ("near", "components", "exact", "stars"):
        assert after[name].bytes_of() == before[name].bytes_of()
    # Only the count of rows of its group differs.
    assert after["deduplicate"].bytes_of() == before["deduplicate"].bytes_of()


@pytest.mark.parametrize("policy", ["strict", "paper"])
def test_leaks_in_groups_are_those_among_all_rows(
    policy: str, corpus: dict[str, tuple[Input, ...]], rows: dict[str, pa.Table], tmp_path: Path
) -> None:
    every = pa.concat_tables(rows.values())
    shown = every.take(list(range(0, every.num_rows, 40)))
    fresh = rows_of(9, 20, "tests").slice(0, shown.num_rows)
    # Tests with the looks of training rows, bytes of their own, and variants that look like other rows.
    looks = {field.name: shown[field.name] for field in FINGERPRINT_FIELDS} | {"kind": shown["kind"]}
    held_out = pa.table({name: looks.get(name, fresh[name]) for name in EVIDENCE_SCHEMA.names}).cast(EVIDENCE_SCHEMA)
    others = every.take(list(range(20, every.num_rows, 40))).slice(0, shown.num_rows)
    columns = {"key": held_out["key"].slice(0, others.num_rows), "variant": ["mirrored"] * others.num_rows}
    columns |= {field.name: others[field.name] for field in FINGERPRINT_FIELDS}
    variants = pa.table(columns).cast(VARIANT_SCHEMA)
    tests = artifacts(tmp_path, "tests", [held_out], variants)
    rule = DecontaminationConfig.model_validate({"policy": policy})
    config = DecontaminateConfig(rule=rule, readers=("coco", ""), test_readers=("",))
    index = run_stage(
        TEST_INDEX,
        config,
        {"test_rows": (tests["rows"],), "test_scores": (tests["scores"],), "tests": (), "links": ()},
        tmp_path / "index",
    )
    slots = {**corpus, "index": (index.artifact,)}
    found = run_stage(FIND_LEAKS, config, slots, tmp_path / "found")
    exact: tuple[Input, ...] = ()
    if policy == "strict":
        exact = (searched(tmp_path / "in", corpus, DeduplicateConfig(thresholds=FREE), config)["exact"].artifact,)
    run = run_stage(
        DECONTAMINATE,
        config,
        {"leaks": (found.artifact,), "index": (index.artifact,), "exact": exact},
        tmp_path / "decided",
    )
    limits = DuplicateConfig(radius=rule.radius, min_correlation=rule.min_correlation)
    clusters = {"clusters": find_duplicates(every, limits)} if policy == "strict" else {}
    ids = [row_ids(rows["coco"], "coco"), row_ids(rows["web"], "")]
    evaluation = Evaluation(
        evaluation_images(held_out, variants, "held_out"), pq.read_table(tmp_path / "index/all/ids.parquet")
    )
    expected = find_leaks(Training(every, pa.concat_tables(ids), **clusters), evaluation, identify([]), rule)
    assert pq.read_table(tmp_path / "decided/all/leaks.parquet").equals(expected)
    dropped = set(expected.filter(pc.equal(expected["action"], "drop"))["key"].to_pylist())
    assert run.results["all"].counts["rows"].num_in == len(dropped)
    methods = set(expected["method"].to_pylist())
    assert methods >= {"pixels", "phash", "phash_mirrored"}
    assert (policy == "strict") == bool({"same_id", "same_cluster"} <= methods)


def test_a_search_by_embedding_says_when_rows_are_too_many() -> None:
    config = NearConfig(min_cosine=0.9, max_embeddings=10)
    check_embeddings(config, 10)
    with pytest.raises(ConfigError, match="min_cosine: 11 rows have an embedding, and a search among more than 10"):
        check_embeddings(config, 11)
