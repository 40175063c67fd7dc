"""The command lines of jobs that run an experiment: only words, so that `--help` imports nothing of what they name."""

import argparse
from collections.abc import Callable
from typing import Any

from x2vlm.command_line import JobParser, one_of

ESTIMATE_ARGUMENTS = {
    "gpu": "kinds of GPU, with commas: A100-80,H100,H200",
    "num-gpus": "how many, instead of the recipe's world_size",
    "measured": "a YAML file of measured utilisations",
    "dollars-per-gpu-hour": "a price; none is assumed",
    "network": "a preset of x2vlm.cost.scaling: h100_8x400g",
    "rows": "of a list of images: tell the requests of its curation too",
    "dollars-per-million-writes": "a price of PUT for --rows; default: 5",
    "dollars-per-million-reads": "a price of GET for --rows; default: 0.4",
}
ESTIMATE_TYPES: dict[str, Callable[[str], Any]] = {
    "num-gpus": int,
    "rows": int,
    **dict.fromkeys(("dollars-per-gpu-hour", "dollars-per-million-writes", "dollars-per-million-reads"), float),
}


TABLE_FORMATS = ("text", "markdown", "csv", "json", "html")
SAMPLE = "sample"  # the experiment of whoever names none


def add_run_arguments(parser: JobParser, experiment_is_optional: bool = False) -> None:
    """The arguments of every job that runs an experiment."""
    named = "name of a file below pipelines/experiments, or the path of a YAML file"
    if experiment_is_optional:
        parser.add_argument("experiment", nargs="?", help=f"{named}; without one: {SAMPLE}")
    else:
        parser.add_argument("experiment", help=named)
    parser.add_argument("--store", help="where artifacts go, instead of where the experiment says: a folder or a URI")
    parser.add_argument("--tracking-uri", help="MLflow to record lineage in; default: a database inside the store")
    parser.add_argument(
        "--dry-run", action="store_true", help="show each node's action and the reason; exit 2 if work is due"
    )
    parser.add_argument("--explain", action="store_true", help="like --dry-run, with every known part")
    parser.add_argument(
        "--estimate", action="store_true", help="only say what pre-training would cost; needs no data and no store"
    )
    for name, text in ESTIMATE_ARGUMENTS.items():
        parser.add_argument(f"--{name}", help=f"of the estimate: {text}", type=ESTIMATE_TYPES.get(name, str))
    parser.add_argument("--num-cpus", type=int, help="size of the local Ray that is started when there is no cluster")
    parser.add_argument(
        "--inline", action="store_true", help="run everything on this machine without Ray, parts one after the other"
    )


def _add_task_arguments(parser: JobParser) -> None:
    """The arguments of jobs that fine-tune or evaluate a model without an experiment."""
    parser.add_argument("--task", help="a task of x2vlm.tasks.catalog: retrieval, grounding, vqa, classification, ...")
    parser.add_argument("--data", help="a CSV, TSV, JSON-lines or Parquet file of examples (docs/your_data.md)")
    parser.add_argument("--media-root", help="folder or bucket with the images; default: that of the file")
    parser.add_argument("--answers", help="a JSON list of answers or classes; default: those that the data name")
    parser.add_argument("--reader", help="how the files are read, for other formats: x2vlm.data.readers.downstream")
    parser.add_argument("--option", action="append", default=[], help="name=value: an option of the task")
    parser.add_argument("--vocabulary", help="the vocab.txt of a checkpoint file of the reference")
    parser.add_argument("--batch-size", type=int, help="rows of a step, or of a batch of an evaluation")


def _add_place_arguments(parser: JobParser) -> None:
    """Where a job without an experiment works."""
    parser.add_argument("--store", help="where artifacts go: a folder or a URI; default: X2VLM_STORE or runs/store")
    parser.add_argument("--tracking-uri", help="MLflow to record lineage in; default: a database inside the store")
    parser.add_argument("--dry-run", action="store_true", help="show each node's action; exit 2 if work is due")
    parser.add_argument("--num-cpus", type=int, help="size of the local Ray that is started when there is no cluster")
    parser.add_argument("--inline", action="store_true", help="run everything on this machine without Ray")


def add_finetune_arguments(parser: JobParser) -> None:
    """The arguments of a fine-tuning."""
    _add_task_arguments(parser)
    parser.add_argument("--val", help="a file of other examples, by which the epoch is chosen; without: the last one")
    parser.add_argument("--test", help="a file of examples to measure with at the end; without: --val")
    parser.add_argument("--preset", help="settings of the paper for a task: x2vlm.tasks.presets")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--lr", type=float, help="the learning rate")
    parser.add_argument("--image-res", type=int, help="side of the images in pixels; position tables are resized")
    parser.add_argument("--precision", help="bfloat16 or float32")
    parser.add_argument("--seed", type=int, help="of order, augmentation and new parameters")
    parser.add_argument("--selection", help="validation, reference or last: which epoch is kept")
    parser.add_argument("--world-size", type=int, help="processes that train together")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters and the head alone")
    parser.add_argument("--checkpoint-every", type=int, default=1_000, help="steps, beside the end of every epoch")
    parser.add_argument("--explain", action="store_true", help="of an experiment: --dry-run with every known part")
    parser.set_defaults(estimate=False)
    _add_place_arguments(parser)


def add_evaluate_arguments(parser: JobParser) -> None:
    """The arguments of an evaluation beside those of an experiment."""
    parser.add_argument("--tasks", help="names under `evaluate:` of the experiment, separated by commas")
    parser.add_argument("--force", action="store_true", help="evaluate again even if nothing changed")
    parser.add_argument(
        "--table",
        nargs="?",
        const="text",
        type=one_of(TABLE_FORMATS),
        metavar="FORMAT",
        help=f"finished evaluations of the experiment beside published numbers: {', '.join(TABLE_FORMATS)}",
    )
    parser.add_argument("--model", help="a model's folder or a checkpoint file of the reference")
    _add_task_arguments(parser)
    parser.add_argument("--card", help="instead of --data: a card below datasets/, such as downstream/vqav2")
    parser.add_argument("--data-root", help="the folder that holds a folder with the files of the card")
    parser.add_argument("--split", help="of the card; default: test")
    parser.set_defaults(checkpoint_every=1_000)


def add_simulate_arguments(parser: JobParser) -> None:
    """The arguments of a simulation."""
    parser.add_argument("experiment", help="name of a file below pipelines/experiments, or the path of a YAML file")
    parser.add_argument("--rows", type=int, default=1_300_000_000, help="what is extrapolated to; default: 1.3 billion")
    parser.add_argument("--rows-per-part", type=int, default=10_000)
    parser.add_argument("--parts", type=int, help="simulate so many parts instead of all that the rows make")
    parser.add_argument(
        "--sizes", type=_numbers, help="several numbers of parts, with commas: costs are fitted to them"
    )
    parser.add_argument("--source", help="the source that gets the rows; default: the largest list of images")
    parser.add_argument("--unsorted", action="store_true", help="rows in upstream order, not in ranges of their keys")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is made up")
    parser.add_argument("--out", help="a file for all figures, as JSON")
    parser.add_argument("--dollars-per-million-writes", type=float, default=5.0, help="PUT and LIST; default: 5")
    parser.add_argument("--dollars-per-million-reads", type=float, default=0.4, help="GET and HEAD; default: 0.4")


def _numbers(words: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not whole numbers with commas between them") from None
