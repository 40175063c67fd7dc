"""The note that lies beside exported shards: what they hold, and how to read them with the programs people use."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from x2vlm.data.shards.media_files import FACT_FIELDS

# A `README.md` with such a head is what Hugging Face's `load_dataset(<folder>)` takes file names and types from.
WEBDATASET_NOTE = """\
---
configs:
- config_name: default
  data_files: "*.tar"
dataset_info:
  features:
  - name: jpg
    dtype: image
  - name: frames
    dtype: binary
  - name: txt
    dtype: string
  - name: json
    struct:
{fields}
---
# {experiment}: {samples} samples in {shards} WebDataset tars

| member | what |
|---|---|
| `<key>.jpg` | an image as stored: JPEG, PNG, WebP or GIF (`format` in the JSON); decoders look at the bytes |
| `<key>.frames` | of a clip instead: JPEGs (`x2vlm.data.media.video.decode_frames`); open_clip passes over it |
| `<key>.txt` | the first caption; empty if there is none |
| `<key>.json` | source, address, size, sha256 of the original; `row`: all captions, boxes and scores, as JSON |

{without_caption} of {samples} rows have no caption (regions or objects only): a program that needs one leaves them out
with `.select(lambda sample: sample["txt"])`. Files may be hard links into a store: copy a file before you change it.

## Reading it, from this folder

{commands}
"""
WEBDATASET_COMMANDS = {
    "webdataset": 'webdataset.WebDataset("{pattern}", shardshuffle=False).decode("pilrgb")',
    "this project": 'x2vlm.data.shards.webdataset(".", captioned=True)',
    "Hugging Face": 'datasets.load_dataset(os.getcwd(), split="train")',
    "Hugging Face, types inferred": 'datasets.load_dataset("webdataset", data_files="*.tar", split="train")',
    "open_clip": "python -m open_clip_train.main --dataset-type webdataset --train-data '{pattern}'",
}

PARQUET_NOTE = """\
# {experiment}: {samples} samples in {shards} Parquet files

One row per sample, every row once: key, source, address, captions, concepts with boxes, media, scores, and in `payload`
the stored bytes (an image, or the frames of a clip if `media.format` is `frames`; see
`x2vlm.data.media.video.decode_frames`). {without_caption} of {samples} rows have no caption. Files may be hard links
into a store: copy a file before you change it.

## Reading it, from this folder

{commands}
"""
PARQUET_COMMANDS = {
    "pandas": 'pandas.read_parquet(".")',
    "pyarrow": 'pyarrow.dataset.dataset(".").to_table()',
    "DuckDB": "duckdb.sql(\"SELECT * FROM '*.parquet'\")",
    "Polars": 'polars.read_parquet("*.parquet")',
    "Hugging Face": 'datasets.load_dataset("parquet", data_files="*.parquet", split="train")',
}


def write_note(out: Path, note: str, experiment: str, counts: Mapping[str, int], files: Sequence[str]) -> None:
    """Write the note for `files` to `out`: README.md, or _README.md, which readers of a Parquet folder pass over."""
    is_tar = note == WEBDATASET_NOTE
    commands = WEBDATASET_COMMANDS if is_tar else PARQUET_COMMANDS
    width = max(map(len, commands))
    pattern = brace_pattern(files)
    text = note.format(
        experiment=experiment,
        samples=counts["samples"],
        shards=counts["shards"],
        without_caption=counts["samples"] - counts["with_caption"],
        fields="\n".join(f"    - name: {name}\n      dtype: {dtype}" for name, dtype in FACT_FIELDS.items()),
        commands="\n".join(
            f"    {name:{width}}  {command.replace('{pattern}', pattern)}" for name, command in commands.items()
        ),
    )
    (out / ("README.md" if is_tar else "_README.md")).write_text(text, encoding="utf-8")


def brace_pattern(files: Sequence[str]) -> str:
    """`{00000..00007}.tar` for eight of them, as webdataset and open_clip expand it."""
    first, last = (Path(name).stem for name in (files[0], files[-1]))
    return f"{{{first}..{last}}}{Path(files[0]).suffix}" if first != last else files[0]
