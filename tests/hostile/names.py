"""A name server on loopback, over UDP and TCP, that answers each name as it is told to: late, wrongly, or not at all.

Packets are put together by hand, byte for byte, so that it can also say what no library would let it say, and so that
it shares no code with what it tests.
"""

import errno
import heapq
import ipaddress
import itertools
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

A, CNAME, AAAA = 1, 5, 28
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
IN = 1


@dataclass(frozen=True)
class Reply:
    """What is said to one question. `addresses` of the other family than asked for are left out."""

    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # a chain from the name asked for; the addresses are those of its end
    rcode: int = NOERROR
    seconds_to_live: int = 60
    delay: float = 0.0
    is_silent: bool = False
    types: tuple[int, ...] = (A, AAAA)  # the types of question that get this reply; the others get none
    is_truncated: bool = False  # over UDP; the whole answer comes over TCP
    refuses_tcp: bool = False
    wrong_id: bool = False
    wrong_question: bool = False
    is_garbage: bool = False
    pointer_loop: bool = False  # a compressed name that points at itself
    after: tuple["Reply", ...] = ()  # datagrams that come before this one


Behaviour = Callable[[int], Reply]  # (how many times the name was asked for this type before) -> what is said


class NameServer:
    """Answers by name and counts questions by (name, type). Names it does not know do not exist."""

    def __init__(self, names: dict[str, Behaviour], other: Callable[[str], Behaviour | None] = lambda name: None):
        self.names, self.other = names, other
        self.questions: Counter[tuple[str, int]] = Counter()
        self.senders: list[tuple[int, int]] = []  # (port, message id) of each question
        self.is_down = False  # every question is answered SERVFAIL
        self._udp, self._tcp = _sockets_on_one_port()
        self._wake, self._stop = socket.socketpair()
        self._random = random.Random(0)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._udp.getsockname()[1]}"

    def hosts_asked(self) -> Counter[str]:
        """How many times each name was asked for: A and AAAA go out as one question of ours, so A is what counts."""
        return Counter({name: count for (name, kind), count in self.questions.items() if kind == A})

    def serve(self) -> None:
        late: list[tuple[float, int, bytes, tuple[str, int]]] = []
        order = itertools.count()
        while True:
            wait = max(0.0, late[0][0] - time.monotonic()) if late else None
            ready, _, _ = select.select([self._udp, self._tcp, self._wake], [], [], wait)
            if self._wake in ready:
                return
            if self._udp in ready:
                packet, sender = self._udp.recvfrom(4096)
                self.senders.append((sender[1], int.from_bytes(packet[:2])))
                for delay, answer in self._answers(packet, is_tcp=False):
                    heapq.heappush(late, (time.monotonic() + delay, next(order), answer, sender))
            if self._tcp in ready:
                self._serve_tcp()
            while late and late[0][0] <= time.monotonic():
                _, _, answer, sender = heapq.heappop(late)
                self._udp.sendto(answer, sender)

    def stop(self) -> None:
        self._stop.send(b".")

    def close(self) -> None:
        for each in (self._udp, self._tcp, self._wake, self._stop):
            each.close()

    def _serve_tcp(self) -> None:
        connection, _ = self._tcp.accept()
        with connection:
            connection.settimeout(2)
            (size,) = struct.unpack(">H", connection.recv(2))
            for _, answer in self._answers(connection.recv(size), is_tcp=True):
                connection.sendall(struct.pack(">H", len(answer)) + answer)

    def _answers(self, packet: bytes, is_tcp: bool) -> Iterator[tuple[float, bytes]]:
        name, end = _read_name(packet, 12)
        (kind,) = struct.unpack_from(">H", packet, end)
        if not is_tcp:
            self.questions[name, kind] += 1
        behaviour = self.names.get(name) or self.other(name) or (lambda nth: Reply(rcode=NXDOMAIN))
        reply = Reply(rcode=SERVFAIL) if self.is_down else behaviour(self.questions[name, kind] - 1)
        for each in (*reply.after, reply):
            if kind in each.types and not each.is_silent and not (is_tcp and each.refuses_tcp):
                yield each.delay, self._encode(packet, end + 4, kind, each, is_tcp)

    def _encode(self, packet: bytes, end: int, kind: int, reply: Reply, is_tcp: bool) -> bytes:
        if reply.is_garbage:
            return packet[:2] + self._random.randbytes(40)
        records = [] if reply.is_truncated and not is_tcp else _records(kind, reply)
        flags = 0x8180 | reply.rcode | (0x0200 if reply.is_truncated and not is_tcp else 0)
        identity = struct.unpack_from(">H", packet)[0] ^ (0x5555 if reply.wrong_id else 0)
        question = packet[12:end]
        if reply.wrong_question:
            question = _write_name("other.test") + struct.pack(">HH", kind, IN)
        header = struct.pack(">HHHHHH", identity, flags, 1, len(records), 0, 0)
        return header + question + b"".join(records)


def _sockets_on_one_port() -> tuple[socket.socket, socket.socket]:
    """A UDP socket and a listening TCP socket on the same free port of 127.0.0.1."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError as error:  # somebody else has the TCP port
            udp.close()
            if error.errno != errno.EADDRINUSE:
                raise


def _records(kind: int, reply: Reply) -> list[bytes]:
    ttl = reply.seconds_to_live
    if reply.pointer_loop:  # the record's name is a pointer to the pointer itself, which lies where the answers begin
        return [b"\xc0\x1d" + struct.pack(">HHIH", A, IN, ttl, 4) + bytes(4)]
    records, owner = [], b"\xc0\x0c"  # the name in the question
    for alias in reply.aliases:
        data = _write_name(alias)
        records.append(owner + struct.pack(">HHIH", CNAME, IN, ttl, len(data)) + data)
        owner = data
    for address in reply.addresses:
        data = ipaddress.ip_address(address).packed
        if len(data) == (4 if kind == A else 16):
            records.append(owner + struct.pack(">HHIH", kind, IN, ttl, len(data)) + data)
    return records


def _read_name(packet: bytes, position: int) -> tuple[str, int]:
    labels = []
    while size := packet[position]:
        labels.append(packet[position + 1 : position + 1 + size].decode().lower())
        position += 1 + size
    return ".".join(labels), position + 1


def _write_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


@contextmanager
def name_server(
    names: dict[str, Behaviour] | None = None, other: Callable[[str], Behaviour | None] = lambda name: None
) -> Iterator[NameServer]:
    """A running NameServer."""
    server = NameServer(names or {}, other)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
        server.close()


def always(*addresses: str, **what: object) -> Behaviour:
    """The same reply every time."""
    reply = Reply(addresses, **what)  # type: ignore[arg-type]
    return lambda nth: reply


def first(*replies: Reply) -> Behaviour:
    """These replies in turn; the last one for ever."""
    return lambda nth: replies[min(nth, len(replies) - 1)]
