"""The cost of fetching and storing a photo: our download stage against plain img2dataset 1.47.0.

    python -m tests.benchmarks.download [--photos 2000] [--rounds 5] [--modes original reencoded scaled] [--closing]

Both fetch the same URLs from the same server, a separate process, with the same number of threads, and store the same:
the original bytes, or the image at 256 pixels and quality 95. They alternate (A B A B ...). The measure is CPU seconds
of the process and all its children, with wall time beside it. Ten URLs give the fixed cost of a run; "marginal" is the
cost per photo without it, "whole" with it.

The server keeps connections open on request: ours does so, img2dataset closes each after one photo. With `--closing` it
closes every connection itself.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.download_sides import Job
from tests.benchmarks.photos import ROOT, real_photos, web_photos

NUM_ORIGINS = 16
FEW = 10
PEER_MODE = {"original": "original", "reencoded": "reencoded", "scaled": "reencoded"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run: CPU and wall seconds, and the peak memory of its largest process."""

    cpu_seconds: float
    wall_seconds: float
    max_rss_bytes: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One mode: costs of every round, ours and the peer's, of `num_photos` and of ten."""

    mode: str
    num_photos: int
    ours: Sequence[Cost]
    peers: Sequence[Cost]
    ours_few: Sequence[Cost]
    peers_few: Sequence[Cost]

    @property
    def fixed(self) -> tuple[float, float]:
        """CPU seconds of ten URLs: ours, the peer's."""
        return _cpu(self.ours_few), _cpu(self.peers_few)

    @property
    def whole(self) -> tuple[float, float]:
        """CPU seconds per photo, start-up included: ours, the peer's."""
        return _cpu(self.ours) / self.num_photos, _cpu(self.peers) / self.num_photos

    @property
    def marginal(self) -> tuple[float, float]:
        """CPU seconds per photo beyond the first ten: ours, the peer's."""
        more = self.num_photos - FEW
        return (_cpu(self.ours) - self.fixed[0]) / more, (_cpu(self.peers) - self.fixed[1]) / more


def _cpu(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.cpu_seconds for cost in costs)


@contextmanager
def photo_server(folder: Path, closes: bool = False) -> Iterator[list[str]]:
    """Base URLs at which the photos in `folder` are served by another process until the block ends."""
    module = ["-m", "tests.benchmarks.photo_server"]
    command = [sys.executable, *module, str(folder), str(NUM_ORIGINS), *(["closes"] if closes else [])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin
        assert server.stdout
        try:
            yield [f"http://127.0.0.1:{port}" for port in json.loads(server.stdout.readline())]
        finally:
            server.stdin.close()
            server.wait(10)


def run_side(side: str, job: Job, profile: str | None = None) -> Cost:
    """The cost of `side` for `job`, in a separate process; RuntimeError with the end of its log if it fails."""
    folder = Path(job.folder)
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(dataclasses.asdict(job)))
    module = ["-m", "tests.benchmarks.download_sides"]
    command = [sys.executable, *module, side, str(folder / "job.json")]
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)  # counts the children that the child has waited for
        child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if child.returncode:
        raise RuntimeError(f"{side} {job.mode} ended with {child.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
    shutil.rmtree(folder)
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss << 10)


def compare(mode: str, num_photos: int, rounds: int, bases: Sequence[str], scratch: Path) -> Comparison:
    """Rounds of ours and the peer's in turn, many photos and few."""
    costs: dict[tuple[str, int], list[Cost]] = {}
    for number in range(rounds):
        for count in (num_photos, FEW):
            urls = [f"{bases[index % len(bases)]}/{index}.jpg" for index in range(count)]
            for side in ("ours", "peer"):
                folder = scratch / f"{mode}-{number}-{count}-{side}"
                job = Job(urls, str(folder), mode if side == "ours" else PEER_MODE[mode])
                costs.setdefault((side, count), []).append(run_side(side, job))
    return Comparison(
        mode,
        num_photos,
        ours=costs["ours", num_photos],
        peers=costs["peer", num_photos],
        ours_few=costs["ours", FEW],
        peers_few=costs["peer", FEW],
    )


def run(num_photos: int, rounds: int, modes: Sequence[str], closes: bool = False) -> Iterator[Comparison]:
    """A comparison for each of `modes`, with a server that `closes` every connection or one that does not."""
    with tempfile.TemporaryDirectory(prefix="x2vlm-benchmark-") as name:
        scratch = Path(name)
        (scratch / "photos").mkdir()
        for index, photo in enumerate(web_photos(real_photos())):
            (scratch / "photos" / f"{index:04d}.jpg").write_bytes(photo)
        with photo_server(scratch / "photos", closes) as bases:
            for mode in modes:
                yield compare(mode, num_photos, rounds, bases, scratch)


def describe(comparison: Comparison) -> str:
    """A comparison as a few lines of text."""
    lines = [f"{comparison.mode}: {comparison.num_photos} photos, medians of {len(comparison.ours)} rounds"]
    named = [
        ("CPU ms/photo, whole", *(1e3 * value for value in comparison.whole)),
        ("CPU ms/photo, marginal", *(1e3 * value for value in comparison.marginal)),
        (f"CPU s, {FEW} URLs in all", *comparison.fixed),
        ("wall s", *(statistics.median(c.wall_seconds for c in side) for side in (comparison.ours, comparison.peers))),
        ("peak RSS MB", *(max(c.max_rss_bytes for c in side) / 1e6 for side in (comparison.ours, comparison.peers))),
    ]
    for name, ours, peers in named:
        lines.append(f"  {name:24} ours {ours:8.3f}   img2dataset {peers:8.3f}   ratio {ours / peers:6.3f}")
    for name, costs in (("ours", comparison.ours), ("img2dataset", comparison.peers)):
        lines.append(f"  CPU s of each round, {name}: {' '.join(f'{cost.cpu_seconds:.2f}' for cost in costs)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU per photo against img2dataset")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=list(PEER_MODE), default=list(PEER_MODE))
    parser.add_argument("--closing", action="store_true", help="the server closes every connection after one answer")
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    for comparison in run(arguments.photos, arguments.rounds, arguments.modes, arguments.closing):
        print(describe(comparison), flush=True)


if __name__ == "__main__":
    main()
