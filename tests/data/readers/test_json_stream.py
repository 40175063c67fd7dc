"""The JSON stream: the same values as `json.load`, wherever the chunks cut, in bounded memory, errors by byte."""

import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.readers.helpers import source
from tests.support.large_json import (
    write_captions,
    write_instances,
    write_regions,
    write_transcripts,
)
from x2vlm.data.readers import json_stream
from x2vlm.data.readers.json_stream import stream_dict, stream_list, stream_sections
from x2vlm.errors import SourceUnavailable

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


def streamed(path: Path, chunk_bytes: int) -> Any:
    """The file's value put together again from what the stream hands out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
        given_source = source(rows=path)
        if path.read_bytes().lstrip(b"\xef\xbb\xbf \n")[:1] == b"[":
            return list(stream_list(given_source, "rows", "remedy"))
        return dict(stream_dict(given_source, "rows", "remedy"))


@settings(max_examples=60, deadline=None)
@given(
    value=st.lists(JSON) | st.dictionaries(st.text(), JSON),
    indent=st.none() | st.just(2),
    ascii_only=st.booleans(),
    chunk_bytes=st.integers(1, 40),
)
def test_the_same_as_json_load_wherever_chunks_cut(
    folder: Path, value: Any, indent: int | None, ascii_only: bool, chunk_bytes: int
) -> None:
    path = folder / "value.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert streamed(path, chunk_bytes) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("chunk_bytes", range(1, 12))
def test_numbers_that_are_cut_stay_whole(tmp_path: Path, chunk_bytes: int) -> None:
    path = tmp_path / "n.json"
    path.write_bytes(b"\xef\xbb\xbf [12.5e3, -0.25,1E+2 , true,NaN, 123456789012345678901]\n ")
    values = streamed(path, chunk_bytes)
    assert values[:4] == [12500.0, -0.25, 100.0, True]
    assert values[4] != values[4]
    assert values[5] == 123456789012345678901


def test_sections_in_any_order_others_skipped(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"info": {"year": 1}, "b": [1, [2]], "big": [[0], {"c": 1}], "a": [], "c": 3, "b": [4]}')
    found = []
    for name, elements in stream_sections(source(rows=path), "rows", ("a", "b", "c"), "remedy"):
        found.append((name, None if elements is None else list(elements)))
    assert found == [("b", [1, [2]]), ("a", []), ("c", None), ("b", [4])]
    # A caller may leave elements behind.
    names = [name for name, _ in stream_sections(source(rows=path), "rows", ("b", "a"), "remedy")]
    assert names == ["b", "a", "b"]


OUTLINES = st.lists(st.lists(st.integers() | st.floats(allow_nan=False), max_size=6), max_size=3)
RECORDS = st.fixed_dictionaries(
    {"id": st.integers(), "text": st.text() | st.sampled_from(['"segmentation": [1', "segmentation", '\\": [[2]]'])},
    optional={
        "segmentation": OUTLINES | JSON,
        "after": JSON,
        "inner": st.fixed_dictionaries({"segmentation": OUTLINES}),
    },
)


def without_outlines(value: Any) -> Any:
    """The value with [] for every list of numbers, however deep, under the key that is not read."""
    if isinstance(value, list):
        return [without_outlines(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [] if key == "segmentation" and isinstance(item, list) and holds_numbers(item) else without_outlines(item)
        for key, item in value.items()
    }


def holds_numbers(value: list[Any]) -> bool:
    return all(holds_numbers(one) if isinstance(one, list) else type(one) in (int, float) for one in value)


@settings(max_examples=120, deadline=None)
@given(records=st.lists(RECORDS, max_size=5), indent=st.none() | st.just(1), chunk_bytes=st.integers(1, 200))
def test_outlines_that_nobody_reads_change_nothing_else(
    folder: Path, records: list[Any], indent: int | None, chunk_bytes: int
) -> None:
    path = folder / "outlines.json"
    path.write_text(json.dumps({"info": 1, "rows": records, "end": [1]}, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
        sections = stream_sections(source(rows=path), "rows", ("rows",), "remedy", unread="segmentation")
        [found] = [list(elements or ()) for _, elements in sections]
    assert without_outlines(found) == without_outlines(records)


def test_an_outline_s_numbers_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text('{"rows": [{"segmentation": [[1.5, 2], []], "id": 1}, {"segmentation": {"counts": [3]}, "id": 2}]}')
    [(_, elements)] = [
        (name, list(elements or ()))
        for name, elements in stream_sections(source(rows=path), "rows", ("rows",), "remedy", unread="segmentation")
    ]
    assert elements == [{"segmentation": [], "id": 1}, {"segmentation": {"counts": [3]}, "id": 2}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"rows": [{"segmentation": [[1, 2}, "id": 1}]}', "Expecting ',' delimiter at byte 33"),
        ('{"rows": [{"segmentation": [[1, 2]]], "id": 1}]}', "Expecting ',' delimiter at byte 35"),
        ('{"rows": [{"segmentation": [[1, 2]], "id" 1}]}', "Expecting ':' delimiter at byte 42"),
        ('{"rows": [{"segmentation": [[1, 2', "Expecting ',' delimiter at byte 33"),
    ],
)
def test_broken_records_with_outlines_say_at_which_byte(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    sections = stream_sections(source(rows=path), "rows", ("rows",), "remedy", unread="segmentation")
    with pytest.raises(SourceUnavailable) as error:
        deque(map(deque, (elements or () for _, elements in sections)))
    assert f"not valid JSON: {problem}. " in str(error.value)


def test_half_characters_become_replacement_characters(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(r'{"\ud83d": ["a\ud83d\ude00b", {"k": "x\uDE00"}], "plain": "\\ud83d"}')
    assert dict(stream_dict(source(rows=path), "rows", "remedy")) == {
        "\ufffd": ["a\U0001f600b", {"k": "x\ufffd"}],
        "plain": "\\ud83d",
    }


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected `[`, found the end of the file at byte 0"),
        (b"[1, 2", "expected `,` or `]`, found the end of the file at byte 5"),
        (b"[1, ", "expected a value, found the end of the file at byte 4"),
        (b"[1 2]", "expected `,` or `]`, found `2` at byte 3"),
        ('["é", "ü'.encode(), "Unterminated string starting at at byte 7"),
        (b'["a", tru', "Expecting value at byte 6"),
        (b'[{"a": 1}, {"a" 1}]', "Expecting ':' delimiter at byte 16"),
        (b'[1, "\xff"]', "not UTF-8 (invalid start byte) at byte 5"),
        (b'[1, "\xc3', "not UTF-8 (unexpected end of data) at byte 5"),
        (b"[1] [2]", "data after the end of the JSON value at byte 4"),
        (b"[1,]", "Expecting value at byte 3"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
def test_broken_files_say_at_which_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, problem: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "b.json"
    path.write_bytes(data)
    with pytest.raises(SourceUnavailable) as error:
        list(stream_list(source(rows=path), "rows", "remedy"))
    assert str(error.value) == (
        f"card test_card: rows file b.json: not valid JSON: {problem}. "
        "The file is probably truncated; download it again"
    )


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[" + b"9" * 5_000 + b"]"])
def test_values_that_python_refuses_are_no_crash(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(data)
    with pytest.raises(SourceUnavailable, match=r"rows file b.json: not valid JSON: .* at byte 1\."):
        list(stream_list(source(rows=path), "rows", "remedy"))


def test_a_record_without_end_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_stream, "MAX_RECORD_CHARS", 1 << 20)
    path = tmp_path / "b.json"
    path.write_bytes(b'[{"a": "' + b"x" * (3 << 20))
    with pytest.raises(SourceUnavailable, match="a single record of more than 1 million characters at byte 1"):
        list(stream_list(source(rows=path), "rows", "remedy"))


@pytest.mark.parametrize(
    ("stream", "text", "problem"),
    [
        (stream_list, "{}", "not a list of objects at the top level. Give another"),
        (stream_dict, "[]", "not a JSON object at the top level. Give another"),
    ],
)
def test_another_kind_of_file(tmp_path: Path, stream: Any, text: str, problem: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(SourceUnavailable) as error:
        list(stream(source(rows=path), "rows", "Give another"))
    assert str(error.value) == f"card test_card: rows file b.json: {problem}"


READ_ALL = r"""
import re, sys
from collections import Counter
from pathlib import Path
from x2vlm.data.readers import READERS, Source
from x2vlm.samples import Sample

seen, kept = Counter(), 0
files = dict(pair.split("=") for pair in sys.argv[2:])
source = Source(card="big", name="big", split="train", files={role: Path(path) for role, path in files.items()})
for item in READERS[sys.argv[1]](source, seen):
    kept += isinstance(item, Sample) and len(item.concepts) + len(item.captions)
# Not ru_maxrss: that of a child starts at the size of the process that forked it, here a pytest full of libraries.
peak_kib = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
print(kept, sum(seen.values()), peak_kib // 1024)
"""


def peak_mib(project_root: Path, reader: str, **files: Path) -> tuple[int, int, int]:
    """(concepts and captions kept, things seen, peak resident MiB) of a reader in a process of its own."""
    arguments = [f"{role}={path}" for role, path in files.items()]
    command = [sys.executable, "-c", READ_ALL, reader, *arguments]
    run = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=True)
    kept, seen, peak = map(int, run.stdout.split())
    return kept, seen, peak


@pytest.mark.slow
def test_coco_of_200_megabytes_needs_little_memory(project_root: Path, tmp_path: Path) -> None:
    number = write_instances(tmp_path / "i.json", 200_000_000)
    kept, seen, peak = peak_mib(project_root, "coco", instances=tmp_path / "i.json")
    assert (kept, seen) == (number, number + 5000)
    assert peak < 400


LARGE = {  # name -> reader, role, what writes its file
    "coco instances": ("coco", "instances", write_instances),
    "coco captions": ("coco", "captions", write_captions),
    "objects365": ("objects365", "instances", write_instances),
    "visual genome regions": ("visual_genome", "regions", write_regions),
    "howto100m captions": ("howto100m", "raw_captions", write_transcripts),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_files_of_2_gigabytes_need_little_memory(project_root: Path, tmp_path: Path, name: str) -> None:
    reader, role, write = LARGE[name]
    path = tmp_path / "large.json"
    number = write(path, 2_000_000_000)
    files = {role: path}
    if reader == "visual_genome":
        files["images"] = path.with_name("image_data.json")
    kept, seen, peak = peak_mib(project_root, reader, **files)
    path.unlink()  # pytest keeps the folders of its last three runs
    rows = {"visual_genome": number // 50, "howto100m": 0}.get(reader, 5000)
    assert (kept, seen) == (number, number + rows)
    assert peak < 400, f"{peak} MiB"
