"""Makes datasets/world/vocab.txt: every English word of procedural worlds, in BERT's file format.

    python -m pipelines.corpora.models.world_vocabulary --out datasets/world

The words are those of a world of its own, read as training reads them: captions, phrases and labels of all sources, and
the texts and answers of all downstream tasks. The same code gives the same bytes. Line number = token id: the five
special tokens, characters, then words, so that a text in another language becomes characters and not [UNK].
"""

import argparse
import re
import string
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipelines.corpora.models.sample_vocabulary import vocabulary_path
from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import WorldConfig
from x2vlm.data.cards import load_card
from x2vlm.data.readers import READERS, Source
from x2vlm.data.task_cards import load_task_card, part_paths, read_split
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS
from x2vlm.samples import Sample

SEED = 20240601  # of a world that no test uses
SCENES = 2000  # twice as many add no word
WORD = re.compile(r"[a-z]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of vocab.txt")
    arguments = parser.parse_args()
    vocabulary = make_vocabulary(SCENES)
    path = vocabulary_path(arguments.out)
    path.write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    print(f"{path}: {len(vocabulary)} entries")


def make_vocabulary(scenes: int) -> list[str]:
    """The entries in the order of their ids."""
    with tempfile.TemporaryDirectory(prefix="x2vlm-vocabulary-") as folder:
        world = Path(folder) / "world"
        build_world(WorldConfig(seed=SEED, scenes=scenes, media="none"), world)
        words = {word for text in english_texts(world) for word in WORD.findall(text.lower())}
    letters = string.ascii_lowercase + string.digits
    characters = sorted(letters + string.punctuation)
    pieces = [f"##{character}" for character in letters]  # punctuation never continues a word: BERT splits at it
    return [*SPECIAL_TOKENS, *characters, *pieces, *sorted(words - set(characters))]


def english_texts(world: Path) -> Iterator[str]:
    """Every English text of the world that is in the folder, as its readers give it."""
    for path in sorted((world / "cards").glob("*.yaml")):
        card = load_card(path)
        if card.reader is None:
            continue
        files = {role: Path(card.root or "") / file.path for role, file in card.files.items()}
        source = Source(card.id, card.id, card.split, files, language=card.language)
        for item in READERS[card.reader](source, Counter()):
            if isinstance(item, Sample):
                yield from (one.text for one in item.captions if one.language == "en")
                yield from (text for one in item.concepts for text in (one.text, *one.attributes))
    for path in sorted((world / "cards" / "tasks").glob("*.yaml")):
        task = load_task_card(path)
        for split in task.splits:
            parts = [{role: Path(name) for role, name in part.items()} for part in part_paths(task, split, Path("/"))]
            for example in read_split(task, split, parts).examples:
                if example.language == "en":
                    yield from (*example.texts, *example.answers)


if __name__ == "__main__":
    main()
