"""The task_data stage: splits in parts, media by their sha256, and what is told before anything is trained."""

import hashlib
import json
from pathlib import Path

import pytest

from pipelines.evaluation_nodes import data_node
from pipelines.evaluations import EvaluationConfig
from pipelines.flow.stage import Runtime
from pipelines.s6_evaluate.task_data import TASK_DATA, TaskDataConfig, facts_of
from tests.support.parts import Run, as_source, run_stage
from tests.support.stages.task_files import NUMBERS, write_labels
from tests.support.training.finetuning import toy_image
from x2vlm.data.cards import CardFile
from x2vlm.data.shards.packs import MediaPack
from x2vlm.data.task_cards import load_task_card
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.tasks.training.splits import load_split

SPLITS = {"train": "train_val_vg", "test": "test_dev"}


def node_of(folder: Path, **data: object):
    files = {split: str(folder / f"{split}.csv") for split in ("val", "test") if (folder / f"{split}.csv").is_file()}
    values = {"reader": "own_labels", "files": files, "media_root": str(folder), **data}
    split = "test" if "test" in files else "val"
    evaluation = EvaluationConfig.model_validate({"task": "classification", "data": values, "split": split})
    return data_node("toy", evaluation, Runtime())


def run(folder: Path, **data: object) -> Run:
    node = node_of(folder, **data)
    inputs = {"files": tuple(as_source(Path(source.uri)) for source in node.inputs["files"])}
    return run_stage(TASK_DATA, node.config, inputs, folder / "out")


def splits_of(run: Run) -> dict[str, list]:
    """Examples by split, in the order of the parts."""
    found: dict[str, list] = {}
    for part in run.artifact.parts:
        folder = run.folder / part.name
        split = load_split([folder / "examples.parquet"], (folder / "labels.json").read_text())
        found.setdefault(part.name.rpartition("-")[0], []).extend(split.examples)
    return found


def test_parts_together_are_the_split_with_media_by_sha256(tmp_path):
    write_labels(tmp_path, {"test": range(200, 209)})
    done = run(tmp_path, parts={"test": 4})
    assert [part.name for part in done.artifact.parts] == [f"test-{number:05d}" for number in range(4)]
    examples = splits_of(done)["test"]
    assert [example.example_id for example in examples] == [str(number) for number in range(9)]
    for part in done.artifact.parts:
        pack = MediaPack(done.folder / part.name / "media.tar", done.folder / part.name / "media.parquet")
        own = load_split(
            [done.folder / part.name / "examples.parquet"], (done.folder / part.name / "labels.json").read_text()
        )
        assert {sha256 for example in own.examples for sha256 in example.media} == set(pack)
        for example in own.examples:
            (sha256,) = example.media
            data = toy_image(200 + int(example.example_id))[1]
            assert (pack.read(sha256), sha256) == (data, hashlib.sha256(data).hexdigest())
    assert done.summary["splits"]["test"] == {"num_examples": 9, "num_labels": 4, "dropped": {}}


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path):
    for name in ("here", "there"):
        write_labels(tmp_path / name, {"test": NUMBERS["test"]})
    assert run(tmp_path / "here").bytes_of() == run(tmp_path / "there").bytes_of()


def test_missing_images_are_told_with_the_first_and_the_remedy(tmp_path):
    write_labels(tmp_path, {"test": NUMBERS["test"]})
    for number in (200, 203):
        (tmp_path / "photos" / f"{number}.jpg").unlink()
    with pytest.raises(
        SourceUnavailable,
        match=r"2 of 8 media .* so 2 of 8 examples .*photos/200\.jpg, photos/203\.jpg\. .*media_root",
    ):
        run(tmp_path)


def test_a_share_that_may_be_missing_is_dropped_and_counted(tmp_path):
    write_labels(tmp_path, {"test": NUMBERS["test"]})
    (tmp_path / "photos" / "200.jpg").unlink()
    (tmp_path / "photos" / "203.jpg").write_bytes(toy_image(203)[1][:400])
    done = run(tmp_path, max_missing=0.25)
    counts = done.counts()
    assert (counts.num_in, counts.num_out) == (8, 6)
    assert counts.dropped["missing_media"] == 1
    assert sum(counts.dropped.values()) == 2
    assert [example.example_id for example in splits_of(done)["test"]] == ["1", "2", "4", "5", "6", "7"]


def test_images_that_cannot_be_decoded_are_an_error_before_anything_is_trained(tmp_path):
    write_labels(tmp_path, {"test": NUMBERS["test"]})
    (tmp_path / "photos" / "203.jpg").write_bytes(b"no image")
    with pytest.raises(
        SourceUnavailable, match=r"1 media files below .* cannot be decoded.*photos/203\.jpg: not_media"
    ):
        run(tmp_path)


@pytest.mark.parametrize("name", ["../photos/200.jpg", "/etc/hostname", "photos/../../x"])
def test_no_name_leads_out_of_the_folder_of_media(tmp_path, name):
    folder = tmp_path / "data"
    write_labels(folder, {"test": NUMBERS["test"]})
    table = folder / "test.csv"
    table.write_text(table.read_text().replace("photos/201.jpg", name))
    done = run(folder, max_missing=0.5)
    assert "1" not in {example.example_id for example in splits_of(done)["test"]}
    assert done.counts().num_out == 7


def test_a_folder_of_media_that_is_not_there_is_told(tmp_path):
    write_labels(tmp_path, {"test": NUMBERS["test"]})
    with pytest.raises(ConfigError, match=r"media_root .*nowhere is no folder"):
        run(tmp_path, media_root=str(tmp_path / "nowhere"))


def test_media_come_from_any_file_system(tmp_path):
    import fsspec

    write_labels(tmp_path, {"test": NUMBERS["test"]})
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "photos").iterdir():
        memory.pipe_file(f"/task-media/photos/{path.name}", path.read_bytes())
    there = run(tmp_path, media_root="memory://task-media")
    (tmp_path / "out").rename(tmp_path / "remote")
    here = run(tmp_path)
    assert here.bytes_of().keys() == there.bytes_of().keys()
    for name, data in here.bytes_of().items():
        assert (tmp_path / "remote" / name).read_bytes() == data
    memory.rm("/task-media/photos/200.jpg")
    (tmp_path / "out").rename(tmp_path / "local")
    with pytest.raises(SourceUnavailable, match=r"photos/200\.jpg"):
        run(tmp_path, media_root="memory://task-media")


def test_facts_leave_out_what_changes_no_example(project_root):
    card = load_task_card(project_root / "datasets" / "downstream" / "vqav2.yaml")
    facts = facts_of(card, SPLITS)
    assert set(facts.splits) == {"train", "test"}
    assert [part.read_as for part in facts.splits["train"].all_parts] == ["train_val_vg"] * 3
    assert facts == facts_of(card.model_copy(update={"title": "other", "notes": "more"}), SPLITS)
    moved = card.model_copy(update={"files": {"answers": CardFile(path="elsewhere.json")}})
    assert facts == facts_of(moved, SPLITS)
    other = card.model_copy(update={"options": {"answered": False}})
    assert facts != facts_of(other, SPLITS)


def test_unknown_splits_of_parts_are_refused():
    card = {"id": "toy", "title": "", "task": "", "licence": "", "availability": "open", "reader": "own_labels"}
    card |= {"splits": {"val": {"files": {"rows": {"path": "rows"}}}}}
    with pytest.raises(ValueError, match=r"parts.vall: there is no such split; there are val"):
        TaskDataConfig.model_validate({"card": card, "files": {"val": [{"rows": 0}]}, "parts": {"vall": 3}})


def test_drops_of_the_reader_are_counted_once(tmp_path):
    write_labels(tmp_path, {"test": NUMBERS["test"]})
    table = tmp_path / "test.csv"
    lines = table.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","  # no label
    table.write_text("\n".join(lines) + "\n")
    done = run(tmp_path, parts={"test": 3})
    assert (done.counts().num_in, done.counts().num_out) == (8, 7)
    assert json.loads(json.dumps(done.summary["splits"]["test"]["num_examples"])) == 7
