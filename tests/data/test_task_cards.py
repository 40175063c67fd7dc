"""Cards of downstream data: those of the repository load and are complete, and wrong ones say what is wrong."""

import hashlib
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.sets.downstream import write_json, write_lines
from x2vlm.data.readers.downstream import TASK_READERS
from x2vlm.data.task_cards import load_task_card, part_paths, read_split
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable

GOOD: dict[str, Any] = {
    "id": "toy",
    "title": "Toy",
    "task": "retrieval",
    "licence": "CC0",
    "availability": "open",
    "reader": "xflickrco",
    "splits": {
        "test": {
            "parts": [
                {"files": {"rows": {"path": "en.jsonl"}}},
                {"files": {"rows": {"path": "de.jsonl"}}, "options": {"language": "de"}},
            ],
        },
        "val": {"files": {"rows": {"path": "en.jsonl"}}, "examples": 1, "texts": 1},
    },
}
OWN = {"own_captions", "own_boxes", "own_questions", "own_labels"}  # a user's tables have no card here
LISTS = {"caption_list", "coco_captions", "vqa_list", "image_pair_list", "refcoco_list"}  # other forms of carded tasks
EXPECTED = {  # published or counted sizes: examples
    "coco_retrieval": {"train": 113_287, "val": 5000, "test": 5000},
    "flickr30k_retrieval": {"train": 29_000, "val": 1014, "test": 1000},
    "vqav2": {"train": 443_757, "val": 214_354, "test": 447_793, "test_dev": 107_394},
    "nlvr2": {"val": 6982, "test": 6967, "test2": 6970},
    "refcoco_plus": {"val": 10_758, "testA": 5726, "testB": 4889},
    "winoground": {"test": 400},
    "msrvtt_retrieval": {"train": 9000, "train_7k": 7010, "test": 1000},
    "msrvtt_qa": {"train": 158_581, "val": 12_278, "test": 72_821},
    "msvd_qa": {"train": 30_933, "val": 6415, "test": 13_157},
    "multi30k": {"train": 116_000, "val": 4056, "test": 4000},
    "coco_multilingual": {"test": 3000},
    "xgqa": {"test": 8 * 12_578},
    "marvl": {"test": 1128 + 1108 + 1242 + 1180 + 1012},
    "wit": {"test": 1000 + 1000 + 901 + 891 + 890 + 931 + 946 + 860 + 874 + 721 + 570},
    "xflickrco": {"test": 16_000},
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


def files_of(folder: Path, sentences: dict[str, list[str]]) -> None:
    for language, texts in sentences.items():
        rows = [{"sentences": [text], "id": str(at), "img_path": f"{at}.jpg"} for at, text in enumerate(texts)]
        write_lines(folder / f"{language}.jsonl", rows)


def read(folder: Path, split: str, **changes: object) -> Any:
    card = load_task_card(write(folder, root=str(folder), **changes))
    parts = part_paths(card, split, Path("/nowhere"))
    return read_split(card, split, [{role: Path(path) for role, path in part.items()} for part in parts])


def test_cards_of_the_repository_cover_every_reader_and_size(project_root: Path) -> None:
    cards = {path.stem: load_task_card(path) for path in sorted((project_root / "datasets/downstream").glob("*.yaml"))}
    assert len(cards) == 19
    readers = {
        part.reader or card.reader for card in cards.values() for one in card.splits.values() for part in one.all_parts
    }
    assert readers == set(TASK_READERS) - OWN - LISTS
    sizes = {name: {split: cards[name].splits[split].examples for split in splits} for name, splits in EXPECTED.items()}
    assert sizes == EXPECTED
    for card in cards.values():
        assert card.homepage.startswith("https://"), card.id
        assert card.paper.startswith("https://"), card.id
        assert card.licence_notes, card.id
        assert card.media, card.id
        assert card.access or card.availability == "open", card.id
        assert {"test", "testA"} & set(card.splits), card.id


def test_files_lie_below_the_data_root_unless_the_card_has_one(tmp_path: Path) -> None:
    card = load_task_card(write(tmp_path))
    assert part_paths(card, "test", tmp_path, "s3://bucket/raw/") == [
        {"rows": "s3://bucket/raw/toy/en.jsonl"},
        {"rows": "s3://bucket/raw/toy/de.jsonl"},
    ]
    with pytest.raises(ConfigError, match="card toy: its files are not shipped; set `data_root`"):
        part_paths(card, "test", tmp_path)
    with pytest.raises(ConfigError, match="card toy: no split `tests`; did you mean `test`"):
        part_paths(card, "tests", tmp_path, "/data")


def test_parts_are_joined_in_their_order(tmp_path: Path) -> None:
    files_of(tmp_path, {"en": ["a cat", "a dog"], "de": ["eine Katze", ""]})
    data = read(tmp_path, "test")
    assert [(one.example_id, one.split, one.language) for one in data.examples] == [
        ("0", "test", "en"),
        ("1", "test", "en"),
        ("de:0", "test", "de"),
    ]
    assert [(drop.source, drop.source_row, drop.rule) for drop in data.dropped] == [("toy", "1", "empty_caption")]


def test_an_id_of_two_parts_is_dropped_the_second_time(tmp_path: Path) -> None:
    files_of(tmp_path, {"en": ["a cat"]})
    part = {"files": {"rows": {"path": "en.jsonl"}}}
    data = read(tmp_path, "test", splits={"test": {"parts": [part, part]}})
    assert len(data.examples) == 1
    assert [(drop.source_row, drop.rule) for drop in data.dropped] == [("0", "duplicate_id")]


def test_another_count_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files_of(tmp_path, {"en": ["a cat", "a dog"]})
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, "val").examples) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "event=other_count card=toy split=val unit=examples found=2 expected=1 dropped=0",
        "event=other_count card=toy split=val unit=texts found=2 expected=1 dropped=0",
    ]


def test_a_published_checksum_is_compared(tmp_path: Path) -> None:
    files_of(tmp_path, {"en": ["a cat"]})
    digest = hashlib.sha256((tmp_path / "en.jsonl").read_bytes()).hexdigest()
    for sha256 in (digest, "0" * 64):
        splits = {"test": {"files": {"rows": {"path": "en.jsonl", "sha256": sha256}}}}
        if sha256 == digest:
            assert read(tmp_path, "test", splits=splits, checksums="published").examples
        else:
            with pytest.raises(
                CorruptArtifact, match=r"rows file en\.jsonl has sha256 .*the card expects 000000000000"
            ):
                read(tmp_path, "test", splits=splits, checksums="published")


def test_parts_with_different_answer_lists_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "q.jsonl", [{"question_id": 1, "image": "a.jpg", "question": "Q?", "answer": "yes"}])
    lists = (["yes", "no"], ["no", "yes"])
    parts = []
    for number, answers in enumerate(lists):
        write_json(tmp_path / f"l{number}.json", answers)
        parts.append({"files": {"rows": {"path": "q.jsonl"}, "answers": {"path": f"l{number}.json"}}})
    with pytest.raises(SourceUnavailable, match="part 1 of split `test` has 2 labels that are not the 2 of the parts"):
        read(tmp_path, "test", reader="vqa_list", splits={"test": {"parts": parts}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "CC0"}, "licens: unknown key; did you mean `licence`?"),
        ({"reader": "xflickrc"}, "no reader of a downstream format is called `xflickrc`; did you mean `xflickrco`?"),
        ({"availability": "gated"}, "data that are not open must say how to get them: `access`"),
        ({"checksums": "published"}, "`checksums: published` goes with files that have a `sha256`"),
        ({"splits": {}}, "a card has at least one split"),
        (
            {"splits": {"test": {"files": {"row": {"path": "a"}}}}},
            "reader `xflickrco` needs a file for rows; it has row",
        ),
        ({"splits": {"test": {"files": {"rows": {"path": "../a"}}}}}, "below the card's root"),
        ({"splits": {"test": {"examples": 5}}}, "reader `xflickrco` needs a file for rows"),
        (
            {"splits": {"test": {"files": {"rows": {"path": "a"}}, "options": {"langage": "de"}}}},
            "splits.test: .*langage: unknown key; did you mean `language`",
        ),
        (
            {"splits": {"test": {"files": {"rows": {"path": "a"}}, "parts": [{"files": {"rows": {"path": "a"}}}]}}},
            "give either `parts`, or `files`",
        ),
        ({"id": "other"}, "id is `other`, the file name says `toy`"),
    ],
)
def test_a_wrong_card_says_where_and_what(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_task_card(write(tmp_path, **changes))
    assert "toy.yaml" in str(error.value)
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


def test_reading_a_task_never_imports_a_framework(project_root: Path) -> None:
    names = sorted({reader.implementation.partition(":")[0] for reader in TASK_READERS.values()})
    modules = ", ".join(["x2vlm.data.task_cards", *(f"x2vlm.data.readers.downstream.{name}" for name in names)])
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'timm', 'ray'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_reader_is_imported_when_it_is_used(project_root: Path) -> None:
    code = (
        "import sys, x2vlm.data.readers.downstream; "
        "print([name for name in sys.modules if name.startswith('x2vlm.data.readers.downstream.referring')])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
