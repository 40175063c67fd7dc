"""Parts that report, for tests of the live view, and a gate that they can be made to wait at."""

import socket
import socketserver
import threading
from dataclasses import replace

from pipelines.flow.stage import Part, PartReader, PartResult, PartWriter
from tests.support.flow import toy


def report_twice(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """The toy filter with two reports."""
    out.report(lambda: {"rows": 1, "kept": 0, "dropped.short": 1})
    out.report(lambda: {"rows": 3, "kept": 2, "dropped.short": 1})
    return toy.filter_lines(config, inputs, part, out)


def report_and_wait(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Reports, and goes on when the gate at the address in its first line opens."""
    out.report(lambda: {"rows": 2, "kept": 1})
    host, port = inputs.local_path(part.reads[0].file).read_text().splitlines()[0].split(":")
    with socket.create_connection((host, int(port))) as connection:
        assert connection.recv(4) == b"open"
    return toy.filter_lines(config, inputs, part, out)


def explode() -> dict[str, float]:
    raise AssertionError("nobody listens, so nobody counts")


def report_a_bomb(config: toy.FilterConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    out.report(explode)
    return toy.filter_lines(config, inputs, part, out)


TWICE = replace(toy.FILTER, run_part=report_twice)
WAIT = replace(toy.FILTER, run_part=report_and_wait)
BOMB = replace(toy.FILTER, run_part=report_a_bomb)


class Gate(socketserver.ThreadingTCPServer):
    """Answers whoever connects when it is opened."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.opened = threading.Event()


class _Gate(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Gate)
        self.server.opened.wait(120)
        self.request.sendall(b"open")
