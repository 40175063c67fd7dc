"""The cost of importing img2dataset's function in a download's child: four methods, each with the same real job.

    python -m tests.benchmarks.img2dataset_import [--rounds 5] [--later 3] [--urls 10]

    spawn, file alone           today's: a new process, `download_function()` imports `img2dataset/downloader.py` alone
    spawn, whole package        a new process with `import img2dataset.downloader`
    fork server, whole package  a process that did so once and forks a child for every job folder
    fork server, file alone     the same with `download_function()`: the saving by forking alone

A job is ten photos of a server in a separate process, all guards on, as the download stage writes it. CPU
seconds are user and system time of the child, and of the fork server where there is one; a server's start is counted
from its launch until it is ready, its memory while it waits for the next job. "later part" is every part of a server
after its first. "ten URLs in all" is the whole stage with its parent (`tests.benchmarks.download`) with today's child,
and for the others that figure with their child in place of today's. Lines are lines with code on them, without
docstrings and comments: of today's import, and of the server below, without what production would need
(concurrent jobs, deadlines, restarts, an end when idle, one for all Ray workers of a machine).

The methods are interleaved; medians are printed with minimum and maximum. The environment is that of a child;
albumentations' query of pypi.org for its newest version is switched off.
"""

import argparse
import dataclasses
import inspect
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TODAY = ("spawn", "file alone")
WAYS = (TODAY, ("spawn", "whole package"), ("fork server", "whole package"), ("fork server", "file alone"))


def import_downloader(imports: str) -> None:
    """The child's modules, and img2dataset's: `imports` is "file alone" or "whole package"."""
    from pipelines.s1_download.child import worker  # noqa: F401

    if imports == "whole package":
        import img2dataset.downloader  # noqa: F401
    else:
        from pipelines.s1_download.child.img2dataset_shard import download_function

        download_function()


def spawned(imports: str, folder: Path) -> None:
    """Be a child that was started for one job."""
    import_downloader(imports)
    from pipelines.s1_download.child.worker import run_job

    run_job(folder)
    os._exit(0)


def serve(imports: str) -> None:
    """Be a fork server: import once, then fork a child for every job folder that a line of stdin names."""
    import gc

    import_downloader(imports)
    gc.freeze()  # or the collector would touch, and so copy, every page in every child
    print(json.dumps({"ready": time.process_time()}), flush=True)
    for line in sys.stdin:
        folder, before = Path(line.strip()), time.process_time()
        if (pid := os.fork()) == 0:
            forked(folder)
        forking = time.process_time() - before
        _, status, usage = os.wait4(pid, 0)
        cpu = forking + usage.ru_utime + usage.ru_stime
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "cpu": cpu}), flush=True)


def forked(folder: Path) -> None:
    """Be a child of the fork server: what `runner` gives a spawned child, and its job."""
    from pipelines.s1_download.child.worker import die_with_parent, run_job

    die_with_parent()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT, 0o644)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(folder)
    try:
        run_job(folder)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@dataclasses.dataclass(frozen=True)
class Cost:
    """CPU and wall seconds of one part."""

    cpu: float
    wall: float


@dataclasses.dataclass
class Figures:
    """Of one way, a number a round (`later`: several). A spawned child has no server: its start and memory are none."""

    start: list[Cost] = dataclasses.field(default_factory=list)
    first: list[Cost] = dataclasses.field(default_factory=list)
    later: list[Cost] = dataclasses.field(default_factory=list)
    memory: list[dict[str, int]] = dataclasses.field(default_factory=list)


class Jobs:
    """Lays down job folders that fetch the same photos, and looks whether they came."""

    def __init__(self, scratch: Path, urls: Sequence[str]) -> None:
        self._scratch, self._urls, self._number = scratch, urls, 0

    def lay_down(self) -> Path:
        from pipelines.s1_download.child.protocol import Item, write_job
        from pipelines.s1_download.config import DownloadConfig

        self._number += 1
        folder = self._scratch / f"job-{self._number}" / "child-0"
        folder.mkdir(parents=True)
        ports = sorted({int(url.split(":")[2].split("/")[0]) for url in self._urls})
        values: dict[str, Any] = {"allow_networks": ["127.0.0.1/32"], "allow_ports": ports, "host_connections": 32}
        config = DownloadConfig.model_validate({**values, "threads": 16, "host_requests_per_second": 1e6})
        write_job(folder, config, config.policy(), [Item(row, "image", url) for row, url in enumerate(self._urls)])
        return folder

    def check(self, folder: Path) -> None:
        """RuntimeError unless every photo of the job was kept."""
        from pipelines.s1_download.child.protocol import JOURNAL_NAME, read_journal

        results, _ = read_journal(folder / JOURNAL_NAME)
        if {result.status for result in results.values()} != {"kept"} or len(results) != len(self._urls):
            raise RuntimeError(f"{folder}: {len(results)} of {len(self._urls)} results, not all of them kept")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.img2dataset_import", *arguments]


def _environment() -> dict[str, str]:
    from pipelines.s1_download.child.runner import child_environment

    return {**child_environment(), "NO_ALBUMENTATIONS_UPDATE": "1"}


def measure_spawned(imports: str, jobs: Jobs, figures: Figures) -> None:
    """One part in a process of its own."""
    folder, began = jobs.lay_down(), time.monotonic()
    child = subprocess.Popen(_command("--spawned", imports, str(folder)), env=_environment(), cwd=folder)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"the child that imports the {imports} ended with {child.returncode}")
    figures.later.append(Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began))
    jobs.check(folder)


def measure_server(imports: str, jobs: Jobs, num_later: int, figures: Figures) -> None:
    """The start of a fork server, its first part, and those after it."""
    began = time.monotonic()
    command = _command("--serve", imports)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=_environment(), cwd=ROOT, text=True, **pipes) as server:  # type: ignore[call-overload]
        ready = json.loads(server.stdout.readline())["ready"]
        figures.start.append(Cost(ready, time.monotonic() - began))
        for number in range(1 + num_later):
            folder, asked = jobs.lay_down(), time.monotonic()
            print(folder, file=server.stdin, flush=True)
            answer = json.loads(server.stdout.readline())
            if answer["status"]:
                raise RuntimeError(f"a forked child failed:\n{(folder / 'output').read_text()}")
            cost = Cost(answer["cpu"], time.monotonic() - asked)
            (figures.later if number else figures.first).append(cost)
            jobs.check(folder)
        figures.memory.append(memory_of(server.pid))


def memory_of(pid: int) -> dict[str, int]:
    """PSS and private memory of a process in bytes, and how much address space it has mapped."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"PSS": kilobytes["Pss"] << 10, "private": private << 10, "mapped": pages * os.sysconf("SC_PAGE_SIZE")}


def code_lines(*objects: Callable[..., Any]) -> int:
    """Lines of these functions that hold code: no docstrings, comments or empty lines."""
    lines = 0
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for function in objects:
        found: set[int] = set()
        previous = tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(function)).readline):
            is_docstring = token.type == tokenize.STRING and previous in (tokenize.INDENT, tokenize.NEWLINE)
            if token.type not in skipped and not is_docstring:
                found |= set(range(token.start[0], token.end[0] + 1))
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                previous = token.type
        lines += len(found)
    return lines


def spread(numbers: Sequence[float], unit: str) -> str:
    """Median, least and most."""
    return f"{statistics.median(numbers):7.2f} {unit} ({min(numbers):.2f} to {max(numbers):.2f})"


def describe(way: tuple[str, str], figures: Figures, whole_today: float, child_today: float) -> str:
    """A way as a few lines of text."""
    later = statistics.median(cost.cpu for cost in figures.later)
    lines = [", ".join(way) + (" (today)" if way == TODAY else "")]
    named = [("start of the server", figures.start), ("first part of a server", figures.first)]
    for name, costs in (*named, ("every part" if way[0] == "spawn" else "later part", figures.later)):
        if costs:
            cpu, wall = spread([cost.cpu for cost in costs], "CPU s"), spread([cost.wall for cost in costs], "s")
            lines.append(f"  {name:24} {cpu:38} wall {wall}")
    rest = whole_today - child_today
    if figures.start:
        first = statistics.median(a.cpu + b.cpu for a, b in zip(figures.start, figures.first, strict=True))
        lines.append(f"  {'ten URLs in all':24} {rest + first:7.2f} CPU s first, {rest + later:.2f} CPU s later")
        saved = child_today - later
        parts = f"after {(first - later) / saved:.1f} parts" if saved > 0 else "never"
        lines.append(f"  {'as cheap as today':24} {parts}")
        for name in ("PSS", "private", "mapped"):
            megabytes = spread([memory[name] / 1e6 for memory in figures.memory], "MB")
            lines.append(f"  {'waiting server, ' + name:24} {megabytes}")
    else:
        lines.append(f"  {'ten URLs in all':24} {rest + later:7.2f} CPU s")
    return "\n".join(lines)


def run(num_rounds: int, num_later: int, num_urls: int) -> None:
    """Measure all ways in turn and print them."""
    from pipelines.s1_download.child import img2dataset_shard as shard
    from tests.benchmarks.download import photo_server, run_side
    from tests.benchmarks.download_sides import Job
    from tests.benchmarks.photos import real_photos, web_photos

    found = {way: Figures() for way in WAYS}
    whole: list[float] = []
    with tempfile.TemporaryDirectory(prefix="x2vlm-benchmark-") as name:
        scratch = Path(name)
        (scratch / "photos").mkdir()
        for index, photo in enumerate(web_photos(real_photos())):
            (scratch / "photos" / f"{index:04d}.jpg").write_bytes(photo)
        with photo_server(scratch / "photos") as bases:
            urls = [f"{bases[index % len(bases)]}/{index}.jpg" for index in range(num_urls)]
            jobs = Jobs(scratch, urls)
            for number in range(num_rounds + 1):
                for how, imports in WAYS:
                    figures = found[how, imports] if number else Figures()  # the first round fills the page cache
                    if how == "spawn":
                        measure_spawned(imports, jobs, figures)
                    else:
                        measure_server(imports, jobs, num_later, figures)
                cost = run_side("ours", Job(urls, str(scratch / f"whole-{number}"), "original"))
                whole += [cost.cpu_seconds] if number else []
    whole_today = statistics.median(whole)
    child_today = statistics.median(cost.cpu for cost in found[TODAY].later)
    for way in WAYS:
        print(describe(way, found[way], whole_today, child_today))
    today = [inspect.unwrap(function) for function in (shard.download_function, shard._without_package_imports)]
    print(f"lines of code: import of today {code_lines(*today)}, fork server {code_lines(serve, forked)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways to import img2dataset's function into a download's child")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--later", type=int, default=3, help="parts of a server after its first")
    parser.add_argument("--urls", type=int, default=10)
    parser.add_argument("--spawned", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.spawned:
        spawned(arguments.spawned[0], Path(arguments.spawned[1]))
    elif arguments.serve:
        serve(arguments.serve)
    else:
        print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, {arguments.rounds} rounds")
        run(arguments.rounds, arguments.later, arguments.urls)


if __name__ == "__main__":
    main()
