"""The child process of a download: fetches and decodes untrusted input; it may crash.

Run as `python -m pipelines.s1_download.child.worker FOLDER`. The folder contains `job.json`; results are written to its
journal as they arrive and payloads to a file beside it, so finished items survive a crash. Images are fetched through
img2dataset, whose `urlopen` uses our transport; videos use the same transport directly.
"""

import ctypes
import gc
import hashlib
import logging
import os
import resource
import signal
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from pipelines.s1_download.child.clips import ClipDecoder
from pipelines.s1_download.child.img2dataset_shard import download_function, run_shard
from pipelines.s1_download.child.protocol import (
    GAVE_UP_STATUS,
    JOURNAL_NAME,
    OUT_OF_MEMORY_STATUS,
    PAYLOADS_NAME,
    Item,
    Journal,
    PayloadFile,
    Place,
    Result,
    read_job,
    read_journal,
)
from pipelines.s1_download.child.verify import body_hashes
from pipelines.s1_download.child.yt_dlp import YtDlp, check_command
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Policy
from pipelines.s1_download.http.resolver import open_resolver
from pipelines.s1_download.http.transport import Fetcher, Outcome, guarded_opener
from pipelines.s1_download.media.encoding import decodes, media_to_store
from x2vlm.data.media.video import frames_blob
from x2vlm.data.rules.domains import registered_domain
from x2vlm.errors import InvalidSample, StageFailed
from x2vlm.samples import MEDIA_KINDS, Media

logger = logging.getLogger(__name__)


def run_job(folder: Path) -> None:
    """Do the job in `folder`: afterwards its journal has a result for every item."""
    config, policy, items = read_job(folder)
    fetched = [item for item in items if item.place is None]
    images = [item for item in fetched if item.kind == "image"]
    if images:
        download_function()  # memory mapped by imports must not count against the limit
    gc.freeze()  # objects of the imports are permanent: collecting through them was 3 % of a run's CPU samples
    limit_address_space(config.address_space_headroom_bytes)
    worker = Worker(folder, config, policy)
    worker.take_places([item for item in items if item.place is not None])
    if images:
        worker.fetch_images(images)
    worker.fetch_videos([item for item in fetched if item.kind == "video"])
    missing = {item.id for item in items} - set(read_journal(folder / JOURNAL_NAME)[0])
    if missing:
        raise StageFailed(f"{len(missing)} items have no result, first {min(missing)}; this is a bug, please report it")


class Worker:
    """The state of a child: its output files and its transport."""

    def __init__(self, folder: Path, config: DownloadConfig, policy: Policy) -> None:
        self._config = config
        self._decoding = threading.Lock()  # one image at a time: a large one takes 200 MB
        self._journal = Journal(folder / JOURNAL_NAME)
        self._payloads = PayloadFile(folder / PAYLOADS_NAME)
        # A later round must query names again that the cache records as non-existent.
        resolver = open_resolver(config.name_servers, folder.parent if config.retry else None)
        crawler_policy = config.crawler_policy()
        self._fetchers = {kind: Fetcher(policy, config.limits(kind), crawler_policy, resolver) for kind in MEDIA_KINDS}
        command = check_command(config, "download")
        self._yt_dlp = YtDlp(command, config, policy) if command else None
        self._clips = ClipDecoder(config, self._give_up)

    def fetch_images(self, items: Sequence[Item]) -> None:
        """Fetch each distinct URL once through img2dataset, inspect it, and journal a result for every item."""
        items_of_url: defaultdict[str, list[Item]] = defaultdict(list)
        for item in items:
            items_of_url[item.url].append(item)
        outcomes: dict[str, Outcome] = {}

        def fetch(url: str) -> Outcome:
            self._journal.started([item.id for item in items_of_url.get(url, [])])
            outcome = self._fetchers["image"].fetch(url)
            outcomes[url] = outcome  # without its body once img2dataset has it
            return outcome

        def take(url: str, body: bytes | None, message: str) -> None:
            outcome = outcomes.pop(url, None) or Outcome(url, status="bad_response", reason=message)
            if body is None and outcome.status == "ok":
                # img2dataset refused what our transport accepted; its only reason is the site's opt-out.
                outcome.status, outcome.reason = "opted_out", message
            for item in items_of_url[url]:
                self._finish(item, outcome, body)

        urllib.request.install_opener(guarded_opener(fetch))
        run_shard(list(items_of_url), self._config, take)

    def fetch_videos(self, items: Sequence[Item]) -> None:
        """Fetch each distinct video once, decode its clips, and journal a result for every item."""
        items_of_url: defaultdict[str, list[Item]] = defaultdict(list)
        for item in items:
            items_of_url[item.url].append(item)

        def fetch(url: str) -> None:
            self._journal.started([item.id for item in items_of_url[url]])
            outcome = self._fetch_video(url)
            for item in items_of_url[url]:
                self._finish(item, outcome, outcome.body)

        with ThreadPoolExecutor(self._config.video_threads) as pool:
            for _ in pool.map(fetch, items_of_url):
                pass

    def take_places(self, items: Sequence[Item]) -> None:
        """Inspect media that lie in local files, in the order of the files, and journal a result for every item."""
        with ThreadPoolExecutor(self._config.video_threads) as pool:
            for _ in pool.map(self._take_place, sorted(items, key=lambda item: item.place or Place("", 0, 0))):
                pass

    def _take_place(self, item: Item) -> None:
        assert item.place is not None
        self._journal.started([item.id])
        limit = self._config.limits(item.kind).max_bytes
        outcome = Outcome(item.url, final_url=item.url)
        if item.place.bytes > limit:
            outcome.status, outcome.reason = "body_too_large", f"{item.place.bytes} bytes, at most {limit}"
        elif not item.place.bytes:
            outcome.status, outcome.reason = "empty_body", "0 bytes"
        self._finish(item, outcome, _read_place(item.place) if outcome.status == "ok" else None)

    def _fetch_video(self, url: str) -> Outcome:
        """Directly, or through yt-dlp if the URL is a page with the video."""
        if self._yt_dlp is not None and registered_domain(url) in self._config.yt_dlp_domains:
            return self._yt_dlp.fetch(url)
        return self._fetchers["video"].fetch(url)

    def _finish(self, item: Item, outcome: Outcome, body: bytes | None) -> None:
        """Inspect the body of `item`, store its payload and journal its result."""
        status, reason, media, stored = outcome.status, outcome.reason, None, None
        if body is not None and status == "ok":
            try:
                media, payload, payload_sha256 = self._inspect(item, body)
                stored = self._payloads.store(payload, payload_sha256)
                status = "kept"
            except InvalidSample as error:
                status, reason = error.rule, error.message
        self._journal.finished(
            Result(
                id=item.id,
                status=status,
                reason=reason[:500],
                final_url=outcome.final_url,
                http_status=outcome.http_status,
                content_type=outcome.content_type,
                opt_out=outcome.opt_out,
                robots=outcome.robots,
                fetched_at=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
                bytes=len(body or b""),
                hashes=body_hashes(item, body, media) if body else {},
                media=media,
                stored=stored,
            )
        )

    def _give_up(self, item: Item, reason: str) -> None:
        """End this process, because `item` would never end; the parent goes on with what has no result."""
        logger.warning("gave_up=%d reason=%r", item.id, reason)
        self._journal.finished(Result(item.id, "decode_budget_exceeded", reason))
        os._exit(GAVE_UP_STATUS)

    def _inspect(self, item: Item, body: bytes) -> tuple[Media, bytes, str]:
        """The media in `body`, the bytes to store and their sha256; InvalidSample if it is unusable."""
        config = self._config
        if item.kind == "image":
            with self._decoding if decodes(config.store) else nullcontext():
                return media_to_store(body, config.store, config.strip_metadata)
        digest = hashlib.sha256(body)
        clip = self._clips.decode(item, body)
        if item.start_seconds is not None or item.end_seconds is not None:
            # Two clips of one video are two media: the range is part of their identity.
            digest.update(f"#t={item.start_seconds},{item.end_seconds}".encode())
        sha256, size = digest.hexdigest(), len(body)
        media = Media("video", sha256, size, clip.width, clip.height, "frames", num_frames=len(clip.frames))
        payload = frames_blob(clip)
        return media, payload, hashlib.sha256(payload).hexdigest()


def _read_place(place: Place) -> bytes:
    """The bytes of a place; fewer where the file has become shorter, which the parent notices by their hash."""
    with open(place.path, "rb", buffering=0) as stream:
        stream.seek(place.offset)
        data = stream.read(place.bytes)
        while len(data) < place.bytes and (more := stream.read(place.bytes - len(data))):
            data += more
    return data


def limit_address_space(headroom_bytes: int) -> None:
    """Let this process map `headroom_bytes` more than it has now; 0 leaves it unlimited."""
    if headroom_bytes == 0:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + headroom_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, so that no child outlives a killed driver."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    folder = Path(sys.argv[1])
    try:
        run_job(folder)
    except MemoryError:
        logger.exception("out_of_memory=true")
        os._exit(OUT_OF_MEMORY_STATUS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a waiting resolver thread must not delay the exit


if __name__ == "__main__":
    main()
