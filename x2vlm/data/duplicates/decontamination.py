"""Which training rows show images and videos of downstream tests, and which of them are dropped.

| method | a row leaks if | score |
|---|---|---|
| id | it has the identity of a test image (`identities`), of a video with overlapping time | fraction of the test clip
|
| sha256, pixels | bytes or pixels are those of a test image | 1 |
| phash | hashes within `radius` bits and thumbnails alike | fraction of equal bits |
| phash | of a clip: half of the test clip's frames have a near one in it | fraction of those frames |
| phash_mirrored, phash_cropped | as phash, with the test image mirrored or cropped by 5 % (`variants`) | equal bits |
| embedding | cosine of at least `min_cosine` with a test image's | cosine |

Every test image is compared by all methods, and a row is reported once per test image and method. Texts are not
compared.

| policy | dropped rows |
|---|---|
| strict | every row that leaks and all rows with the same image, in all grains of all sources (`spread`) |
| paper | rows of `paper_sources` that leak by id |
| report | none |

`paper` follows what is known of the released recipe: the COCO and Visual Genome files of its configs are called
`*_testset_filtered` and `*_rmtest`, those of RefCOCO, GQA, Flickr30k and the web are not. The script was never
released, so which test sets it covered is an assumption: all that are given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.duplicates import CLUSTER_SCHEMA
from x2vlm.data.duplicates.identities import Identities, with_identity
from x2vlm.data.duplicates.leaks import (
    LEAK_SCHEMA,
    leaks_by_embedding,
    leaks_by_frames,
    leaks_by_hash,
    leaks_by_id,
    leaks_by_phash,
)


class DecontaminationConfig(FrozenConfig):
    """How leaks are searched for, and what happens to leaking rows."""

    policy: Literal["strict", "paper", "report"] = "strict"
    radius: int | None = Field(default=6, ge=0, le=16)  # bits; None: no search by hash
    min_correlation: float = Field(default=0.93, ge=-1, le=1)  # of thumbnails; where it comes from: DuplicateConfig
    min_cosine: float | None = Field(default=None, gt=0, le=1)  # None: no search by embedding
    ignored_splits: tuple[str, ...] = ("train", "restval")
    paper_sources: tuple[str, ...] = ("coco", "visual_genome")


@dataclass(frozen=True)
class Training:
    """Metadata of the training rows: TRAIN_SCHEMA (with `embedding` where that is searched) and ID_SCHEMA."""

    rows: pa.Table
    ids: pa.Table
    clusters: pa.Table = field(default_factory=CLUSTER_SCHEMA.empty_table)  # of `duplicates.find_duplicates`


@dataclass(frozen=True)
class Evaluation:
    """Metadata of the test images: EVALUATION_SCHEMA (with `embedding`, see above) and EVALUATION_ID_SCHEMA.

    Either may be empty: where the images are not at hand, or the set has no public ids.
    """

    images: pa.Table
    ids: pa.Table


def find_leaks(
    training: Training, evaluation: Evaluation, identities: Identities, config: DecontaminationConfig
) -> pa.Table:
    """Every leak as LEAK_SCHEMA, with the action of the policy; sorted, whatever the order of the inputs.

    Where training rows are too many for one table, `search` their parts one by one and `decide` about all finds at
    once: both need few columns, and an image is dropped from all parts only if these are decided together.
    """
    return decide(search(training, evaluation, identities, config), training, identities, config)


def search(
    training: Training, evaluation: Evaluation, identities: Identities, config: DecontaminationConfig
) -> pa.Table:
    """Every leak as LEAK_SCHEMA, undecided (action "").

    Time: joins, hash look-ups (`x2vlm.data.duplicates.hamming`: training rows are streamed against the test images),
    and training rows times test images for embeddings. Memory: the tables and the finds.
    """
    rows, images = training.rows, _wanted(evaluation.images, config)
    found = [leaks_by_id(training.ids, _wanted(evaluation.ids, config), identities)]
    found += [leaks_by_hash(name, rows, images) for name in ("sha256", "pixel_sha256")]
    if config.radius is not None:
        found.append(leaks_by_phash(rows, images, config.radius, config.min_correlation))
        found.append(leaks_by_frames(rows, images, config.radius))
    if config.min_cosine is not None:
        found.append(leaks_by_embedding(rows, images, config.min_cosine))
    return _sorted(pa.concat_tables(found))


def decide(leaks: pa.Table, training: Training, identities: Identities, config: DecontaminationConfig) -> pa.Table:
    """Leaks with the action of the policy; for `strict` with the rows of the same image (`spread`) too.

    `action` is what happens to the row: a row dropped for one leak is dropped in all its leaks. Of the columns of
    `training.rows` key, source, kind and the two hashes are read.
    """
    if config.policy == "strict":
        leaks = pa.concat_tables([leaks, spread(leaks, training, identities)])
        to_drop = leaks
    elif config.policy == "paper":
        listed = pc.is_in(leaks["source"], value_set=pa.array(config.paper_sources, pa.string()))
        to_drop = leaks.filter(pc.and_(listed, pc.equal(leaks["method"], "id")))
    else:
        to_drop = leaks.slice(0, 0)
    is_dropped = pc.is_in(leaks["key"], value_set=to_drop["key"].combine_chunks())
    action = pc.if_else(is_dropped, "drop", "report")
    return _sorted(leaks.set_column(leaks.column_names.index("action"), "action", action))


def _wanted(table: pa.Table, config: DecontaminationConfig) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["split"], value_set=pa.array(config.ignored_splits, pa.string()))))


def spread(leaks: pa.Table, training: Training, identities: Identities) -> pa.Table:
    """The rows that show the image of a leaking one: same media, same image by id, or same cluster of duplicates.

    Applied transitively. `via` is the key of the row that a row was reached from (the smallest of several); the test
    image is the first of that row's. Clips share a video's id without sharing its time, so ids do not spread leaks
    among clips.
    """
    names = {
        leak["key"]: (leak["eval_set"], leak["split"], leak["eval_id"]) for leak in _sorted(leaks).to_pylist()[::-1]
    }
    groups, source_of = _groups(training, identities), training.rows.select(["key", "source"])
    made: list[dict[str, Any]] = []
    newest = sorted(names)
    while newest:
        same_group: dict[str, tuple[str, str]] = {}
        for method, members in groups:
            for key, via in _same_group(members, newest):
                if key not in names:
                    same_group[key] = min(same_group.get(key, (via, method)), (via, method))
        sources = _sources(source_of, sorted(same_group))
        for key, (via, method) in same_group.items():
            names[key] = names[via]
            values = (*names[via], key, sources[key], method, 1.0, via, "")
            made.append(dict(zip(LEAK_SCHEMA.names, values, strict=True)))
        newest = sorted(same_group)
    return pa.Table.from_pylist(made, schema=LEAK_SCHEMA)


def _groups(training: Training, identities: Identities) -> list[tuple[str, pa.Table]]:
    """Tables of key and group: rows of one group are one image."""
    rows = training.rows
    images = rows.filter(pc.equal(rows["kind"], "image"))["key"]
    identity = with_identity(training.ids, identities)
    identity = identity.filter(pc.is_in(identity["key"], value_set=images))
    members = [
        ("same_media", rows["key"], rows["sha256"]),
        ("same_media", rows["key"], rows["pixel_sha256"]),
        ("same_id", identity["key"], identity["identity"]),
        ("same_cluster", training.clusters["key"], training.clusters["keeper"]),
    ]
    tables = [(method, pa.table({"key": keys, "group": groups})) for method, keys, groups in members]
    return [(method, table.filter(pc.is_valid(table["group"]))) for method, table in tables]


def _same_group(members: pa.Table, newest: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, via) of the rows in a group with one of `newest`."""
    hot = members.filter(pc.is_in(members["key"], value_set=pa.array(newest, pa.string())))
    via = hot.group_by("group").aggregate([("key", "min")])
    for mate in members.join(via, "group", join_type="inner", use_threads=False).to_pylist():
        yield mate["key"], mate["key_min"]


def _sources(rows: pa.Table, keys: Sequence[str]) -> dict[str, str]:
    found = rows.filter(pc.is_in(rows["key"], value_set=pa.array(keys, pa.string())))
    return dict(zip(found["key"].to_pylist(), found["source"].to_pylist(), strict=True))


def _sorted(leaks: pa.Table) -> pa.Table:
    """Equal leaks once (a row may have several ids of one image), the best score first among them."""
    names = ["eval_set", "split", "eval_id", "key", "source", "method", "via", "action"]
    best = leaks.group_by(names).aggregate([("score", "max")]).rename_columns([*names, "score"])
    return best.select(LEAK_SCHEMA.names).sort_by([(name, "ascending") for name in names]).cast(LEAK_SCHEMA)


def summarize(leaks: pa.Table, evaluation: Evaluation, config: DecontaminationConfig) -> dict[str, Any]:
    """The counts reported with a result: per test set and split the images, and those that leak, by method.

    `still_in_training` counts the images shown by a row that is kept: none after `strict`.
    """
    images = _distinct_images(evaluation, config)
    direct = leaks.filter(pc.equal(leaks["via"], "")).to_pylist()
    sets: dict[str, dict[str, Any]] = {}
    for eval_set, split in sorted({(one[0], one[1]) for one in images}):
        own = [one for one in direct if (one["eval_set"], one["split"]) == (eval_set, split)]
        methods: dict[str, set[str]] = {}
        for leak in own:
            methods.setdefault(leak["method"], set()).add(leak["eval_id"])
        sets.setdefault(eval_set, {})[split] = {
            "pictures": sum(1 for one in images if one[:2] == (eval_set, split)),
            "leaked": len({one["eval_id"] for one in own}),
            "leaked_by_method": {name: len(ids) for name, ids in sorted(methods.items())},
            "still_in_training": len({one["eval_id"] for one in own if one["action"] != "drop"}),
        }
    dropped = leaks.filter(pc.equal(leaks["action"], "drop"))
    return {
        "policy": config.policy,
        "rows_leaking": len({one["key"] for one in direct}),
        "rows_dropped": pc.count_distinct(dropped["key"]).as_py(),
        "sets": sets,
    }


def _distinct_images(evaluation: Evaluation, config: DecontaminationConfig) -> set[tuple[str, str, str]]:
    names = ("eval_set", "split", "eval_id")
    tables = [_wanted(table, config).select(names) for table in (evaluation.images, evaluation.ids)]
    return {tuple(row.values()) for table in tables for row in table.to_pylist()}
