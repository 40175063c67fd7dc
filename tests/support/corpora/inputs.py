"""Lays out the folder that `pipelines.corpora.sample.build` makes the shipped corpus from.

    python -m tests.support.corpora.inputs FOLDER

The corpus takes its photos over unmodified, so they are stored once, in `datasets/sample/media`; everything else the
build reads is below `tests/excerpts`. `PROVENANCE.csv` there names every input with its sha256.
"""

import csv
import hashlib
import sys
from pathlib import Path

from tests.support.corpora.sample_files import MEDIA, ROOT

EXCERPTS = ROOT / "tests" / "excerpts"


def lay_out_corpus_inputs(folder: Path) -> Path:
    """`folder`, which must be new or empty, with a link to every input of the build. KeyError if a photo is missing."""
    media = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in MEDIA.rglob("*") if path.is_file()}
    with (EXCERPTS / "PROVENANCE.csv").open(newline="", encoding="utf-8") as stream:
        recorded = {row["file"]: row["sha256"] for row in csv.DictReader(stream)}
    for name, digest in recorded.items():
        excerpt = EXCERPTS / name
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(excerpt if excerpt.is_file() else media[digest])
    (folder / "PROVENANCE.csv").symlink_to(EXCERPTS / "PROVENANCE.csv")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.support.corpora.inputs FOLDER")
    lay_out_corpus_inputs(Path(sys.argv[1]))
