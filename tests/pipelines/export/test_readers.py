"""The programs people use read exported shards as they are, every row exactly once, without a network."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipelines.export.export import export_shards
from pipelines.export.packed import packed_shards
from pipelines.flow.store.store import Store
from pipelines.s4_materialize import PackConfig
from tests.support.packed_store import packed_store, rows_of_every_format
from x2vlm.data import shards
from x2vlm.errors import ConfigError

IMAGES = rows_of_every_format(64, 0)
MIXED = rows_of_every_format(58, 6, without_caption=21)  # as many of each as the shipped sample has


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("stores")
    corpora = {"images": IMAGES, "mixed": MIXED}
    return {name: packed_store(folder / name, rows, num_shards=3) for name, rows in corpora.items()}


@pytest.fixture(scope="module")
def exports(stores: dict[str, Store], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(corpus, format) -> a folder."""
    folder = tmp_path_factory.mktemp("exports")
    found = {(name, kind): folder / name / kind for name in stores for kind in ("webdataset", "parquet")}
    for (name, kind), out in found.items():
        export_shards(stores[name], "toy", out, kind)
    return found


@pytest.fixture(params=["images", "mixed"])
def corpus(request: pytest.FixtureRequest) -> str:
    return str(request.param)


KEYS = {name: sorted(one.sample.key for one in rows) for name, rows in {"images": IMAGES, "mixed": MIXED}.items()}


def pattern(folder: Path) -> str:
    return f"{folder}/{{00000..00002}}.tar"


def run_offline(folder: Path, code: str) -> Any:
    """What `code` prints as JSON, in a process that must not ask any server; `folder` is where it runs."""
    environment = {
        **os.environ,
        **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
        "HF_HOME": str(folder.parent / "hf"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_open_clip_takes_every_image_with_its_caption(exports: dict[tuple[str, str], Path]) -> None:
    """open_clip's own pipeline: its filter, its decoding, its names; also the number of samples it finds."""
    from open_clip_train.data import filter_no_caption_or_no_image, get_dataset_size, get_wds_dataset

    folder = exports["images", "webdataset"]
    assert get_dataset_size(pattern(folder)) == (64, 3)
    samples = list(webdataset.WebDataset(pattern(folder), shardshuffle=False))
    assert [filter_no_caption_or_no_image(sample) for sample in samples] == [True] * 64
    options = argparse.Namespace(
        train_data=None, val_data=pattern(folder), val_num_samples=None, batch_size=16, workers=0, world_size=1
    )
    found = get_wds_dataset(
        options, lambda image: np.asarray(image).mean(), is_train=False, tokenizer=lambda text: [text]
    )
    pairs = [pair for means, texts in found.dataloader for pair in zip(np.asarray(means).tolist(), texts, strict=True)]
    expected = [
        (float(np.asarray(Image.open(BytesIO(one.payload)).convert("RGB")).mean()), one.sample.captions[0].text)
        for one in IMAGES
    ]
    assert sorted(pairs) == sorted(expected)


def test_open_clip_trains_on_every_image_and_passes_over_clips(exports: dict[tuple[str, str], Path]) -> None:
    from open_clip_train.data import filter_no_caption_or_no_image

    samples = list(webdataset.WebDataset(pattern(exports["mixed", "webdataset"]), shardshuffle=False))
    kinds = {one.sample.key: one.sample.kind for one in MIXED}
    for sample in samples:
        assert filter_no_caption_or_no_image(sample) == (kinds[sample["__key__"]] == "image")
    assert sorted(sample["__key__"] for sample in samples) == KEYS["mixed"]


READ_BY_DATASETS = """
import json, os, datasets
assert "site-packages" in datasets.__file__, datasets.__file__  # not the folder `datasets/` of this repository
found = {}
for how in ({"path": "webdataset", "data_files": "*.tar"}, {"path": os.getcwd()}):
    rows = datasets.load_dataset(**how, split="train")
    found[how["path"]] = [
        (json.loads(row["json"]["row"])["key"], row["txt"], row["jpg"] and row["jpg"].size) for row in rows
    ]
rows = datasets.load_dataset("parquet", data_files="../parquet/*.parquet", split="train")
found["parquet"] = [
    (row["key"], row["captions"][0]["text"] if row["captions"] else "", len(row["payload"])) for row in rows
]
print(json.dumps(list(found.values())))
"""


def test_hugging_face_datasets_reads_every_row_once(exports: dict[tuple[str, str], Path], corpus: str) -> None:
    """From bare tars, whose types it infers, from their folder, whose note names types, and from Parquet."""
    inferred, declared, parquet = run_offline(exports[corpus, "webdataset"], READ_BY_DATASETS)
    expected = []
    for one in IMAGES if corpus == "images" else MIXED:
        media, captions = one.sample.media, one.sample.captions
        assert media is not None
        size = [media.width, media.height] if one.sample.kind == "image" else None
        expected.append([one.sample.key, captions[0].text if captions else "", size, len(one.payload)])
    expected.sort()
    assert sorted(inferred) == sorted(declared) == [row[:3] for row in expected]
    assert sorted(parquet) == [[*row[:2], row[3]] for row in expected]


def parquet_readers(folder: Path) -> Iterator[tuple[str, list[str], list[bytes]]]:
    """Keys and payloads as each program gives them."""
    import duckdb
    import pandas
    import polars
    from pyarrow import dataset

    frame = pandas.read_parquet(folder)
    yield "pandas", frame["key"].tolist(), frame["payload"].tolist()
    table = dataset.dataset(folder).to_table()
    yield "pyarrow", table["key"].to_pylist(), table["payload"].to_pylist()
    rows = duckdb.sql(f"SELECT key, payload FROM '{folder}/*.parquet'").fetchall()
    yield "duckdb", [key for key, _ in rows], [payload for _, payload in rows]
    polar = polars.read_parquet(f"{folder}/*.parquet")
    yield "polars", polar["key"].to_list(), polar["payload"].to_list()


def test_parquet_programs_read_every_row_once(exports: dict[tuple[str, str], Path], corpus: str) -> None:
    payloads = {one.sample.key: one.payload for one in (IMAGES if corpus == "images" else MIXED)}
    seen = []
    for name, keys, found in parquet_readers(exports[corpus, "parquet"]):
        assert sorted(keys) == KEYS[corpus], name
        assert dict(zip(keys, found, strict=True)) == payloads, name
        seen.append(name)
    assert seen == ["pandas", "pyarrow", "duckdb", "polars"]


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_every_command_of_the_note_reads_every_row(exports: dict[tuple[str, str], Path], kind: str) -> None:
    folder = exports["mixed", kind]
    note = (folder / ("README.md" if kind == "webdataset" else "_README.md")).read_text()
    commands = dict(re.findall(r"^    (\S.*?)  +(\S.*)$", note.split("## Reading it")[1], re.MULTILINE))
    assert len(commands) == 5
    if kind == "webdataset":  # a training of open_clip: `test_open_clip_...` runs what it runs with these arguments
        arguments = commands.pop("open_clip").split()
        assert arguments[:3] == ["python", "-m", "open_clip_train.main"]
        code = f"import open_clip_train.params as p; print(len(vars(p.parse_args({arguments[3:]!r}))))"
        assert run_offline(folder, code) > 10
    modules = {command.partition("(")[0].rpartition(".")[0] for command in commands.values()}
    lines = [f"import json, os, {', '.join(sorted(modules))}", "found = {}"]
    lines += [f"found[{name!r}] = {command}" for name, command in commands.items()]
    lines.append(
        "print(json.dumps({name: rows.shape[0] if hasattr(rows, 'shape') else len(list(rows))"
        " for name, rows in found.items()}))"
    )
    expected = {name: 43 if name == "this project" else 64 for name in commands}  # ours leaves out what has no caption
    assert run_offline(folder, "\n".join(lines)) == expected


def test_our_own_function_gives_images_clips_texts_and_whole_rows(
    exports: dict[tuple[str, str], Path], stores: dict[str, Store]
) -> None:
    samples = {one.sample.key: one for one in MIXED}
    for source in (exports["mixed", "webdataset"], packed_shards(stores["mixed"], "toy")):
        found = list(shards.webdataset(source))
        assert sorted(item["__key__"] for item in found) == KEYS["mixed"]
        for item in found:
            sample = samples[item["__key__"]].sample
            assert sample.media is not None
            row = item["json"]["row"]
            assert [caption["text"] for caption in row["captions"]] == [caption.text for caption in sample.captions]
            assert len(row["concepts"]) == len(sample.concepts)
            assert row["media"]["format"] == item["json"]["format"] == sample.media.format
            if sample.kind == "image":
                assert item["jpg"].size == (sample.media.width, sample.media.height)
                assert item["jpg"].mode == "RGB"
            else:
                assert [seconds for seconds, _ in item["frames"]] == [0.0, 1.0]
                assert {frame.size for _, frame in item["frames"]} == {(64, 48)}
    captioned = list(shards.webdataset(exports["mixed", "webdataset"], captioned=True, decode=False))
    assert len(captioned) == 43
    assert all(item["txt"] for item in captioned)
    one = list(shards.webdataset([exports["mixed", "webdataset"] / "00001.tar"]))
    assert 0 < len(one) < 64


def test_our_own_function_says_what_it_cannot_read(
    exports: dict[tuple[str, str], Path], stores: dict[str, Store], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds Parquet shards.*--format webdataset"):
        shards.webdataset(exports["images", "parquet"])
    with pytest.raises(ConfigError, match="holds no shards"):
        shards.webdataset(tmp_path)
    parquet = packed_store(tmp_path / "parquet", IMAGES[:6], PackConfig(format="parquet"))
    with pytest.raises(ConfigError, match="the artifact holds Parquet shards"):
        shards.webdataset(packed_shards(parquet, "toy"))


def test_importing_the_package_of_shards_imports_no_torch() -> None:
    found = "[name for name in ('torch', 'webdataset') if name in sys.modules]"
    code = f"import sys, x2vlm.data.shards as shards; print({found}, shards.webdataset)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] <function")
