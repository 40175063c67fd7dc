"""Running download jobs in child processes, so that a URL can crash only itself."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.project import HOME_VARIABLE, PROJECT_ROOT
from pipelines.s1_download.child.protocol import (
    GAVE_UP_STATUS,
    JOURNAL_NAME,
    OUT_OF_MEMORY_STATUS,
    Item,
    Result,
    read_journal,
    write_job,
)
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Policy
from x2vlm.errors import StageFailed

# A child handles untrusted bytes: it gets no credentials, proxies or netrc.
PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    # Imports are compiled once per machine, not by every child: for img2dataset 1.3 CPU seconds instead of 2.9.
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    HOME_VARIABLE,  # where a deny list may lie
)
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "4",  # else up to 8 per core, of 64 MB of address space each: more than the headroom
}
LOOK_SECONDS = 1.0  # between reads of a running child's journal
Watch = Callable[[Path], None]  # called periodically with the journal of the running child
logger = logging.getLogger(__name__)


@dataclass
class Run:
    """The children of one part: their folder, their deadline and their results so far."""

    folder: Path
    config: DownloadConfig
    policy: Policy
    deadline: float  # of time.monotonic()
    watch: Watch
    num_children: int = 0
    results: dict[int, Result] = field(default_factory=dict)


def no_watch(journal: Path) -> None:
    """Watches nothing."""


def fetch_items(
    items: Sequence[Item], folder: Path, config: DownloadConfig, policy: Policy, watch: Watch = no_watch
) -> dict[int, Result]:
    """A result for every item, even if children crash; payloads are in files in `folder`.

    If a child crashes, its finished items count and the rest is retried once. If that child crashes too, the items in
    progress are bisected until each runs alone; one that still crashes its child becomes `worker_died`. Items left at
    the part's deadline become `part_deadline_exceeded`. StageFailed if a child fails by itself.
    """
    run = Run(folder, config, policy, time.monotonic() + config.part_deadline_seconds, watch)
    _fetch(run, list(items), retries=1)
    return run.results


def _fetch(run: Run, items: list[Item], retries: int) -> None:
    if not items:
        return
    if time.monotonic() >= run.deadline:
        _give_up(run, items, "part_deadline_exceeded", f"the part took {run.config.part_deadline_seconds:g} seconds")
        return
    in_flight, how_it_ended = _run_child(run, items)
    left = [item for item in items if item.id not in run.results]
    if not left:
        return
    logger.warning("download_child=%s items_left=%d in_flight=%d", how_it_ended or "late", len(left), len(in_flight))
    if how_it_ended is None:
        # The deadline, which is handled in there, or an item without end, which has its result: there are fewer left.
        _fetch(run, left, retries)
    elif retries or (len(left) < len(items) and not in_flight):
        _fetch(run, left, max(0, retries - 1))
    elif not in_flight:
        raise StageFailed(f"download processes end by {how_it_ended} before they begin; is there enough memory?")
    elif len(items) == 1:
        _give_up(run, items, "worker_died", f"the process that fetched and decoded it ended by {how_it_ended}")
    else:
        in_progress = [item for item in left if item.id in in_flight]
        _fetch(run, [item for item in left if item.id not in in_flight], retries=1)
        for group in (in_progress[: len(in_progress) // 2], in_progress[len(in_progress) // 2 :]):
            _fetch(run, group, retries=0)


def _give_up(run: Run, items: Sequence[Item], rule: str, reason: str) -> None:
    for item in items:
        run.results[item.id] = Result(item.id, rule, reason)


def _run_child(run: Run, items: Sequence[Item]) -> tuple[set[int], str | None]:
    """Run one child; the items in progress when it ended, and how it crashed (None: it did not)."""
    folder = run.folder / f"child-{run.num_children}"
    run.num_children += 1
    folder.mkdir()
    write_job(folder, run.config, run.policy, items)
    command = [sys.executable, "-m", "pipelines.s1_download.child.worker", str(folder)]
    environment = child_environment()
    with (folder / "output").open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
        try:
            status = _wait(child, run, folder / JOURNAL_NAME)
        finally:
            child.kill()
            child.wait()
    results, in_flight = read_journal(folder / JOURNAL_NAME)
    run.results |= results
    if status is None or status in (0, GAVE_UP_STATUS):
        return in_flight, None
    if status < 0 or status == OUT_OF_MEMORY_STATUS:
        return in_flight, "out of memory" if status > 0 else signal.Signals(-status).name
    tail = (folder / "output").read_text(errors="replace")[-3000:]
    raise StageFailed(f"the download process ended with status {status}; its last words:\n{tail}")


def _wait(child: subprocess.Popen[bytes], run: Run, journal: Path) -> int | None:
    """The child's exit status, None if the part's deadline comes first; `watch` is called periodically."""
    while (left := run.deadline - time.monotonic()) > 0:
        try:
            return child.wait(timeout=min(LOOK_SECONDS, left))
        except subprocess.TimeoutExpired:
            run.watch(journal)
    return child.poll()


def child_environment() -> dict[str, str]:
    """The environment of a child: what it needs to run, and settings against telemetry of its libraries."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed_on, **QUIET, "PYTHONPATH": str(PROJECT_ROOT)}
