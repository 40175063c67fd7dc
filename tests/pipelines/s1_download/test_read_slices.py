"""Reading in slices: the rows, keys, order and drops of reading a source whole, and what appended bytes leave alone."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.flow.stage import Part, PartSummary
from pipelines.s1_download.read import READ, ReadConfig, finish_read
from tests.support.flow_helpers import folder_bytes, read_rows, run_stage_part, upstream_input

WORDS = ["a dog", "naïve café", 'he said "no"', "line\nbreak", "日本語", "", 'un"closed', "tab\there", "x" * 90]
FILES = Mapping[str, Path]


def texts(count: int, seed: int = 0) -> list[str]:
    chosen = random.Random(seed)
    return [f"{chosen.choice(WORDS)} {number}" for number in range(count)]


def pairs_tsv(path: Path, first: int, count: int) -> None:
    """Lines as web TSVs have them: bad columns, bad bytes, blank lines, an overlong caption."""
    lines = []
    for number, text in enumerate(texts(first + count)[first:], start=first):
        line = f"{text}\thttp://x/{number}.jpg".replace("\n", " ").encode()
        lines.append(b"\xff" + line if number % 13 == 5 else b"" if number % 17 == 3 else line)
    with path.open("ab") as file:
        file.write(b"".join(line + (b"\r\n" if at % 5 == 0 else b"\n") for at, line in enumerate(lines)))


def swapped_tsv(path: Path, first: int, count: int) -> None:
    with path.open("a", encoding="utf-8") as file:
        for number in range(first, first + count):
            file.write(f"http://x/{number % 90}.jpg\tcaption {number}\n")


def webvid_csv(path: Path, first: int, count: int) -> None:
    """Quotes with line ends inside, stray quotes, repeated and missing ids; quoted by an official CSV writer or not."""
    text = io.StringIO()
    if not first:
        text.write("videoid,contentUrl,name\r\n")
    writer = csv.writer(text)
    for number, words in enumerate(texts(first + count)[first:], start=first):
        video = "" if number % 19 == 4 else str(number % 110)
        if number % 11 == 7:
            text.write(f'{video},http://x/{number}.mp4,"never closed {number}\r\n')
        else:
            writer.writerow([video, f"http://x/{number}.mp4", words])
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())


def table_jsonl(path: Path, first: int, count: int) -> None:
    with path.open("a", encoding="utf-8") as file:
        for number, words in enumerate(texts(first + count)[first:], start=first):
            record = json.dumps({"url": f"http://x/{number}.jpg", "caption": words, "name": f"id {number % 120}"})
            file.write("{broken\n" if number % 23 == 9 else f"{record}\n\n" if number % 7 == 2 else f"{record}\n")


def laion_parquet(path: Path, first: int, count: int) -> None:
    """Row groups of 16 rows; appending rewrites the file, as nobody can append to Parquet."""
    numbers = range(first + count)
    rows = {"URL": [f"http://x/{n}.jpg" if n % 9 else None for n in numbers], "TEXT": texts(first + count)}
    pq.write_table(pa.table(rows), path, row_group_size=16)


Write = Callable[[Path, int, int], None]
CASES: dict[str, tuple[dict[str, Any], str, Write]] = {
    "cc3m": ({"reader": "cc3m"}, "rows.tsv", pairs_tsv),
    "webvid": ({"reader": "webvid"}, "rows.csv", webvid_csv),
    "laion": ({"reader": "laion"}, "rows.parquet", laion_parquet),
    "jsonl": ({"reader": "table"}, "rows.jsonl", table_jsonl),
    "jsonl with ids": ({"reader": "table", "columns": {"id": ("name",)}}, "rows.jsonl", table_jsonl),
    "csv": ({"reader": "table", "columns": {"caption": ("name",)}}, "rows.csv", webvid_csv),
    "csv with ids": (
        {"reader": "table", "columns": {"id": ("videoid",), "caption": ("name",), "url": ("contentUrl",)}},
        "rows.csv",
        webvid_csv,
    ),
    "tsv without header": ({"reader": "table", "columns": {"caption": (0,), "url": (1,)}}, "rows.tsv", pairs_tsv),
}


def config_of(options: Mapping[str, Any], files: FILES, bytes_per_part: int) -> ReadConfig:
    names = {role: path.name for role, path in files.items()}
    return ReadConfig(
        source="toy",
        card="toy",
        files=names,
        rows_per_file=40,
        bytes_per_part=bytes_per_part,
        expected_rows=7,
        **options,
    )


def parts_of(config: ReadConfig, files: FILES) -> list[Part]:
    return list(READ.plan_parts(config, {"card": (), "files": tuple(upstream_input(one) for one in files.values())}))


def read_all(config: ReadConfig, files: FILES, out: Path, backwards: bool = False) -> tuple[dict[str, list[Any]], Any]:
    """Everything that all parts write, in the order of the parts' names, and the summary of the node."""
    results = {}
    for part in parts_of(config, files)[:: -1 if backwards else 1]:
        results[part.name] = run_stage_part(READ, config, part, out / part.name)
    folders = [out / name for name in sorted(results)]
    tables = {
        kind: [row for folder in folders for row in read_rows(folder, pattern)]
        for kind, pattern in (("rows", "rows-*.parquet"), ("drops", "drops.parquet"))
    }
    summaries = [PartSummary(name, result.counts, result.summary) for name, result in sorted(results.items())]
    return tables, finish_read(config, summaries)


@pytest.mark.parametrize("name", CASES)
def test_slices_together_have_what_the_whole_source_has(tmp_path: Path, name: str) -> None:
    options, file_name, write = CASES[name]
    path = tmp_path / file_name
    write(path, 0, 120)
    files = {"rows": path}
    whole = read_all(config_of(options, files, 1 << 20), files, tmp_path / "whole")
    assert [folder.name for folder in (tmp_path / "whole").iterdir()] == ["all"]
    sliced = read_all(config_of(options, files, 700), files, tmp_path / "sliced")
    assert len(list((tmp_path / "sliced").iterdir())) > 3
    assert sliced == whole
    assert whole[0]["rows"]
    assert whole[0]["drops"]
    if name != "csv with ids":
        return
    read_all(config_of(options, files, 700), files, tmp_path / "backwards", backwards=True)
    assert folder_bytes(tmp_path / "backwards") == folder_bytes(tmp_path / "sliced")


@pytest.mark.parametrize("name", CASES)
def test_no_bound_of_a_slice_loses_or_repeats_a_row(tmp_path: Path, name: str) -> None:
    options, file_name, write = CASES[name]
    path = tmp_path / file_name
    write(path, 0, 20)
    files = {"rows": path}
    whole = read_all(config_of(options, files, 1 << 20), files, tmp_path / "whole")
    assert read_all(config_of(options, files, 65), files, tmp_path / "sliced") == whole


@pytest.mark.parametrize("name", [name for name in CASES if name != "laion"])
def test_appended_rows_leave_the_bytes_of_earlier_slices_alone(tmp_path: Path, name: str) -> None:
    options, file_name, write = CASES[name]
    path = tmp_path / file_name
    files = {"rows": path}
    write(path, 0, 80)
    read_all(config_of(options, files, 700), files, tmp_path / "before")
    last = max(folder.name for folder in (tmp_path / "before").iterdir())
    write(path, 80, 40)
    read_all(config_of(options, files, 700), files, tmp_path / "after")
    kept = [one for one in folder_bytes(tmp_path / "before") if not one[0].startswith(last)]
    assert len(kept) > 3
    assert set(kept) <= set(folder_bytes(tmp_path / "after"))


def test_each_file_is_parts_of_its_own_and_depends_on_no_other(tmp_path: Path) -> None:
    files = {}
    for role in ("rows-b", "rows-a", "rows"):
        files[role] = tmp_path / f"{role}.parquet"
        laion_parquet(files[role], 0, 60)
    config = config_of({"reader": "laion"}, files, 2500)
    parts = parts_of(config, files)
    assert {len(part.reads) for part in parts} == {1}
    assert [part.reads[0].file.path for part in parts] == sorted(
        (part.reads[0].file.path for part in parts), key=["rows.parquet", "rows-a.parquet", "rows-b.parquet"].index
    )
    whole = read_all(config_of({"reader": "laion"}, files, 1 << 20), files, tmp_path / "whole")
    assert read_all(config, files, tmp_path / "sliced") == whole
    assert whole[0]["rows"][-1]["source_row"] == "b:59"


def test_ids_are_unique_over_all_files_of_a_table(tmp_path: Path) -> None:
    files = {"rows-a": tmp_path / "a.jsonl", "rows-b": tmp_path / "b.jsonl"}
    for path in files.values():
        table_jsonl(path, 0, 150)
    options = CASES["jsonl with ids"][0]
    whole = read_all(config_of(options, files, 1 << 20), files, tmp_path / "whole")
    assert read_all(config_of(options, files, 2500), files, tmp_path / "sliced") == whole
    assert {row["source_row"] for row in whole[0]["rows"]} >= {"id 3"}


def test_published_hashes_are_found_for_every_slice(tmp_path: Path) -> None:
    files = {"rows": tmp_path / "rows.tsv", "hashes": tmp_path / "hashes.tsv"}
    swapped_tsv(files["rows"], 0, 200)
    files["hashes"].write_text("".join(f"http://x/{n}.jpg\t{n:064x}\t\n" for n in range(0, 90, 2)))
    whole = read_all(config_of({"reader": "cc12m"}, files, 1 << 20), files, tmp_path / "whole")
    assert read_all(config_of({"reader": "cc12m"}, files, 800), files, tmp_path / "sliced") == whole
    assert whole[1]["published_hashes"] > 90


@pytest.mark.parametrize("name", ["rows.tsv.gz", "rows.tsv"])
def test_a_packed_file_is_one_slice_whatever_its_name(tmp_path: Path, name: str) -> None:

    plain, path = tmp_path / "plain.tsv", tmp_path / name
    pairs_tsv(plain, 0, 60)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    options = CASES["cc3m"][0]
    whole = read_all(config_of(options, {"rows": plain}, 1 << 20), {"rows": plain}, tmp_path / "whole")
    assert read_all(config_of(options, {"rows": path}, 500), {"rows": path}, tmp_path / "sliced") == whole


def test_a_source_that_joins_files_is_one_part(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "pad": "x" * 1000}))
    config = config_of({"reader": "coco"}, {"captions": path}, 64)
    assert [part.name for part in parts_of(config, {"captions": path})] == ["all"]
