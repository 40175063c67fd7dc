"""The options of `jobs/new_source.py`. Imports the standard library only, so that `--help` is answered at once."""

import argparse
from pathlib import Path

from pipelines.new_source.sizes import PRESETS, SAMPLE_CLIP, SAMPLE_VOCABULARY

# The fields of a row in a table (`x2vlm.data.readers.own.layout.ALIASES`). Elsewhere some of them only: those of
# `pipelines.new_source.sets.SET_FIELDS`; the rest is refused by name.
COLUMN_OPTIONS = (
    *("url", "caption", "id", "language", "licence", "author", "width", "height", "sha256", "md5", "kind", "start"),
    *("end", "similarity", "punsafe", "pwatermark", "nsfw", "boxes", "labels", "phrases"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command: every field of a table's row is one."""
    parser.add_argument(
        "path",
        nargs="+",
        help="a table (.csv, .tsv, .jsonl or .parquet, also .gz, .zst); a folder of images or clips with texts; "
        "or tars or Parquet with media inside: one file, a folder of them, or a quoted pattern such as 'data/*.tar'",
    )
    for name in COLUMN_OPTIONS:
        several = " (may be given several times)" if name == "caption" else ""
        parser.add_argument(
            f"--{name}",
            action="append",
            help=f"the column or field with the {name}, or the column's position from 0{several}",
        )
    parser.add_argument(
        "--box-format",
        choices=("xywh", "xyxy", "cxcywh"),
        help="how boxes are written: corner and size, corners, or centre and size",
    )
    parser.add_argument("--box-unit", choices=("pixels", "fraction"), default="pixels")
    parser.add_argument("--media", type=Path, help="of a table: the folder where its paths begin")
    parser.add_argument("--name", help="of the source: a-z, 0-9 and _; default: that of the file or folder")
    parser.add_argument("--text-language", default="en", help="language of texts that do not name theirs")
    parser.add_argument("--text-licence", default="not stated", help="licence of rows that do not name theirs")
    parser.add_argument("--size", choices=tuple(PRESETS), help="of the model; default: by the number of rows")
    parser.add_argument("--vocabulary", help=f"a WordPiece vocab.txt; for a toy the shipped {SAMPLE_VOCABULARY}")
    parser.add_argument("--clip", help=f"a folder with an open_clip model; for a toy the shipped {SAMPLE_CLIP}")
    parser.add_argument("--allow-private", action="store_true", help="fetch from this machine and private networks")
    parser.add_argument("--out", type=Path, help="folder for the files; default: runs/sources/NAME")
    parser.add_argument("--force", action="store_true", help="write files again that are there")
