"""A world is the same however it is made, is never made twice, and never mixed with another."""

import hashlib
import json
from pathlib import Path

import pytest

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.chunks import make_chunk
from pipelines.corpora.world.command import make_world
from pipelines.corpora.world.config import EVALUATION, SOURCES, WorldConfig, source_of
from tests.support.corpora.world import World
from x2vlm.data.cards import file_paths, load_card
from x2vlm.errors import ConfigError

FORTY = WorldConfig(scenes=40, media="none")
CONTENT_OF_FORTY = "70292d8578f70de7157ad8c78df7afd3be3e02854d18b1cfbe269d306122d63b"
CONTENT_OF_TWENTY_THOUSAND = "c4e586ed46bafaf6a8d0aa2345c10a40e0c27e387e926ff12e5e6734178364c9"
"""What 40 and 20,000 scenes without media say. A change is one of every world: the shapes, the texts or the draws."""


def tree(out: Path) -> dict[str, str]:
    """Checksums of all files that do not name the folder they lie in."""
    files = (path for path in out.rglob("*") if path.is_file() and "cards" not in path.parts)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_forty_scenes_say_what_they_said_on_the_first_machine(tmp_path: Path) -> None:
    assert build_world(FORTY, tmp_path / "world").content_sha256 == CONTENT_OF_FORTY


def test_workers_and_chunks_change_no_byte(tmp_path: Path) -> None:
    config = WorldConfig(scenes=40, seed=9)
    expected = tree_of(config, tmp_path / "one", workers=1, chunk_scenes=1000)
    assert tree_of(config, tmp_path / "two", workers=2, chunk_scenes=7) == expected
    assert tree_of(config, tmp_path / "halves", workers=1, chunk_scenes=20) == expected
    assert any(path.endswith(".mp4") for path in expected)


def tree_of(config: WorldConfig, out: Path, workers: int, chunk_scenes: int) -> dict[str, str]:
    build_world(config, out, workers, chunk_scenes)
    return {path: digest for path, digest in tree(out).items() if path != "world.json"}


def test_more_scenes_to_learn_tasks_from_change_nothing_that_is_measured(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    build_world(FORTY, few)
    build_world(FORTY.model_copy(update={"finetuning_scenes": 60}), many)
    measured = ("vqa/v2_mscoco_val2014_annotations.json", "nlvr2/dev.json", "coco_karpathy/dataset_coco.json")
    for name in (*measured, "../truth.parquet"):
        assert (few / "evaluation" / name).read_bytes() == (many / "evaluation" / name).read_bytes()
    questions = [
        json.loads((out / "evaluation/vqa/v2_mscoco_train2014_annotations.json").read_text())["annotations"]
        for out in (few, many)
    ]
    assert len(questions[1]) > 5 * len(questions[0]) > 0
    with pytest.raises(ConfigError, match="finetuning_scenes 60 there, None asked for"):
        build_world(FORTY, many)


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    other = FORTY.model_copy(update={"seed": 2})
    assert build_world(other, tmp_path / "world").content_sha256 != CONTENT_OF_FORTY


def test_a_finished_world_is_left_alone_and_a_broken_off_one_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "world"
    make_chunk(FORTY, 0, 25, out, out / ".chunks" / "000000000-000000025")
    (out / ".chunks" / "000000025-000000040.draft").mkdir()
    assert build_world(FORTY, out, chunk_scenes=25).scenes_made == 15
    before = tree(out)
    again = build_world(FORTY, out)
    assert (again.scenes_made, again.content_sha256) == (0, CONTENT_OF_FORTY)
    assert tree(out) == before
    with pytest.raises(ConfigError, match=r"holds another world.*scenes 40 there, 41 asked for"):
        build_world(FORTY.model_copy(update={"scenes": 41}), out)


def test_chunks_of_another_world_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "world"
    build_world(FORTY, out)
    (out / "world.json").unlink()
    (out / ".chunks").mkdir()
    (out / ".chunks" / "config.json").write_text(json.dumps(FORTY.model_dump(mode="json") | {"seed": 2}))
    with pytest.raises(ConfigError, match=r"holds another world.*seed 2 there, 1 asked for"):
        build_world(FORTY, out)


def test_world_json_names_every_file_with_its_checksum(noisy_world: World) -> None:
    world = json.loads((noisy_world.out / "world.json").read_text())
    named = {file["path"]: file["sha256"] for file in world["files"]}
    there = {
        str(path.relative_to(noisy_world.out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in noisy_world.out.rglob("*")
        if path.is_file() and path.name != "world.json"
    }
    assert named == there
    assert world["config"]["scenes"] == noisy_world.config.scenes


def test_every_source_gets_scenes_early_and_a_tenth_is_held_out() -> None:
    config = WorldConfig(scenes=1000)
    first = [source_of(config, index) for index in range(50)]
    assert set(first) == {*SOURCES, EVALUATION} - {"refcoco", "gqa"}
    assert sum(source_of(config, index) == EVALUATION for index in range(1000)) == 100


def test_a_world_of_some_sources_has_no_other(tmp_path: Path) -> None:
    config = WorldConfig(scenes=30, media="none", sources=("laion_en", "webvid"))
    built = build_world(config, tmp_path / "world")
    assert set(built.counts) == {"laion_en", "webvid", EVALUATION}
    assert {path.name for path in (tmp_path / "world" / "annotations").iterdir()} == {"laion_en", "webvid"}


def test_cards_point_below_the_project_where_they_can(tmp_path: Path) -> None:
    config = WorldConfig(scenes=12, media="none", sources=("laion", "cc3m"))
    build_world(config, tmp_path / "project" / "runs" / "w", project_root=tmp_path / "project")
    build_world(config, tmp_path / "elsewhere", project_root=tmp_path / "project")
    inside = load_card(tmp_path / "project" / "runs" / "w" / "cards" / "cc3m.yaml")
    outside = load_card(tmp_path / "elsewhere" / "cards" / "laion_en.yaml")
    assert (inside.root, inside.url_base and inside.url_base.serve) == ("runs/w", "runs/w/media")
    assert (outside.root, outside.reader) == (str(tmp_path / "elsewhere"), "laion")
    for card in (inside, outside):
        assert all(Path(path).is_file() for path in file_paths(card, tmp_path / "project").values())


def test_the_command_reports_and_says_what_is_wrong(tmp_path: Path) -> None:
    out = str(tmp_path / "world")
    text, code = make_world("doc", ["--out", out, "--scenes", "12", "--media", "none", "--workers", "1", "--json"])
    report = json.loads(text)
    assert (code, report["exit_code"], report["scenes_made"]) == (0, 0, 12)
    text, code = make_world("doc", ["--out", out, "--sources", "coco,lion"])
    assert code == 3
    assert "no source lion" in text
    text, code = make_world("doc", ["--out", out, "--sources", "refcoco"])
    assert code == 3
    assert "refcoco needs coco" in text


@pytest.mark.slow
def test_twenty_thousand_scenes_of_annotations_say_what_they_said_on_the_first_machine(tmp_path: Path) -> None:
    config = WorldConfig(scenes=20_000, media="none")
    built = build_world(config, tmp_path / "world", workers=2)
    assert built.scenes_made == 20_000
    assert built.content_sha256 == CONTENT_OF_TWENTY_THOUSAND
    assert sum(counts["row"] for source, counts in built.counts.items() if source not in ("refcoco", "gqa")) > 20_000


@pytest.mark.slow
def test_workers_change_no_byte_of_two_thousand_scenes_with_media(tmp_path: Path) -> None:
    config = WorldConfig(scenes=2_000)
    one = tree_of(config, tmp_path / "one", workers=1, chunk_scenes=250)
    assert tree_of(config, tmp_path / "two", workers=2, chunk_scenes=250) == one
