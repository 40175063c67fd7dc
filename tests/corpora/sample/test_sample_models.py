"""The sample's vocabulary and its tiny CLIP: what they promise, and that the scripts make what is shipped."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer

from pipelines.corpora.models.sample_clip import load_pairs, measure, model_config, write_tokenizer
from pipelines.corpora.models.sample_texts import caption_pairs, concept_texts
from pipelines.corpora.models.sample_vocabulary import SPECIAL_TOKENS, train_vocabulary


@pytest.fixture(scope="module")
def sample(project_root: Path) -> Path:
    return project_root / "datasets/sample"


def test_vocabulary_is_what_the_script_makes(sample: Path) -> None:
    shipped = (sample / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert train_vocabulary(sample) == shipped
    assert train_vocabulary(sample) == shipped  # the trainer's hash maps are seeded anew every time
    assert shipped[:5] == SPECIAL_TOKENS
    assert len(set(shipped)) == len(shipped) >= 1000


def test_no_text_of_the_corpus_has_an_unknown_piece_and_words_stay_whole(sample: Path) -> None:
    tokenizer = BertWordPieceTokenizer(str(sample / "vocab.txt"), lowercase=True)
    texts = [caption for caption, _ in caption_pairs(sample)] + concept_texts(sample)
    pieces = [piece for text in texts for piece in tokenizer.encode(text).tokens]
    assert "[UNK]" not in pieces
    assert sum(piece.startswith("##") for piece in pieces) < 0.05 * len(pieces)
    assert tokenizer.encode("Xylophone québécois 42%!").tokens.count("[UNK]") == 0


def test_held_out_captions_are_read_by_neither_script(sample: Path) -> None:
    held_out = json.loads((sample / "annotations/coco/captions_val2017.json").read_text())
    names = {image["file_name"] for image in held_out["images"]}
    pairs = caption_pairs(sample)
    assert names
    assert not names & {path.name for _, path in pairs}
    assert not {row["caption"] for row in held_out["annotations"]} & {caption for caption, _ in pairs}


def test_tiny_clip_tells_its_own_pairs_from_mixed_ones(sample: Path) -> None:
    figures = measure(sample / "models/tiny_clip", *load_pairs(sample))
    assert figures["own_at_least_0.25"] > 0.95
    assert figures["other_at_least_0.25"] < 0.2


def test_tiny_clip_is_small_and_complete(sample: Path, tmp_path: Path) -> None:
    folder = sample / "models/tiny_clip"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) < 12_000_000
    write_tokenizer(sample / "vocab.txt", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((folder / name).read_text())
    assert model_config(tmp_path) == json.loads((folder / "open_clip_config.json").read_text())
    assert {value.dtype.itemsize for value in load_file(folder / "open_clip_model.safetensors").values()} == {2}
    assert "no judge of" in (folder / "README.md").read_text()
