"""A fast web server, so that benchmarks measure the client. Run as a separate process.

`python -m tests.benchmarks.photo_server FOLDER NUM_ORIGINS [closes]` serves photo `number % len(photos)` of FOLDER with
its number in a comment at `/<number>.jpg`, and no robots.txt, on NUM_ORIGINS ports of 127.0.0.1: each is an origin.
It keeps a connection open unless the request says otherwise, or with `closes` never. It prints the ports as JSON and
ends with its input.
"""

import asyncio
import json
import sys
from pathlib import Path

from tests.benchmarks.photos import numbered


class PhotoServer:
    """Answers GETs from memory."""

    def __init__(self, folder: Path, closes: bool) -> None:
        self._closes = closes
        self._photos = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until either side closes."""
        try:
            closes = False
            while not closes:
                request = await reader.readuntil(b"\r\n\r\n")
                closes = self._closes or b"\r\nconnection: close\r\n" in request.lower()
                status, body = self._find(request.split(b" ", 2)[1].decode())
                head = f"HTTP/1.1 {status}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
                head += f"Server: photos\r\nConnection: {'close' if closes else 'keep-alive'}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    def _find(self, path: str) -> tuple[str, bytes]:
        name = path.removeprefix("/").removesuffix(".jpg")
        if not name.isdigit():
            return "404 Not Found", b""
        return "200 OK", numbered(self._photos[int(name) % len(self._photos)], int(name))


async def main() -> None:
    handler = PhotoServer(Path(sys.argv[1]), sys.argv[3:] == ["closes"]).answer
    servers = [await asyncio.start_server(handler, "127.0.0.1", 0, backlog=256) for _ in range(int(sys.argv[2]))]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
