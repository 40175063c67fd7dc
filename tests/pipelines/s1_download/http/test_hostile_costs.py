"""What hostile hosts may cost: memory of a child, and time of a part."""

import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.s1_download.http.body import MemoryBudget
from pipelines.s1_download.http.guard import Refusal
from tests.hostile.behaviours import hostile_server
from tests.hostile.names import Behaviour, always, name_server
from tests.hostile.payloads import photo
from tests.support.download.child_costs import peak_bytes
from tests.support.download.stage import download, make_samples

logger = logging.getLogger(__name__)

# Each four times at once. The last three are refused only when more than 32 MiB of them have come.
BOMBS = {
    "gzip-bomb": "compression_ratio",
    "deflate-bomb": "compression_ratio",
    "gif-bomb": "too_many_pixels",
    "png-bomb": "too_many_pixels",
    "png-20k": "too_many_pixels",
    "jpeg-giant": "too_many_pixels",
    "webp-giant": "too_many_pixels",
    "huge": "body_too_large",
    "hundred-megabytes": "body_too_large",
    "endless": "body_too_large",
}


def test_bombs_cost_a_child_less_than_64_mb_more_than_images(tmp_path: Path) -> None:
    with hostile_server() as server:
        bombs = [f"{server.base}/{path}?{number}" for number in range(4) for path in BOMBS]
        images = [f"{server.base}/photo/{number}" for number in range(len(bombs))]
        ordinary, kept = peak_bytes(tmp_path / "pictures", images, server.port)
        hostile, statuses = peak_bytes(tmp_path / "bombs", bombs, server.port)
    assert kept == {"kept": len(images)}
    assert statuses == Counter(BOMBS[path] for path in BOMBS for _ in range(4))
    logger.info("ordinary_mb=%.1f hostile_mb=%.1f", ordinary / 1e6, hostile / 1e6)
    assert hostile - ordinary < 64e6


def no_time_left() -> float:
    raise Refusal("deadline_exceeded")


def test_room_is_given_in_turn_and_a_body_larger_than_all_of_it_gets_it_alone() -> None:
    budget = MemoryBudget(100)
    budget.take(60, no_time_left)
    budget.take(40, no_time_left)
    with pytest.raises(Refusal):
        budget.take(1, no_time_left)
    budget.give_back(40)
    with pytest.raises(Refusal):
        budget.take(41, no_time_left)
    budget.take(40, no_time_left)  # who gave up waiting holds nobody up
    budget.give_back(40)
    budget.give_back(60)
    budget.take(1000, no_time_left)
    with pytest.raises(Refusal):
        budget.take(1, no_time_left)
    budget.give_back(1000)
    budget.take(100, no_time_left)


@contextmanager
def dead_port() -> Iterator[int]:
    """A port of 127.0.0.1 where nobody ever answers a knock: its queue is full and nobody takes from it."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        waiting = []
        while True:
            knock = socket.socket()
            waiting.append(knock)
            knock.settimeout(0.2)
            try:
                knock.connect(listening.getsockname())
            except TimeoutError:
                break
        try:
            yield listening.getsockname()[1]
        finally:
            for knock in waiting:
                knock.close()


@pytest.mark.slow
def test_drips_and_dead_hosts_cost_a_part_one_deadline_at_most(tmp_path: Path) -> None:
    """64 hosts that send a byte a second, and 5 % dead ones: half have no name server, half take no connection.

    All limits are to each other as the defaults are. Sixteen threads would need 19 s for what 64 need 9 s for.
    """
    num_good, num_dead, deadline = 400, 24, 12.0

    def behaviour(name: str) -> Behaviour:
        return always(is_silent=True) if name.startswith("nameless") else always("127.0.0.1")

    with hostile_server() as server, dead_port() as dead, name_server(other=behaviour) as names:
        good = [f"http://host-{number % 100}.test:{server.port}/photo/{number}" for number in range(num_good)]
        slow_hosts = [f"http://drip-{number}.test:{server.port}/trickle" for number in range(64)]
        silent = [f"http://nameless-{number}.test:{server.port}/good" for number in range(num_dead // 2)]
        silent += [f"http://dead-{number}.test:{dead}/good" for number in range(num_dead // 2)]
        config: dict[str, Any] = {
            "name_servers": (names.address,),
            "allow_ports": (server.port, dead),
            "connect_timeout_seconds": deadline / 4,
            "image_deadline_seconds": deadline,
            "rate_grace_seconds": deadline / 4,
            "retries": 1,
        }

        def seconds(name: str, urls: list[str]) -> tuple[float, dict[str, int], int]:
            (tmp_path / name).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TMPDIR", str(tmp_path / name))
                began = time.monotonic()
                run = download(tmp_path / name, make_samples(urls), **config)
            count = run.result.counts["rows"]
            return time.monotonic() - began, dict(count.dropped), count.num_out

        photo(0)
        clean, dropped, kept = seconds("clean", good)
        assert (dropped, kept) == ({}, num_good)
        hostile, dropped, kept = seconds("hostile", slow_hosts + silent + good)  # the worst order
    assert dropped == {"too_slow": 64, "dns_failed": num_dead // 2, "connect_failed": num_dead // 2}
    assert kept == num_good
    logger.info("clean_seconds=%.1f hostile_seconds=%.1f deadline_seconds=%.1f", clean, hostile, deadline)
    assert hostile <= 1.2 * clean + deadline
