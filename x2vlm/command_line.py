"""Command lines of this project's programs: what a wrong word is answered with, and what every exit code means.

Imports the standard library only: `--help` and a typing error are answered before anything heavy is loaded.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

EXIT_OK, EXIT_FAILED, EXIT_DUE, EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_BUSY = range(6)
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 and the signal's number
EXIT_TERMINATED = 143


class JobParser(argparse.ArgumentParser):
    """argparse with our exit code for wrong usage (its own 2 means here that work is due), and "did you mean".

    Every program takes `--json`.
    """

    def __init__(self, description: str | None) -> None:
        self._flags: list[str] = []
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--json", action="store_true", help="print one line of JSON instead of text")

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        self._flags += action.option_strings
        return action

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options; ends the process with 3 for a wrong command line, with 0 for `--help`."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            names = [word.partition("=")[0] for word in unknown]
            guesses = [guess for name in names for guess in nearest(name, self._flags)]
            hint = f"; did you mean {', '.join(f'`{guess}`' for guess in guesses)}?" if guesses else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """A `type` of argparse: one of `names`; another word is answered with the nearest of them and with all."""

    def choose(word: str) -> str:
        if word in names:
            return word
        guess = "".join(f"did you mean `{name}`? " for name in nearest(word, names))
        raise argparse.ArgumentTypeError(f"{word!r}: {guess}There are {', '.join(names)}")

    return choose


def nearest(word: str, names: Collection[str]) -> list[str]:
    """The name that `word` was probably meant to be, if there is one."""
    return difflib.get_close_matches(word, list(names), n=1)


def printable(text: str) -> str:
    """`text` for a terminal, a log or a page: bytes that are no UTF-8 and control characters are shown as `\\xff`.

    File names on Linux are bytes; Python gives those that are not UTF-8 as lone surrogates, which no stream can write,
    and a control character in a name would be obeyed by the terminal.
    """
    bytes_shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(f"\\x{ord(char):02x}" if _is_control(char) else char for char in bytes_shown)


def _is_control(char: str) -> bool:
    return char < " " or "\x7f" <= char <= "\x9f"
