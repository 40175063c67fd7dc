"""Published hashes against what a server sends: at scale on a procedural world, and rule by rule."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import WorldConfig
from pipelines.s1_download.child.protocol import Item, Result
from pipelines.s1_download.child.verify import body_hashes, hash_check, judge
from pipelines.s1_download.download import DOWNLOAD, DownloadConfig
from pipelines.s1_download.media.placeholders import read_placeholders
from pipelines.s1_download.read import READ, read_config
from tests.support.flow_helpers import artifact_input, run_stage_part, upstream_input
from x2vlm.data.cards import file_paths, load_card
from x2vlm.errors import ConfigError
from x2vlm.samples import Media, Sample, sample_table, samples_of, write_table

SOURCES = ("cc12m", "laion_multi", "openimages", "cc3m")
Download = tuple[list[dict[str, Any]], list[Sample], Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 scenes of three sources that publish hashes and of one that does not; a tenth of all images is swapped."""
    out = tmp_path_factory.mktemp("world") / "world"
    build_world(WorldConfig(seed=11, scenes=240, sources=SOURCES, image_size=96), out)
    media = sorted((out / "media" / "images").glob("*.jpg"))
    for path in media[::10]:
        path.write_bytes(path.read_bytes() + b"swapped")  # still an image: decoders ignore what follows its end
    return out


@pytest.fixture(scope="module")
def samples(world: Path, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """All rows of the world, as the read stage writes them."""
    folder, found = tmp_path_factory.mktemp("read"), []
    for name in SOURCES:
        card = load_card(world / "cards" / f"{name}.yaml")
        config = read_config(card)
        files = tuple(upstream_input(Path(file), name) for file in file_paths(card, project_root).values())
        inputs = {"card": (upstream_input(world / "cards" / f"{name}.yaml", name),), "files": files}
        result = run_stage_part(READ, config, READ.plan_parts(config, inputs)[0], folder / name)
        rows = samples_of(pq.read_table(folder / name / "rows-00000.parquet"))
        assert result.summary.get("published_hashes", 0) == sum(bool(row.published_hash) for row in rows)
        found += rows
    return found


def download(folder: Path, world: Path, samples: list[Sample], **values: Any) -> Download:
    rows = folder / "rows"
    rows.mkdir(parents=True)
    write_table(sample_table(samples), rows / "rows-00000.parquet")
    base = {"from": "http://world.invalid", "serve": str(world / "media")}
    config = DownloadConfig.model_validate({"url_base": base, **values})
    (part,) = DOWNLOAD.plan_parts(config, {"rows": (artifact_input("read/test", {"all": rows}),)})
    result = run_stage_part(DOWNLOAD, config, part, folder / "out")
    kept = samples_of(pq.read_table(folder / "out" / "rows.parquet"))
    return pq.read_table(folder / "out" / "ledger.parquet").to_pylist(), kept, result


@pytest.fixture(scope="module")
def kept_all(world: Path, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Download:
    return download(tmp_path_factory.mktemp("keep"), world, samples)


def oracle(world: Path, sample: Sample) -> str:
    """The check by hand: the published hash against the file that the server has."""
    path = world / "media" / sample.url.removeprefix("http://world.invalid/")
    if not sample.published_hash:
        return "unpublished"
    if not path.is_file():
        return ""
    algorithm, _, digest = sample.published_hash.partition(":")
    return "match" if hashlib.new(algorithm, path.read_bytes()).hexdigest() == digest else "mismatch"


def test_every_row_is_checked_as_by_hand(world: Path, samples: list[Sample], kept_all: Download) -> None:
    ledger, _, result = kept_all
    expected = [oracle(world, sample) for sample in samples]
    assert [row["hash_check"] for row in ledger] == expected
    counts = Counter(expected)
    assert min(counts["match"], 10 * counts["mismatch"]) > 100
    assert counts["unpublished"] > 40
    summary = {"nothing_came" if name == "" else name: number for name, number in counts.items()}
    assert result.summary["hash_checks"] == summary
    for source, algorithm in (("cc12m", "sha256"), ("laion_multi", "md5"), ("openimages", "md5"), ("cc3m", "")):
        hashes = {row.published_hash.partition(":")[0] for row in samples if row.source == source}
        assert hashes - {""} == ({algorithm} if algorithm else set())


def test_by_default_a_mismatch_is_reported_and_nothing_goes(kept_all: Download) -> None:
    ledger, kept, result = kept_all
    assert {row["status"] for row in ledger if row["hash_check"] == "mismatch"} == {"kept"}
    assert result.counts["rows"].num_out == len(kept) == sum(row["status"] == "kept" for row in ledger)


def test_mismatches_and_placeholders_are_dropped_on_request_and_so_are_their_bytes(
    tmp_path: Path, world: Path, samples: list[Sample], kept_all: Download
) -> None:
    rows = dict(zip(samples, kept_all[0], strict=True))
    some = [sample for sample, row in rows.items() if row["hash_check"] == "mismatch"][:8]
    some += [sample for sample in samples if sample not in some][:40]
    stands_for_none = next(row["sha256"] for row in rows.values() if row["hash_check"] == "match")
    listed = tmp_path / "placeholders.txt"
    listed.write_text(f"# gone\n{stands_for_none.upper()}  # seen in a test\n")
    ledger, _, result = download(tmp_path / "run", world, some, hash_mismatch="drop", placeholders=str(listed))
    dropped = {row["url"]: row["status"] for row in ledger if row["status"] in ("hash_mismatch", "placeholder")}
    expected = {sample.url: "hash_mismatch" for sample in some if oracle(world, sample) == "mismatch"}
    expected |= {sample.url: "placeholder" for sample in some if rows[sample]["sha256"] == stands_for_none}
    assert dropped == expected
    assert set(Counter(dropped.values())) == {"hash_mismatch", "placeholder"}
    counts = Counter(row["status"] for row in ledger)
    assert result.counts["rows"].dropped["hash_mismatch"] == counts["hash_mismatch"] >= 8
    assert all(row["published_hash"] in row["reason"] for row in ledger if row["status"] == "hash_mismatch")
    stored = set(pq.read_table(tmp_path / "run" / "out" / "media.parquet")["sha256"].to_pylist())
    assert stored == {row["sha256"] for row in ledger if row["status"] == "kept"}
    assert {row["hash_check"] for row in ledger if row["status"] == "kept"} <= {"match", "unpublished"}


def test_another_list_of_placeholders_makes_other_parts(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write_table(sample_table([]), rows / "rows-00000.parquet")
    inputs = {"rows": (artifact_input("read/test", {"all": rows}),)}
    listed = tmp_path / "list"
    listed.write_text("ab" * 32)
    config = DownloadConfig(placeholders=str(listed))
    (planned,) = DOWNLOAD.plan_parts(config, inputs)
    listed.write_text("cd" * 32)
    (other,) = DOWNLOAD.plan_parts(config, inputs)
    assert planned.spec != other.spec
    with pytest.raises(ConfigError, match="planned"):
        run_stage_part(DOWNLOAD, config, planned, tmp_path / "out")


def test_a_list_of_placeholders_says_which_line_is_wrong(tmp_path: Path, project_root: Path) -> None:
    path = tmp_path / "list"
    path.write_text("# fine\n\nabc\n")
    with pytest.raises(ConfigError, match="line 3: 'abc' is no sha256"):
        read_placeholders(path)
    assert read_placeholders(project_root / "datasets" / "placeholders.txt")[0] == frozenset()


MEDIA = Media("image", hashlib.sha256(b"x").hexdigest(), 1, 1, 1, "jpeg")


def test_hashes_are_of_the_bytes_as_fetched_and_only_of_what_is_asked() -> None:
    md5, sha256 = hashlib.md5(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest()
    assert body_hashes(Item(0, "image", "u"), b"x", MEDIA) == {"sha256": sha256}
    assert body_hashes(Item(0, "image", "u", hashes=("md5",)), b"x", None) == {"md5": md5, "sha256": sha256}
    assert body_hashes(Item(0, "video", "u"), b"x", None) == {}
    clip = replace(MEDIA, kind="video", sha256="of a clip")
    assert body_hashes(Item(0, "video", "u", 1.0, 2.0, ("sha256",)), b"x", clip) == {"sha256": sha256}


def test_a_page_in_place_of_an_image_is_a_mismatch_and_keeps_its_own_rule() -> None:
    page = Result(0, "not_an_image", bytes=9, hashes={"md5": "00" * 16})
    assert hash_check("md5:" + "11" * 16, page) == "mismatch"
    sample = Sample("k", "s", "r", "train", "image", "u", published_hash="md5:" + "11" * 16)
    assert judge(sample, page, "drop", ()) == page
