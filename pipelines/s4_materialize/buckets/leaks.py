"""`test_index` and `leaks`: what is known of the images of tests, in one place; and a search of all rows for them.

A part of `leaks` has a group of upstream parts, and compares each of their rows with every test image.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import Count, InputFile, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.buckets.evidence_rows import split_by_owner
from pipelines.s4_materialize.decisions import groups_of, rows_parts
from pipelines.s4_materialize.decontaminate_config import DecontaminateConfig
from pipelines.s4_materialize.evidence import (
    EMBEDDING,
    EMBEDDINGS,
    EVIDENCE_SCHEMA,
    FINGERPRINTS,
    SCORES,
    VARIANTS,
    evaluation_images,
    first_of_each_key,
    read_evidence,
    row_ids,
)
from x2vlm.data.duplicates.decontamination import Evaluation, Training, search
from x2vlm.data.duplicates.evaluation_ids import EVALUATION_ID_SCHEMA
from x2vlm.data.duplicates.id_files import read_links, read_test_ids
from x2vlm.data.duplicates.identities import ID_SCHEMA, Identities, identify, with_identity
from x2vlm.data.duplicates.leaks import EVALUATION_SCHEMA, LEAK_SCHEMA
from x2vlm.errors import ConfigError
from x2vlm.samples import write_table

LEAKS = "leaks.parquet"
IMAGES, IDS, IDENTITIES, TEST_IDENTITIES = (
    f"{name}.parquet" for name in ("images", "ids", "identities", "test_identities")
)
HELD_OUT_SPLIT = "held_out"
OWNED_LEAKS = LEAK_SCHEMA.append(pa.field("owner", pa.string()))  # with the name of the part of the row


def plan_test_index(config: DecontaminateConfig, inputs: Inputs) -> list[Part]:
    """One part that reads all test rows, and the files of ids and links."""
    embeddings = (EMBEDDINGS,) if config.rule.min_cosine is not None else ()
    tests = rows_parts(inputs, "decontaminate", "test_rows", "test_scores")
    if len(config.test_readers) != len(inputs["test_rows"]):
        raise ConfigError("decontaminate: `readers` and `test_readers` must name one reader for each source it reads")
    reads = [part.reads(SCORES, FINGERPRINTS, VARIANTS, *embeddings) for part in tests]
    owners = [[part.name, part.source, len(own)] for part, own in zip(tests, reads, strict=True)]
    files = [
        Read(slot, file)
        for slot in ("tests", "links")
        for source in inputs[slot]
        for one in source.parts
        for file in one.files
    ]
    return [Part("all", tuple(read for own in (*reads, files) for read in own), {"owners": owners})]


def index_tests(config: DecontaminateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """images.parquet, ids.parquet, identities.parquet; test_identities.parquet, of images of tests alone."""
    use_embeddings = config.rule.min_cosine is not None
    images = [image_schema(use_embeddings).empty_table()]
    ids = [EVALUATION_ID_SCHEMA.empty_table()]
    for file, path in zip(config.tests, _files(part, "tests"), strict=True):
        ids.append(read_test_ids(file, inputs.local_path(path)))
    for (_, source, _), reads in split_by_owner(part):
        table = read_evidence(inputs, reads, embeddings=use_embeddings)
        variants = next(read for read in reads if read.file.path == VARIANTS)
        images.append(evaluation_images(table, pq.read_table(inputs.local_path(variants.file)), HELD_OUT_SPLIT))
        ids.append(_as_test_ids(row_ids(table, config.test_readers[source]), table))
    links = [
        read_links(file, inputs.local_path(path))
        for file, path in zip(config.links, _files(part, "links"), strict=True)
    ]
    identities, every = identify(links), pa.concat_tables(ids)
    wanted = set(pc.drop_null(with_identity(every, identities)["identity"]).to_pylist())
    of_tests = Identities({one: name for one, name in identities.of.items() if name in wanted})
    made = {
        IMAGES: pa.concat_tables(images),
        IDS: every,
        IDENTITIES: _as_table(identities),
        TEST_IDENTITIES: _as_table(of_tests),
    }
    for name, table in made.items():
        write_table(table, out.path / name)
    num_rows = made[IMAGES].num_rows
    return PartResult({"rows": Count(num_rows, num_rows)}, {name: table.num_rows for name, table in made.items()})


def image_schema(embeddings: bool) -> pa.Schema:
    return pa.schema([*EVALUATION_SCHEMA, *([EMBEDDING] if embeddings else [])])


def _files(part: Part, slot: str) -> list[InputFile]:
    return [read.file for read in part.reads if read.slot == slot]


def _as_table(identities: Identities) -> pa.Table:
    return pa.table(
        {"id": pa.array(identities.of.keys(), pa.string()), "identity": pa.array(identities.of.values(), pa.string())}
    )


def _as_test_ids(ids: pa.Table, evidence: pa.Table) -> pa.Table:
    """The ids of held-out rows as those of test images."""
    places = pc.index_in(ids["key"], value_set=evidence["key"].combine_chunks())
    columns = {
        "eval_set": ids["source"],
        "split": pa.repeat(pa.scalar(HELD_OUT_SPLIT), ids.num_rows),
        "eval_id": evidence["source_row"].take(places),
        **{name: ids[name] for name in ("id_kind", "id_value", "start_seconds", "end_seconds")},
    }
    return pa.table({name: columns[name] for name in EVALUATION_ID_SCHEMA.names}).cast(EVALUATION_ID_SCHEMA)


TEST_INDEX = Stage(
    name="test_index",
    version=1,
    config_type=DecontaminateConfig,
    slots=("test_rows", "test_scores", "tests", "links"),
    plan_parts=plan_test_index,
    run_part=index_tests,
    allow_zero_rows=True,
)


def index_reads(inputs: Inputs, *names: str) -> list[Read]:
    """Files of the index of tests."""
    return [Read("index", part.file(name)) for one in inputs["index"] for part in one.parts for name in names]


def read_index(inputs: PartReader, reads: Sequence[Read], identities: str) -> tuple[Evaluation, Identities]:
    """The tests, and the identities in the file called `identities`."""
    found = {read.file.path: pq.read_table(inputs.local_path(read.file)) for read in reads if read.slot == "index"}
    linked = found[identities]
    of = dict(zip(linked["id"].to_pylist(), linked["identity"].to_pylist(), strict=True))
    return Evaluation(found[IMAGES], found[IDS]), Identities(of)


def plan_leaks(config: DecontaminateConfig, inputs: Inputs) -> list[Part]:
    """One part a group of upstream parts."""
    embeddings = (EMBEDDINGS,) if config.rule.min_cosine is not None else ()
    if len(config.readers) != len(inputs["rows"]):
        raise ConfigError("decontaminate: `readers` and `test_readers` must name one reader for each source it reads")
    index, parts = index_reads(inputs, IMAGES, IDS, TEST_IDENTITIES), []
    for name, own in groups_of(rows_parts(inputs, "decontaminate")).items():
        reads = [part.reads(SCORES, FINGERPRINTS, *embeddings) for part in own]
        owners = [[part.name, part.source, len(files)] for part, files in zip(own, reads, strict=True)]
        parts.append(Part(name, tuple(read for files in (*reads, index) for read in files), {"owners": owners}))
    return parts


def leaks_part(config: DecontaminateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """leaks.parquet: every leak of the group's rows, undecided, for every part that has the row."""
    use_embeddings = config.rule.min_cosine is not None
    schema = pa.schema([*EVIDENCE_SCHEMA, *([EMBEDDING] if use_embeddings else [])])
    rows, ids, owners = [schema.empty_table()], [ID_SCHEMA.empty_table()], []
    for (owner, source, _), reads in split_by_owner(part):
        table = read_evidence(inputs, reads, embeddings=use_embeddings)
        rows.append(table)
        ids.append(row_ids(table, config.readers[source]))
        owners.append(pa.table({"key": table["key"], "owner": pa.repeat(pa.scalar(owner), table.num_rows)}))
    every = pa.concat_tables(rows)
    evaluation, identities = read_index(inputs, part.reads, TEST_IDENTITIES)
    training = Training(first_of_each_key(every), pa.concat_tables(ids))
    leaks = search(training, evaluation, identities, config.rule)
    owned = owned_by(leaks, owners)
    write_table(owned, out.path / LEAKS)
    summary = {"owners": [name for name, _, _ in part.spec["owners"]], "metrics": {"leaks": leaks.num_rows}}
    return PartResult({"rows": Count(every.num_rows, every.num_rows)}, {LEAKS: owned.num_rows}, summary)


def owned_by(leaks: pa.Table, owners: Sequence[pa.Table]) -> pa.Table:
    """Each leak with the part of its row, as OWNED_LEAKS; once for every part that has the row."""
    if not leaks.num_rows:
        return OWNED_LEAKS.empty_table()
    keys = leaks["key"].combine_chunks()
    known = pa.concat_tables(one.filter(pc.is_in(one["key"], value_set=keys)) for one in owners)
    numbered = leaks.append_column("number", pa.array(range(leaks.num_rows)))
    found = numbered.join(known, "key", join_type="inner", use_threads=False)
    return found.sort_by([("number", "ascending"), ("owner", "ascending")]).select(OWNED_LEAKS.names).cast(OWNED_LEAKS)


FIND_LEAKS = Stage(
    name="leaks",
    version=1,
    config_type=DecontaminateConfig,
    slots=("rows", "scores", "index"),
    plan_parts=plan_leaks,
    run_part=leaks_part,
)
