"""Cards: the ones in the repository load, and wrong ones say what is wrong."""

import ipaddress
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from x2vlm.data.cards import file_paths, load_card
from x2vlm.data.readers import READERS
from x2vlm.errors import ConfigError

GOOD = {
    "id": "toy",
    "title": "Toy",
    "licence": "CC0",
    "availability": "open",
    "grains": ["image"],
    "reader": "cc3m",
    "files": {"rows": {"path": "toy.tsv"}},
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


@pytest.mark.parametrize("folder", ["sample", "pretrain"])
def test_every_card_in_the_repository_loads(project_root: Path, folder: str) -> None:
    cards = [load_card(path) for path in sorted((project_root / "datasets" / folder).glob("*.yaml"))]
    assert len(cards) >= 6
    readers = {card.reader for card in cards}
    of_users_own_files = {"folder", "table", "webdataset"}
    assert readers == set(READERS) - of_users_own_files if folder == "pretrain" else readers <= set(READERS)


def test_every_pretraining_card_says_how_many_rows_there_are_and_on_which_terms(project_root: Path) -> None:
    for path in sorted((project_root / "datasets" / "pretrain").glob("*.yaml")):
        card = load_card(path)
        expected = [file.expected_rows for file in card.files.values() if file.expected_rows is not None]
        assert bool(expected) != ("none is expected" in " ".join(card.notes.split())), card.id
        assert len(expected) <= 1, f"{card.id}: the read stage compares their sum with the rows of all files together"
        assert card.licence_notes, card.id
        assert card.homepage, card.id
        assert card.grains, card.id
        assert (
            card.licence
            or "unverified" in card.licence_notes
            or "belong to" in card.licence_notes
            or (card.availability in ("gated", "withdrawn"))
        ), card.id


def test_sample_cards_name_files_and_media_that_are_shipped(project_root: Path) -> None:
    for path in sorted((project_root / "datasets" / "sample").glob("*.yaml")):
        card = load_card(path)
        assert all(Path(file).is_file() for file in file_paths(card, project_root).values()), card.id
        assert card.url_base is not None
        assert card.url_base.from_ == "http://sample.invalid"
        assert (project_root / card.url_base.serve).is_dir()


def test_files_lie_below_the_data_root_unless_shipped(tmp_path: Path) -> None:
    card = load_card(write(tmp_path))
    assert file_paths(card, tmp_path, "s3://bucket/raw/") == {"rows": "s3://bucket/raw/toy/toy.tsv"}
    with pytest.raises(ConfigError, match="card toy: its files are not shipped; set `data_root`"):
        file_paths(card, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "CC0"}, "licens: unknown key; did you mean `licence`?"),
        ({"reader": "coca"}, "reader: .*did you mean `coco`?"),
        ({"availability": "maybe"}, "availability"),
        ({"grains": ["picture"]}, "grains"),
        ({"files": {"rows": {"path": "../secret"}}}, "files.rows.path: .*below the card's root"),
        ({"files": {"rows": {"path": "/etc/passwd"}}}, "files.rows.path: .*below the card's root"),
        ({"files": {"rows": {"path": "a", "sha256": "123"}}}, "files.rows.sha256"),
        ({"files": {"rows": {"path": "a", "shA256": "1" * 64}}}, "did you mean `sha256`?"),
        ({"allow_networks": ["10.0.0.0/99"]}, "allow_networks"),
        ({"url_base": {"from": "ftp://x", "serve": "a"}}, "url_base.from"),
        ({"columns": {"captoin": "a"}}, "columns: .*did you mean `caption`?"),
        ({"columns": {"caption": "a"}}, "`columns` and `boxes` are for the readers folder, table, webdataset"),
        ({"reader": "table", "columns": {"url": ["a", "b"]}}, "url takes one column, a, b are 2"),
        ({"reader": "table", "columns": {"url": 0, "caption": "a"}}, "all columns by name, or all by position"),
        ({"reader": "table", "columns": {"labels": "a"}}, "columns.labels has no effect without `boxes"),
        ({"reader": "table", "boxes": {"format": "xywh", "unit": "pixel"}}, "boxes.unit"),
        ({"reader": "table", "boxes": {"fromat": "xywh", "unit": "pixels"}}, "did you mean `format`"),
        ({"id": "other"}, "id is `other`, the file name says `toy`"),
    ],
)
def test_a_wrong_card_says_where_and_what(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_card(write(tmp_path, **changes))
    assert "toy.yaml" in str(error.value)


def test_allowed_networks_are_networks(tmp_path: Path) -> None:
    [network] = load_card(write(tmp_path, allow_networks=["127.0.0.1/32"])).allow_networks
    assert ipaddress.ip_address("127.0.0.1") in ipaddress.ip_network(network)


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml: no such file"):
        load_card(tmp_path / "nothing.yaml")


def test_reading_and_filtering_never_import_a_framework(project_root: Path) -> None:
    modules = "x2vlm.data.cards, x2vlm.data.readers, x2vlm.data.boxes, x2vlm.data.rules.row_filters, x2vlm.samples"
    code = (
        f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'timm', 'ray', 'mlflow'}} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
