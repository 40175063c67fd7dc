"""The child process of a download: fetches and decodes what strangers send, and may die of it.

Run as `python -m pipelines.s1_download.worker FOLDER`. The folder holds `job.json`; results go to its journal as they
come and payloads to the media folder beside it, so whatever was finished stays finished. Images go through img2dataset,
under whose `urlopen` lies our transport; videos go through the same transport directly.
"""

import ctypes
import hashlib
import logging
import os
import resource
import signal
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.guard import Policy
from pipelines.s1_download.job import (
    JOURNAL_NAME,
    MEDIA_FOLDER,
    OUT_OF_MEMORY_STATUS,
    Item,
    Journal,
    Result,
    read_job,
    read_journal,
)
from pipelines.s1_download.metadata import strip_metadata
from pipelines.s1_download.transport import Fetcher, Outcome, guarded_opener
from pipelines.s1_download.verify import body_hashes
from pipelines.s1_download.yt_dlp import YtDlp, check_command
from x2vlm.data.domains import registered_domain
from x2vlm.data.media import open_image, probe_image, probe_orientation
from x2vlm.data.video import frames_blob, sample_clip
from x2vlm.errors import InvalidSample, StageFailed
from x2vlm.samples import Media

# img2dataset's dependencies import these if they can: 8.5 s of CPU and 3.7 GB of address space, not 4 s and 0.9 GB.
NEVER_NEEDED = ("torch", "ray", "pyspark")
logger = logging.getLogger(__name__)


def run_job(folder: Path) -> None:
    """Do the job in `folder`: afterwards its journal has a result for every item."""
    config, policy, items = read_job(folder)
    images = [item for item in items if item.kind == "image"]
    if images:
        for name in NEVER_NEEDED:
            sys.modules[name] = None  # type: ignore[assignment] # makes its import fail, which all who try expect
        import img2dataset.downloader  # noqa: F401 (what its imports map must not count against the limit)
    limit_address_space(config.address_space_headroom_bytes)
    worker = Worker(folder, config, policy)
    if images:
        worker.fetch_images(images)
    worker.fetch_videos([item for item in items if item.kind == "video"])
    missing = {item.id for item in items} - set(read_journal(folder / JOURNAL_NAME)[0])
    if missing:
        raise StageFailed(f"{len(missing)} items have no result, first {min(missing)}; this is a bug, please report it")


class Worker:
    """One child's state: where it writes and how it fetches."""

    def __init__(self, folder: Path, config: DownloadConfig, policy: Policy) -> None:
        self._folder, self._config = folder, config
        self._journal = Journal(folder / JOURNAL_NAME)
        self._fetchers = {kind: Fetcher(policy, config.limits(kind), config.manners()) for kind in ("image", "video")}
        command = check_command(config, "download")
        self._yt_dlp = YtDlp(command, config, policy) if command else None

    def fetch_images(self, items: Sequence[Item]) -> None:
        """Fetch each distinct URL once through img2dataset, decode it, and journal a result for every item."""
        items_of_url: defaultdict[str, list[Item]] = defaultdict(list)
        for item in items:
            items_of_url[item.url].append(item)
        outcomes: dict[str, Outcome] = {}

        def fetch(url: str) -> Outcome:
            self._journal.started([item.id for item in items_of_url.get(url, [])])
            outcome = self._fetchers["image"].fetch(url)
            outcomes[url] = replace(outcome, body=None)  # img2dataset holds the only copy
            return outcome

        def take(url: str, body: bytes | None, message: str) -> None:
            outcome = outcomes.pop(url, None) or Outcome(url, status="bad_response", reason=message)
            if body is None and outcome.status == "ok":
                # img2dataset refused what our transport took; the one reason it has is the site's opt-out.
                outcome.status, outcome.reason = "opted_out", message
            for item in items_of_url[url]:
                self._finish(item, outcome, body)

        urllib.request.install_opener(guarded_opener(fetch))
        download_with_img2dataset(list(items_of_url), self._folder, self._config, take)

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

    def _fetch_video(self, url: str) -> Outcome:
        """Directly, or through yt-dlp where the page holds the video."""
        if self._yt_dlp is not None and registered_domain(url) in self._config.yt_dlp_domains:
            return self._yt_dlp.fetch(url)
        return self._fetchers["video"].fetch(url)

    def _finish(self, item: Item, outcome: Outcome, body: bytes | None) -> None:
        """Decode what came for `item`, store its payload and journal what became of it."""
        status, reason, media = outcome.status, outcome.reason, None
        if body is not None and status == "ok":
            try:
                media, payload = self._inspect(item, body)
                self._store(f"{media.sha256}.{media.format}", payload)
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
                fetched_at=datetime.now(UTC).replace(microsecond=0).isoformat(),
                bytes=len(body or b""),
                hashes=body_hashes(item, body, media) if body else {},
                media=media,
            )
        )

    def _inspect(self, item: Item, body: bytes) -> tuple[Media, bytes]:
        """What `body` is and what to store of it; InvalidSample if it does not decode to the end."""
        digest = hashlib.sha256(body)
        if item.kind == "image":
            image_format, width, height = probe_image(body)
            open_image(body)
            media = Media("image", digest.hexdigest(), len(body), width, height, image_format)
            return media, without_metadata(body, media) if self._config.strip_metadata else body
        config = self._config
        clip = sample_clip(
            body,
            config.frames_per_second,
            item.start_seconds,
            item.end_seconds,
            config.max_frame_short_edge,
            config.clip_limits(),
        )
        if item.start_seconds is not None or item.end_seconds is not None:
            # Two clips of one video are two media: the range is part of their identity.
            digest.update(f"#t={item.start_seconds},{item.end_seconds}".encode())
        sha256, size = digest.hexdigest(), len(body)
        media = Media("video", sha256, size, clip.width, clip.height, "frames", num_frames=len(clip.frames))
        return media, frames_blob(clip)

    def _store(self, name: str, payload: bytes) -> None:
        """Payloads are named by content and appear whole or not at all."""
        path = self._folder.parent / MEDIA_FOLDER / name
        if not path.exists():
            temporary = path.with_name(f".{name}.{os.getpid()}")
            temporary.write_bytes(payload)
            temporary.replace(path)


def without_metadata(body: bytes, media: Media) -> bytes:
    """`body` with its orientation as its only metadata; InvalidSample with rule metadata_unreadable if that fails."""
    stripped = strip_metadata(body, media.format, probe_orientation(body))
    if stripped != body and probe_image(stripped) != (media.format, media.width, media.height):
        raise InvalidSample("metadata_unreadable", "without its metadata the picture would have another size")
    return stripped


def download_with_img2dataset(urls: Sequence[str], folder: Path, config: DownloadConfig, take: Any) -> None:
    """Run `urls` through img2dataset's Downloader as one shard; `take(url, body or None, message)` gets every outcome.

    Its thread pool, its X-Robots-Tag check and its calls of `urlopen` are used; its process pool, its re-encoding and
    its file formats are not. It calls `take` from the calling thread.
    """
    import pyarrow as pa
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    errors: list[BaseException] = []

    class Taker:
        """img2dataset's idea of a writer."""

        def __init__(self, *layout: object) -> None:
            pass

        def write(self, body: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
            try:
                take(meta["url"], body, meta["error_message"] or "")
            except BaseException as error:  # img2dataset would print it and go on
                errors.append(error)
                raise

        def close(self) -> None:
            pass

    shard = folder / "urls.arrow"
    table = pa.table({"url": pa.array(urls, pa.string())})
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    downloader = Downloader(
        sample_writer_class=Taker,
        resizer=Resizer(0, "no", False, encode_format="jpg", disable_all_reencoding=True),
        thread_count=config.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url"],
        timeout=config.image_deadline_seconds,
        number_sample_per_shard=max(2, len(urls)),
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # our transport retries what may pass, within one deadline
        user_agent_token=config.user_agent_token,
        disallowed_header_directives=list(config.opt_out_directives) or None,
    )
    finished, _ = downloader((0, str(shard)))
    if errors:
        raise errors[0]
    if not finished:
        raise StageFailed("img2dataset failed on a shard; its traceback is above")


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
    """Have the kernel kill this process when its parent goes, so that a killed driver leaves nobody fetching."""
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
    os._exit(0)  # a resolver thread that still waits must not hold us up


if __name__ == "__main__":
    main()
