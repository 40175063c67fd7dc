"""Queries to given name servers instead of those in `/etc/resolv.conf`, without root.

dnspython builds, parses and matches messages; here are the queries of a crawler and the interpretation of the answers.
A and AAAA of a name are sent together, over a new socket (with a random port) that is connected, so that the kernel
drops packets of other senders. Messages that do not answer the query are ignored.
"""

import socket
import time
from collections.abc import Sequence
from typing import cast

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype

ANSWER_SECONDS = 2.0  # for one server before the next one is queried
QUESTION_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)
MAX_DATAGRAM_BYTES = 65_535


def ask_name_servers(
    servers: Sequence[tuple[str, int]], host: str, timeout_seconds: float
) -> tuple[list[str], float | None]:
    """Every address of `host`, A before AAAA, and how many seconds they are valid, from the first server that answers.

    Raises socket.gaierror EAI_NONAME (no such name, or an endless chain of aliases) or EAI_NODATA (a name without
    addresses), else an OSError with the transient failure of the last server.
    """
    try:
        name = dns.name.from_text(host)
    except dns.exception.DNSException as error:  # an empty or too long label
        raise socket.gaierror(socket.EAI_NONAME, f"no name that could be asked for: {error}") from None
    give_up = time.monotonic() + timeout_seconds
    problem: OSError = TimeoutError("no time left to ask a name server")
    for server in servers:
        seconds = min(ANSWER_SECONDS, give_up - time.monotonic())
        if seconds <= 0:
            break
        try:
            return _addresses(_exchange(server, name, time.monotonic() + seconds))
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise
            problem = error
        except OSError as error:
            problem = error
    raise problem


def _exchange(server: tuple[str, int], name: dns.name.Name, deadline: float) -> list[dns.message.Message]:
    """The answers of `server` to both queries, or to one of them if the other is not answered."""
    waiting = [dns.message.make_query(name, question_type) for question_type in QUESTION_TYPES]
    answers: list[dns.message.Message] = []
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.connect(server)
        for query in waiting:
            udp.send(query.to_wire())
        while waiting:
            try:
                udp.settimeout(max(0.001, deadline - time.monotonic()))
                answer = _parse(udp.recv(MAX_DATAGRAM_BYTES))
            except OSError:
                if answers:
                    break
                raise
            answered_query = next((query for query in waiting if answer and query.is_response(answer)), None)
            if answered_query is not None and answer is not None:
                waiting.remove(answered_query)
                answers.append(_whole(answered_query, answer, server, deadline))
            elif time.monotonic() >= deadline:  # a flood of other messages must not delay us
                break
    if not answers:
        raise TimeoutError("the name server sent nothing that answers the question")
    return answers


def _parse(wire: bytes) -> dns.message.Message | None:
    """The message in a datagram, None if it is malformed."""
    try:
        return dns.message.from_wire(wire, raise_on_truncation=True)
    except dns.message.Truncated as error:
        partial: dns.message.Message = error.message()  # type: ignore[no-untyped-call]
        return partial
    except (dns.exception.DNSException, ValueError):
        return None


def _whole(
    query: dns.message.Message, answer: dns.message.Message, server: tuple[str, int], deadline: float
) -> dns.message.Message:
    """`answer`, queried again over TCP if it did not fit in a datagram."""
    if not answer.flags & dns.flags.TC:
        return answer
    try:
        return dns.query.tcp(query, server[0], max(0.001, deadline - time.monotonic()), server[1])
    except (dns.exception.DNSException, EOFError) as error:
        raise OSError(f"truncated answer, and over TCP {type(error).__name__}") from None


def _addresses(answers: Sequence[dns.message.Message]) -> tuple[list[str], float | None]:
    """The addresses in all answers and how long they are valid; else the most specific error."""
    found: dict[dns.rdatatype.RdataType, list[str]] = {}
    seconds: list[int] = []
    failures: list[str] = []
    for answer in answers:
        if answer.rcode() == dns.rcode.NXDOMAIN:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        if answer.rcode() != dns.rcode.NOERROR:
            failures.append(dns.rcode.to_text(answer.rcode()))
            continue
        try:
            chain = cast(dns.message.QueryMessage, answer).resolve_chaining()
        except dns.exception.DNSException as error:
            raise socket.gaierror(socket.EAI_NONAME, f"aliases without an end: {type(error).__name__}") from None
        if chain.answer is not None:
            found[answer.question[0].rdtype] = [rdata.address for rdata in chain.answer]
            seconds.append(chain.minimum_ttl)
    if found:
        return [address for kind in QUESTION_TYPES for address in found.get(kind, [])], min(seconds)
    if failures or len(answers) < len(QUESTION_TYPES):
        raise socket.gaierror(socket.EAI_AGAIN, ", ".join(sorted(set(failures))) or "one of two questions unanswered")
    raise socket.gaierror(socket.EAI_NODATA, "a name without addresses")
