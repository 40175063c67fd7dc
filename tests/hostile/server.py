"""A web server on loopback that does to each request what its path says, and counts what it is asked for."""

import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

Behaviour = Callable[["Handler"], None]


class HostileServer(socketserver.ThreadingTCPServer):
    """Counts connections and requests per path; `released` ends all endless answers."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, behaviours: Mapping[str, Behaviour], address: str = "127.0.0.1", port: int = 0) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)
        self.behaviours = behaviours
        self.locations: dict[str, str] = {}  # where /redirect/NAME leads to
        self.requests: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.is_down = False  # /weekdays/* answers 503
        self.num_connections = 0
        self.robots: tuple[str, bytes] | None = None  # status line and body of /robots.txt; None: there is none
        self.released = threading.Event()
        self.arrived = threading.Event()  # somebody asked for /watch
        self.left = threading.Event()  # and hung up
        self.lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def base(self) -> str:
        host = str(self.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def endpoint(self) -> tuple[str, int]:
        return str(self.server_address[0]), int(self.server_address[1])


class Handler(socketserver.StreamRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        with self.server.lock:
            self.server.num_connections += 1
        lines = []
        while (line := self.rfile.readline(65536)) not in (b"\r\n", b""):
            lines.append(line.decode("latin-1").strip())
        if not lines:
            return
        self.path = lines[0].split(" ")[1]
        with self.server.lock:
            self.server.requests[self.path] += 1
            self.server.user_agents |= {line[12:] for line in lines if line.lower().startswith("user-agent: ")}
        name = self.path.lstrip("/").split("/")[0].split("?")[0]
        try:
            self.server.behaviours.get(name, not_found)(self)
        except OSError:
            pass  # the client hung up, which is what most of these provoke

    def answer(self, body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> None:
        """Send a whole response; `length` lies about its size."""
        headers = {
            "Content_Type": "image/jpeg",
            "Content_Length": str(len(body) if length is None else length),
        } | headers
        self.start(status, **headers)
        self.wfile.write(body)

    def start(self, status: str = "200 OK", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    def raw(self, *pieces: bytes) -> None:
        """Send exactly these bytes."""
        self.wfile.write(b"".join(pieces))

    @property
    def is_first_time(self) -> bool:
        """Whether nobody asked for this path before."""
        return self.server.requests[self.path] == 1

    def send_slowly(self, payload: Iterator[bytes], seconds: float) -> None:
        """Send piece after piece with a pause between them, until released."""
        for piece in payload:
            self.wfile.write(piece)
            if self.server.released.wait(seconds):
                return

    @property
    def argument(self) -> str:
        return self.path.lstrip("/").partition("/")[2]


def not_found(handler: Handler) -> None:
    handler.answer(b"nothing here", "404 Not Found")
