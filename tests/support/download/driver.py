"""A driver that downloads images and clips from a hostile server, to be killed from outside or by itself.

python -m tests.support.download.driver STORE SOURCES PORT [POINT COUNT]   (POINT: the step of a commit at whose
COUNT-th time the driver kills itself)
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.flow.run.executor import RunResult, run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.store import Store, no_fault
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD
from pipelines.s1_download.read import READ, ReadConfig
from tests.support.flow.crash import KillAt

EXPERIMENT = "kills"
# Every answer is the same however often and in whatever order it is asked for; "?" keeps addresses apart.
IMAGES = (
    *("png-as-jpeg", "gzip", "noai-other", "hops/3", "no-length"),  # kept
    *("nowhere", "gone", "loop", "to-metadata", "lying-short", "lying-long", "cut-chunk", "gif-bomb", "html"),
    *("svg", "truncated", "empty", "noai", "usage", "brotli", "not-http", "reset"),
)
CLIPS = ("nowhere", "truncated", "empty", "html")


def image_paths(number: int) -> list[str]:
    """Paths on the server of that many images: half of them good and all different, the rest of every kind.

    The first is at `gate`, which the tests can hold shut.
    """
    kinds = itertools.cycle(IMAGES)
    return ["gate"] + [f"good/rgb({n},0,77)" if n % 2 else f"{next(kinds)}?{n}" for n in range(1, number)]


def clip_paths(number: int) -> list[str]:
    """Paths of that many clips, three of four good, each of another length."""
    kinds = itertools.cycle(CLIPS)
    return [f"{next(kinds)}?clip{n}" if n % 4 == 3 else f"clip/{'x' * n}" for n in range(number)]


def write_sources(folder: Path, base: str, num_images: int, num_clips: int) -> None:
    """CC3M-like pairs and a WebVid-like table that point at the server."""
    folder.mkdir(parents=True)
    images = [f"picture {n}\t{base}/{path}\n" for n, path in enumerate(image_paths(num_images))]
    clips = [f"v{n},{base}/{path},clip number {n}\n" for n, path in enumerate(clip_paths(num_clips))]
    (folder / "pairs.tsv").write_text("".join(images))
    (folder / "clips.csv").write_text("videoid,contentUrl,name\n" + "".join(clips))
    (folder / "card.yaml").write_text("id: toy\n")


def download_graph(sources: Path, port: int, rows_per_part: int = 40) -> Graph:
    """read and download of both sources."""
    config = DownloadConfig(
        allow_networks=("127.0.0.1/32",),
        allow_ports=(port,),
        host_max_failures=0,  # it counts failures in the order in which they come, which is no property of the answers
        host_requests_per_second=0.0,
        retries=0,
        threads=8,
    )
    return Graph(
        [
            *_nodes("pictures", "cc3m", sources / "pairs.tsv", config, rows_per_part),
            *_nodes("clips", "webvid", sources / "clips.csv", config, rows_per_part),
        ]
    )


def _nodes(name: str, reader: str, rows: Path, config: DownloadConfig, rows_per_part: int) -> Iterator[Node]:
    read = ReadConfig(reader=reader, source=name, card="toy", files={"rows": rows.name}, rows_per_file=rows_per_part)
    files = {"card": (SourceFile(str(rows.parent / "card.yaml"), "toy"),), "files": (SourceFile(str(rows), "toy"),)}
    yield Node(f"read/{name}", READ, read, files)
    yield Node(f"download/{name}", DOWNLOAD, config, {"rows": (f"read/{name}",)})


def download_all(graph: Graph, store: Store) -> RunResult:
    """Plan and run in this process; each part has its own child process, as always."""
    return run(graph, plan(graph, store, EXPERIMENT), store, InlineRunner())


if __name__ == "__main__":
    uri, folder, port, *kill = sys.argv[1:]
    fault = KillAt(kill[0], int(kill[1])) if kill else no_fault
    download_all(download_graph(Path(folder), int(port)), Store(uri, fault=fault))
