"""The command lines of jobs that run an experiment: only words, so that `--help` imports nothing of what they name."""

from collections.abc import Callable
from typing import Any

from x2vlm.command_line import JobParser

ESTIMATE_ARGUMENTS = {
    "gpu": "kinds of GPU, with commas: A100-80,H100,H200",
    "num-gpus": "how many, instead of the recipe's world_size",
    "measured": "a YAML file of measured utilisations",
    "dollars-per-gpu-hour": "a price; none is assumed",
    "network": "a preset of x2vlm.cost.scaling: h100_8x400g",
}
ESTIMATE_TYPES: dict[str, Callable[[str], Any]] = {"num-gpus": int, "dollars-per-gpu-hour": float}


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
