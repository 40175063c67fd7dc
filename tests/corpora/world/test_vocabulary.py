"""The shipped vocabulary of worlds has every English word of a world that it was not made from."""

from collections import Counter

from pipelines.corpora.models.sample_vocabulary import vocabulary_path
from pipelines.corpora.models.world_vocabulary import english_texts, make_vocabulary
from pipelines.project import PROJECT_ROOT
from tests.support.corpora.world import World
from x2vlm.data.text.tokenizer import WordPieceTokenizer

SHIPPED = vocabulary_path(PROJECT_ROOT / "datasets" / "world")


def test_no_english_word_of_another_world_is_cut_or_unknown(noisy_world: World) -> None:
    vocabulary = SHIPPED.read_text(encoding="utf-8").split("\n")[:-1]
    tokenizer = WordPieceTokenizer(vocabulary)
    pieces: Counter[str] = Counter()
    texts = set(english_texts(noisy_world.out))
    for text in texts:
        pieces.update(tokenizer.entries[number] for number in tokenizer.encode(text, 100))
    cut = {piece: count for piece, count in pieces.items() if piece.startswith("##") or piece == "[UNK]"}
    # Texts in other languages are planted under an English label, and numbers have two digits.
    assert sum(cut.values()) < 0.02 * sum(pieces.values()), cut
    assert len(texts) > 500


def test_equal_code_makes_equal_vocabularies() -> None:
    few, shipped = make_vocabulary(400), set(SHIPPED.read_text(encoding="utf-8").split("\n"))
    # A word in another language is planted here and there.
    assert len(set(few) - shipped) < 0.05 * len(few), set(few) - shipped
    assert few == make_vocabulary(400)
