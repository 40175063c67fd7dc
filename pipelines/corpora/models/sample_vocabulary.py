"""Makes datasets/sample/vocab.txt: a lower-case WordPiece vocabulary of the sample corpus, in BERT's file format.

    python -m pipelines.corpora.models.sample_vocabulary --sample datasets/sample

The same corpus gives the same bytes. Line number = token id; the five special tokens come first, then characters, then
pieces. Every printable ASCII character is in it, so unseen text becomes pieces, not [UNK].
"""

import argparse
import string
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from pipelines.corpora.models.sample_texts import caption_pairs, concept_texts
from x2vlm.models.files import TOKENIZER_FILES

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_ENTRIES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True, help="folder of the sample corpus")
    arguments = parser.parse_args()
    vocabulary = train_vocabulary(arguments.sample)
    path = vocabulary_path(arguments.sample)
    path.write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    print(f"{path}: {len(vocabulary)} entries")


def vocabulary_path(sample: Path) -> Path:
    """Where the vocabulary of the sample corpus in the folder `sample` lies."""
    return sample / TOKENIZER_FILES["wordpiece"]


def train_vocabulary(sample: Path) -> list[str]:
    """The entries in the order of their ids."""
    texts = [caption for caption, _ in caption_pairs(sample)] + concept_texts(sample)
    tokenizer = BertWordPieceTokenizer(lowercase=True)  # BERT's own normalisation: lower case, accents off
    seen = set("".join(tokenizer.normalize(text) for text in texts)) - set(string.whitespace)
    characters = sorted(seen | set(string.ascii_lowercase + string.digits + string.punctuation))
    # The trainer numbers continuing characters in the order of a hash map, and breaks ties by number: two runs in a row
    # gave 1033 and 1034 entries. Declared as special tokens they have fixed numbers.
    # Punctuation never continues a word: BERT splits at it.
    fixed = [*SPECIAL_TOKENS, *(f"##{character}" for character in characters if character not in string.punctuation)]
    tokenizer.train_from_iterator(
        texts,
        vocab_size=MAX_ENTRIES,
        min_frequency=1,
        special_tokens=fixed,
        initial_alphabet=characters,
        show_progress=False,
    )
    pieces = set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS)
    return [*SPECIAL_TOKENS, *sorted(pieces, key=lambda piece: (len(piece.removeprefix("##")) > 1, piece))]


if __name__ == "__main__":
    main()
