"""refs(unc).p as JSON: RefCOCO's references are published as a pickle, which is never loaded in this process."""

import subprocess
import sys
from pathlib import Path

from x2vlm.errors import SourceUnavailable

CHILD = Path(__file__).with_name("unpickle_child.py")
SECONDS = 300.0


def is_pickle(path: Path) -> bool:
    """Whether a file of references is the upstream pickle rather than JSON, by name or first byte."""
    with path.open("rb") as file:
        head = file.read(2)
    return path.suffix in (".p", ".pkl", ".pickle") or head[:1] == b"\x80" or head == b"(l"


def convert_refs(path: Path, out: Path) -> None:
    """Write the plain values of a pickle as JSON; SourceUnavailable if it holds anything but plain values.

    `x2vlm.data.readers.downstream.unpickle_child` loads it in a process without environment, which refuses every name
    that the pickle asks for.
    """
    command = [sys.executable, "-I", "-S", str(CHILD), str(path.resolve())]
    try:
        with out.open("wb") as target:
            done = subprocess.run(
                command, stdout=target, stderr=subprocess.PIPE, env={}, cwd=out.parent, timeout=SECONDS, check=False
            )
    except subprocess.TimeoutExpired:
        raise SourceUnavailable(
            f"{path.name}: not read as a pickle within {SECONDS:.0f} s. Convert it to JSON"
        ) from None
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip() or f"ended by signal {-done.returncode}"
        raise SourceUnavailable(
            f"{path.name}: no pickle of plain values ({reason}). Download refs(unc).p again; a file that asks for "
            "functions or classes is not the official one"
        )
