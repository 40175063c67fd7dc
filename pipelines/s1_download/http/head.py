"""The head of a response: status line and header lines, parsed at little cost.

http.client passes header lines to the mail parser, which costs a third of the CPU of fetching a photo and takes the
first malformed line for the end of the headers: it misses all that follow, an opt-out for example. Here only that line
is skipped.
"""

import re
from typing import Protocol

from pipelines.s1_download.http.guard import Refusal

MAX_LINE_BYTES = 64 << 10
MAX_HEADERS = 100
MAX_LINES = 200  # of one head, folded lines and those that are skipped included
MAX_HEAD_BYTES = 256 << 10  # of all heads before the body together
MAX_INTERIM_HEADS = 10  # 100 Continue, 102 Processing, 103 Early Hints
# Patterns and the code below take linear time whatever a line holds: with blanks on both sides of a lazy group, one
# line of 30 kB took 10 seconds, in which no other thread of the process went on.
STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]+)[ \t]+([1-9][0-9]{2})([ \t][^\r\n]*)?\r?\n")
# Any byte is allowed in a value: its reader decides, and an unreadable opt-out counts as one.
NAME = re.compile(rb"[\x21-\x39\x3b-\x7e]+")


class Headers:
    """Header values by case-insensitive name; the part of `email.message.Message` that is used."""

    def __init__(self, lines: list[tuple[str, str]] | None = None) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in lines or []:
            self._values.setdefault(name.lower(), []).append(value)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values

    def get(self, name: str, default: str = "") -> str:
        """The first value of `name`."""
        values = self._values.get(name.lower())
        return values[0] if values else default

    def get_all(self, name: str, default: list[str] | None = None) -> list[str]:
        """All values of `name`, in order."""
        return self._values.get(name.lower(), default or [])

    def content_type(self) -> str:
        """Content-Type without parameters, in lower case; text/plain for an invalid one, "" if absent."""
        if "content-type" not in self._values:
            return ""
        kind = self.get("content-type").partition(";")[0].strip().lower()
        return kind if kind.count("/") == 1 else "text/plain"


class Stream(Protocol):
    """The stream that a response is read from."""

    def read(self, num_bytes: int, /) -> bytes: ...

    def readline(self, limit: int, /) -> bytes: ...


class Response:
    """A head, and the stream from which the body is still to be read.

    `is_plain`: it is HTTP/1.1, without interim heads and without any ambiguous line.
    `is_spent` becomes true when exactly Content-Length bytes were read.
    """

    def __init__(self, fp: Stream, status: int, reason: str, headers: Headers, is_plain: bool = False) -> None:
        self.fp, self.status, self.reason, self.headers, self.is_plain = fp, status, reason, headers, is_plain
        self.is_spent = False


def read_head(stream: Stream) -> Response:
    """The head of the final response; interim ones (1xx but 101, RFC 9110 15.2) are skipped.

    Refusal with rule connection_reset if there is no response or the head is incomplete, bad_response for another
    protocol, more than 10 interim heads, 100 headers or 200 lines in one head, a line of more than 64 KiB, or more than
    256 KiB in all.
    """
    lines = _Lines(stream)
    for num_interim in range(MAX_INTERIM_HEADS + 1):
        line = lines.next()
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise _breaks_off() if b"HTTP/".startswith(line[:5]) and line[-1:] != b"\n" else _no_status_line(line)
        status, reason = int(match[2]), (match[3] or b"").decode("latin-1").strip()
        headers, is_plain = _headers(lines)
        if status >= 200 or status == 101:  # nobody asked for another protocol: the caller refuses it
            is_plain = is_plain and match[1] == b"1" and line[-2:] == b"\r\n" and not num_interim
            return Response(stream, status, reason, headers, is_plain)
    raise Refusal("bad_response", f"more than {MAX_INTERIM_HEADS} interim responses")


def may_stay_open(response: Response) -> bool:
    """Whether its connection can be reused once the body was read (RFC 9112 9.3), with a certain end of the body.

    Stricter than the RFC: any ambiguity ends the connection, since bytes left over from a response would be taken for
    the next one.
    """
    headers = response.headers
    lengths = headers.get_all("Content-Length", [])
    is_framed = len(lengths) == 1 and lengths[0].isdigit() and "Transfer-Encoding" not in headers
    if not (response.is_plain and response.is_spent and is_framed):
        return False
    return not any("close" in value.lower() for value in headers.get_all("Connection", []))


class _Lines:
    """The lines of all heads of one response, within their budget."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._bytes_left = stream, MAX_HEAD_BYTES

    def next(self) -> bytes:
        """The next line; without a line end only at the end of the stream."""
        line = self._stream.readline(MAX_LINE_BYTES + 1)
        self._bytes_left -= len(line)
        if len(line) > MAX_LINE_BYTES:
            raise Refusal("bad_response", f"a line of more than {MAX_LINE_BYTES} bytes in the head")
        if self._bytes_left < 0:
            raise Refusal("bad_response", f"more than {MAX_HEAD_BYTES} bytes before the body")
        return line


def _headers(lines: _Lines) -> tuple[Headers, bool]:
    """The header lines, and whether all of them are unambiguous."""
    is_plain = True
    names: list[str] = []
    values: list[list[bytes]] = []  # of each header, with those of its folded lines
    can_go_on = False  # whether a folded line has a header before it
    num_lines = 0
    while (line := lines.next()) not in (b"\r\n", b"\n"):
        num_lines += 1
        is_plain = is_plain and line.find(b"\r") == len(line) - 2  # some parsers take a bare CR for the end of a line
        if not line.endswith(b"\n"):
            raise _breaks_off()
        if num_lines > MAX_LINES:
            raise Refusal("bad_response", f"more than {MAX_LINES} lines in the head")
        before, colon, after = line.partition(b":")
        name = before.rstrip(b" \t")
        if colon and NAME.fullmatch(name):
            if len(names) == MAX_HEADERS:
                raise Refusal("bad_response", f"more than {MAX_HEADERS} headers")
            names.append(name.decode("ascii"))
            values.append([_value(after)])
            can_go_on = True
            is_plain = is_plain and name == before
            continue
        is_plain = False
        if line[:1] not in (b" ", b"\t"):
            can_go_on = False
        elif can_go_on:  # a folded line continues the one before (RFC 9112 5.2)
            values[-1].append(_value(line))
    texts = [b" ".join(pieces).decode("latin-1") for pieces in values]
    return Headers(list(zip(names, texts, strict=True))), is_plain and line == b"\r\n"


def _value(text: bytes) -> bytes:
    """What stands between the blanks of a line, or of its part behind the colon."""
    return text.removesuffix(b"\n").removesuffix(b"\r").strip(b" \t")


def _breaks_off() -> Refusal:
    return Refusal("connection_reset", "no answer, or its head breaks off")


def _no_status_line(line: bytes) -> Refusal:
    return Refusal("bad_response", f"status line {line[:80]!r}")
