"""Command lines of this project's programs: what a wrong word is answered with, and what every exit code means.

Imports the standard library only: `--help` and a typing error are answered before anything heavy is loaded.
"""

import argparse
import difflib
import sys
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

EXIT_OK, EXIT_FAILED, EXIT_DUE, EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_BUSY = range(6)
EXIT_FENCED = 6  # another driver took over
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 and the signal's number
EXIT_TERMINATED = 143

# Control, format (bidirectional overrides, zero-width), line and paragraph separators, surrogates.
_UNPRINTABLE = {"Cc", "Cf", "Zl", "Zp", "Cs"}
_JOINERS = "\u200c\u200d"  # format characters that words and emoji need


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
        options, unknown = self.parse_known_intermixed_args(arguments)
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


def printable(text: object, keep: str = "") -> str:
    r"""`text` in one line, with every character that a terminal or an editor would obey escaped: "\x1b[2J".

    Characters of `keep` stay. File names on Linux are bytes: those that are not UTF-8, which Python holds as lone
    surrogates and no stream can write, are shown as the bytes that they are.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or _is_plain(c) else _escaped(c) for c in text)


def _is_plain(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in _UNPRINTABLE


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
