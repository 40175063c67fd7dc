"""What a part would write, by its stage: names, sizes and rows of files, counts, and a summary as long as a real one.

A function for each kind of stage; all sizes and shares are of `rates`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.flow.segments import segments_name
from pipelines.flow.stage import Count, Part, Stage
from pipelines.s1_download.domains import DOMAINS_FILE
from pipelines.s1_download.read_tables import SEGMENT_RANGES, SEGMENTS_FILE, num_segments, segment_name
from pipelines.s4_materialize.buckets.evidence_rows import HASHES, VALUES, VECTORS, share_name
from pipelines.s4_materialize.buckets.evidence_rows import ROWS as EVIDENCE_ROWS
from pipelines.s4_materialize.buckets.exact import BUSY, HOMES
from pipelines.s4_materialize.buckets.leaks import IDENTITIES, IDS, IMAGES, LEAKS, TEST_IDENTITIES
from pipelines.s4_materialize.buckets.near import LABELS
from pipelines.s4_materialize.buckets.near import LINKS as NEAR_LINKS
from pipelines.s4_materialize.buckets.routing import bucket_name
from pipelines.s4_materialize.buckets.stars import CLUSTERS, GONE
from pipelines.s4_materialize.decisions import DECISIONS
from pipelines.s4_materialize.decontaminate import SUMMARY
from pipelines.s4_materialize.pack import shard_name
from pipelines.s4_materialize.slices import MAX_SLICES, numbered
from pipelines.s4_materialize.slices import ROWS as SLICES
from pipelines.simulation import rates
from pipelines.simulation.listings import listing
from x2vlm.data.duplicates.hamming import searches
from x2vlm.data.shards.media_files import index_name
from x2vlm.data.shards.packs import INDEX_NAME, PACK_NAME

HISTOGRAM = {"image": {kind: list(range(200)) for kind in ("real", "shuffled")}}
METRICS = {"rows_per_second": 12.345678, "bytes_per_second": 123456.789, "success_rate": 0.81}


@dataclass(frozen=True)
class MadeFile:
    """A file of so many bytes; `data` where somebody reads it."""

    path: str
    size: int
    rows: int | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Made:
    """What a part comes to. `counts` of rows; files that have segments are followed by their listings."""

    files: tuple[MadeFile, ...]
    counts: Mapping[str, Count]
    summary: Mapping[str, Any] = field(default_factory=dict)


class Outputs:
    """Makes up what parts write. `rows_of` has the rows of every source by the id of its card, `key_ranges` the number
    of ranges of those that are sorted, by the number that begins names of parts of their rows ("003")."""

    def __init__(self, rows_of: Mapping[str, int], key_ranges: Mapping[str, int]) -> None:
        self._rows_of, self._key_ranges = rows_of, key_ranges
        self._groups: list[str] = []  # of upstream parts, as `evidence` and `leaks` have them
        self._made: Mapping[str, Callable[[Any, Part], Made]] = {
            "read": self._read,
            "sort": self._sort,
            "download": self._download,
            "domain_counts": self._domains,
            "domains": self._domains,
            "filter": self._filter,
            "score": self._score,
            "evidence": self._evidence,
            "near": self._near,
            "components": self._components,
            "exact": self._exact,
            "test_index": self._test_index,
            "leaks": self._leaks,
            "decontaminate": self._decontaminate,
            "repeated_captions": self._repeated,
            "stars": self._stars,
            "deduplicate": self._deduplicate,
            "partition": self._partition,
            "pack": self._pack,
        }

    @property
    def stages(self) -> frozenset[str]:
        """Names of the stages whose parts can be made up."""
        return frozenset(self._made)

    def of(self, stage: Stage, config: Any, part: Part) -> Made:
        """The outputs of a part."""
        return self._made[stage.name](config, part)

    def _read(self, config: Any, part: Part) -> Made:
        rows = self._rows_of[config.card]
        if "slice" in part.spec:
            file = next(read.file for read in part.reads if read.file.path == config.files[part.spec["role"]])
            start = int(part.spec["slice"]) * config.bytes_per_part
            rows = (min(file.bytes, start + config.bytes_per_part) - start) // rates.UPSTREAM_BYTES
        if config.key_ranges is None:
            starts = range(0, rows, config.rows_per_file)
            names = [
                (f"rows-{number:05d}.parquet", min(config.rows_per_file, rows - at)) for number, at in enumerate(starts)
            ]
            files = [_file("read", name, own, "rows.parquet") for name, own in names]
        else:
            segments = [segment_name(number) for number in range(num_segments(config.key_ranges))]
            files = _segmented("read", SEGMENTS_FILE, rows, segments, part)
        files.append(_file("read", "drops.parquet", 0))
        return Made(tuple(files), _counts(rows, "read"), {"seen_rows": rows, "kept_rows": rows})

    def _sort(self, config: Any, part: Part) -> Made:
        rows, first = _rows(part), int(part.spec["segment"]) * SEGMENT_RANGES
        ranges = range(first, min(first + SEGMENT_RANGES, config.key_ranges))
        own = [rows // len(ranges) + (number < rows % len(ranges)) for number in range(len(ranges))]
        names = [f"rows-{number:07d}.parquet" for number in ranges]
        files = [_file("sort", name, number, "rows.parquet") for name, number in zip(names, own, strict=True)]
        return Made(tuple(files), {"rows": Count(rows, rows)})

    def _download(self, config: Any, part: Part) -> Made:
        rows = _rows(part)
        counts = _counts(rows, "download", "http_404")
        kept = counts["rows"].num_out
        files = (
            _file("download", DOMAINS_FILE, rows),
            _file("download", "drops.parquet", rows - kept),
            _file("download", "ledger.parquet", rows),
            _file("download", INDEX_NAME, kept),
            _file("download", PACK_NAME, kept, rows_of_file=False),
            _file("download", "rows.parquet", kept),
        )
        summary = {
            **{"num_distinct_media": kept, "media_bytes": files[4].size, "fetched_bytes": files[4].size},
            **{"fetch_seconds": 812.25, "metrics": METRICS, "dropped": dict(counts["rows"].dropped)},
            **{"hash_checks": {"nothing_came": rows - kept, "unknown": kept}, "licences": {"?": kept}},
        }
        return Made(files, counts, summary)

    def _domains(self, config: Any, part: Part) -> Made:
        rows = max(1, _rows(part))
        names = ("domains.parquet", "flagged.parquet", "repeated.parquet")
        return Made(tuple(_file("domains", name, rows) for name in names), {"rows": Count(rows, rows)})

    def _filter(self, config: Any, part: Part) -> Made:
        rows = _rows(part)
        counts = _counts(rows, "filter", "min_short_edge")
        kept = counts["rows"].num_out
        files = (_file("filter", "drops.parquet", rows - kept), _file("filter", "rows.parquet", kept))
        rules = {"row": {"min_short_edge": {"judged": rows, "dropped": rows - kept}}}
        return Made(files, counts, {"boxes": {}, "region_texts": {}, "rules": rules})

    def _score(self, config: Any, part: Part) -> Made:
        rows = _rows(part)
        names = ["embeddings.parquet", "fingerprints.parquet", "scores.parquet"]
        names += ["variants.parquet"] * config.variants
        files = tuple(_file("score", name, rows) for name in names)
        summary = {"weights_sha256": "ab" * 32, "scored": rows, "missing": {"no_caption": 3}, "histograms": HISTOGRAM}
        return Made(files, {"rows": Count(rows, rows)}, summary)

    def _evidence(self, config: Any, part: Part) -> Made:
        rows = _rows(part)
        sizes = {name: int(part.spec[name]) for name in ("buckets", "ranges", "hashes")}
        buckets = [bucket_name(number) for number in range(sizes["buckets"])]
        if "owners" not in part.spec:  # the tables of links
            return Made(tuple(_segmented("evidence", VALUES, 1_000, buckets, part)), {"rows": Count(0, 0)}, sizes)
        self._note(part)
        shares = ["all"]
        if sizes["ranges"] > 1 and config.radius is not None:
            blocks = len(searches(config.radius, sizes["hashes"]))
            shares = [share_name(place, sizes["ranges"]) for place in range(blocks * sizes["ranges"])]
        files = _segmented("evidence", EVIDENCE_ROWS, rows, buckets, part)
        files += _segmented("evidence", VALUES, 2 * rows, buckets, part)
        if config.radius is not None:
            copies = len(shares) // sizes["ranges"] if len(shares) > 1 else 1
            files += _segmented("evidence", HASHES, rows * copies, shares, part)
        if config.embeddings:
            files += _segmented("evidence", VECTORS, rows, ["all"], part)
        return Made(tuple(files), {"rows": Count(rows, rows)}, sizes)

    def _near(self, config: Any, part: Part) -> Made:
        links = round(_rows(part) * rates.BUSY)
        summary = {"buckets": part.spec["buckets"], "metrics": {"links": links}}
        return Made((_file("near", NEAR_LINKS, links),), {"rows": Count(0, 0)}, summary)

    def _components(self, config: Any, part: Part) -> Made:
        buckets = [bucket_name(number) for number in range(part.spec["buckets"])]
        links = _rows(part)
        files = tuple(_segmented("components", LABELS, links, buckets, part))
        return Made(files, {"rows": Count(0, 0)}, {"buckets": part.spec["buckets"], "components": links})

    def _exact(self, config: Any, part: Part) -> Made:
        rows = sum(read.file.rows or 0 for read in part.reads if read.slot == "evidence")
        buckets = [bucket_name(number) for number in range(part.spec["buckets"])]
        busy = round(rows * rates.BUSY)
        files = (*_segmented("exact", HOMES, busy, buckets, part), _file("exact", BUSY, busy))
        summary = {"buckets": part.spec["buckets"], "metrics": {"busy_rows": busy}}
        return Made(files, {"rows": Count(rows, rows)}, summary)

    def _test_index(self, config: Any, part: Part) -> Made:
        rows = sum(read.file.rows or 0 for read in part.reads if read.file.path == "rows.parquet")
        names = (IDENTITIES, IDS, IMAGES, TEST_IDENTITIES)
        return Made(tuple(_file("test_index", name, rows) for name in names), {"rows": Count(rows, rows)})

    def _leaks(self, config: Any, part: Part) -> Made:
        self._note(part)
        rows = _rows(part)
        owners = [name for name, _, _ in part.spec["owners"]]
        file = _file("leaks", LEAKS, rows // 1000)
        return Made((file,), {"rows": Count(rows, rows)}, {"owners": owners, "metrics": {"leaks": rows // 1000}})

    def _decontaminate(self, config: Any, part: Part) -> Made:
        rows = sum(read.file.rows or 0 for read in part.reads if read.slot == "leaks")
        buckets = [bucket_name(number) for number in range(part.spec["buckets"])]
        owners = list(part.spec["owners"])
        files = _segmented("decontaminate", DECISIONS, rows, owners, part)
        files += _segmented("decontaminate", GONE, rows, buckets, part)
        files += [_file("decontaminate", LEAKS, rows), MadeFile(SUMMARY, 2_000)]
        return Made(tuple(files), {"rows": Count(rows, rows)}, {"contamination": {"leaks": rows}, "owners": owners})

    def _repeated(self, config: Any, part: Part) -> Made:
        rows = sum(read.file.rows or 0 for read in part.reads if read.slot == "rows")
        decided = round(rows * rates.DECIDED)
        groups = sorted({group for _, group, _ in part.spec["owners"]})
        files = _segmented("stars", DECISIONS, decided, groups, part)
        buckets = [bucket_name(number) for number in range(part.spec["buckets"])]
        files += _segmented("decontaminate", GONE, decided, buckets, part)
        return Made(tuple(files), {"rows": Count(rows, rows)}, {"repeated_captions": decided})

    def _stars(self, config: Any, part: Part) -> Made:
        rows = sum(read.file.rows or 0 for read in part.reads if read.slot == "rows")
        decided = round(rows * rates.DECIDED / rates.BUSY)
        files = [_file("stars", CLUSTERS, rows), *_segmented("stars", DECISIONS, decided, self._groups, part)]
        actions = {"actions": {"drop": decided}, "dropped_by_method": {"phash": decided}, "dropped_by_source": {}}
        return Made(tuple(files), {"rows": Count(rows, rows)}, {"clusters": rows // 3, **actions})

    def _deduplicate(self, config: Any, part: Part) -> Made:
        rows, owners = part.spec["rows"], part.spec["owners"]
        decided = round(rows * rates.DECIDED)
        files = tuple(_segmented("deduplicate", DECISIONS, decided, owners, part))
        summary = {"owners": owners, "dropped": {"duplicate": decided}, "keepers_with_additions": decided // 2}
        return Made(files, {"rows": Count(rows, rows)}, summary)

    def _partition(self, config: Any, part: Part) -> Made:
        rows = sum(read.file.rows or 0 for read in part.reads if read.slot == "rows")
        counts = _counts(rows, "partition", "duplicate")
        kept = counts["rows"].num_out
        shards = self._shards(config, part, kept)
        num_slices = min(config.num_shards, MAX_SLICES)
        slices = shards * num_slices // config.num_shards
        names = [f"slice-{number:03d}" for number in np.unique(slices).tolist()]
        places = np.unique(slices, return_inverse=True)[1].tolist()
        groups = [(numbered(shard), place) for shard, place in zip(shards.tolist(), places, strict=True)]
        files = (
            _file("partition", "drops.parquet", rows - kept),
            *_segmented("partition", SLICES, kept, names, part, groups),
        )
        summary = {"grains": {"images": kept, "captions": kept}, "added": {"captions": 0, "concepts": 0}}
        return Made(files, counts, summary)

    def _shards(self, config: Any, part: Part, kept: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The shards of a part's rows: of a range of keys those of the range, else any."""
        ranges = self._key_ranges.get(part.name.partition("-")[0])
        if ranges is not None:
            number = int(part.name.rpartition("-")[2])
            first, last = (at * config.num_shards // ranges for at in (number, number + 1))
            return np.arange(first, min(last + 1, config.num_shards))
        random = np.random.default_rng(sum(part.name.encode()))
        found: np.ndarray[Any, np.dtype[np.int64]] = np.unique(random.integers(0, config.num_shards, kept))
        return found

    def _pack(self, config: Any, part: Part) -> Made:
        rows = _rows(part)
        shard = shard_name(int(part.spec["shard"]), config)
        files = (
            _file("pack", "drops.parquet", 0),
            _file("pack", index_name(shard), rows, "index"),
            _file("pack", shard, rows, "shard"),
        )
        summary = {
            "grains": {"images": rows, "captions": rows},
            "sizes": {"words_per_caption": {str(words): rows // 20 for words in range(1, 21)}},
            "rows_by_texts": [["image", "laion", [[1, 0, 0, rows]]]],
        }
        return Made(files, {"rows": Count(rows, rows)}, summary)

    def _note(self, part: Part) -> None:
        if part.name not in self._groups:
            self._groups.append(part.name)


def _rows(part: Part) -> int:
    """Rows of the files in the first slot that a part reads."""
    slot = part.reads[0].slot if part.reads else ""
    paths = {part.reads[0].file.path.partition("#")[0]} if part.reads else set()
    return sum(
        read.file.rows or 0
        for read in part.reads
        if read.slot == slot and (read.file.path.partition("#")[0] in paths or slot == "rows")
    )


def _counts(rows: int, stage: str, reason: str = "other") -> dict[str, Count]:
    """Of rows and captions; what is dropped has one reason."""
    kept = round(rows * rates.KEPT[stage])
    dropped = rows - kept
    return {
        "rows": Count(rows, kept, {reason: dropped} if dropped else {}),
        "captions": Count(rows, kept, {"row_dropped": dropped} if dropped else {}),
        "concepts": Count(0, 0),
    }


def _file(stage: str, path: str, rows: int, kind: str = "", rows_of_file: bool = True) -> MadeFile:
    size = rates.size_of(stage, kind or path)
    return MadeFile(path, size.of(rows), rows if rows_of_file else None)


def _segmented(
    stage: str,
    path: str,
    rows: int,
    names: Iterable[str],
    part: Part,
    groups: Iterable[tuple[str, int]] = (),
) -> list[MadeFile]:
    """A file of equal segments, and its listing."""
    file = _file(stage, path, rows)
    named = list(names)
    data = listing(f"{stage} {part.name} {path}", named, file.size, rows, list(groups))
    return [file, MadeFile(segments_name(path), len(data), len(named), data)]
