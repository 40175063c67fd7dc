"""Run by `refs_pickle` as its own process: a pickle of plain values in, JSON out. It imports the standard library only.

A pickle can name any function and have it called. Here every name is refused, so that lists, dicts, tuples, numbers,
texts, booleans and None are all that can come out; the process has no environment, and bounds on memory and time.
"""

import json
import pickle
import resource
import sys
from typing import Any, NoReturn

MAX_BYTES, MAX_SECONDS = 4 << 30, 120


class PlainUnpickler(pickle.Unpickler):
    """Loads what needs no class and no function."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Refuse, whatever it is."""
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, and plain values need no name")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse, whatever it is."""
        raise pickle.UnpicklingError("it refers to a value outside")


def main(path: str) -> int:
    """JSON of the pickle at `path` to standard output; 1 and a line on standard error if it is no plain pickle."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
    try:
        with open(path, "rb") as file:
            # The upstream file was written by Python 2, whose texts are bytes.
            value = PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        json.dump(value, sys.stdout)
    except Exception as error:  # any opcode may fail in its own way
        sys.stderr.write(f"{type(error).__name__}: {error}"[:500])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
