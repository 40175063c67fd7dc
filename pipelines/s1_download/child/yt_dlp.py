"""Videos embedded in pages, through the program yt-dlp: only if card and experiment both allow it.

The program runs as a separate process, without cookies, netrc, configuration, plugins, cache or any circumvention of a
site's controls, with our user agent, and reaches the network only through `guarded_proxy`. It requests one small MP4.
After a 429 the site is not contacted for the rest of the part.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Policy, Refusal, parse_target
from pipelines.s1_download.http.guarded_proxy import GuardedProxy, guarded_proxy
from pipelines.s1_download.http.hosts import HostGate
from pipelines.s1_download.http.resolver import Resolver
from pipelines.s1_download.http.robots import RobotsCache
from pipelines.s1_download.http.transport import NO_TALK_RULES, Fetcher, Outcome
from x2vlm.data.rules.domains import registered_domain
from x2vlm.errors import SourceUnavailable

PAGE_ALLOWANCE_BYTES = 32 << 20  # pages, scripts and manifests in addition to a video
MAX_OUTPUT_BYTES = 1 << 20  # of the program's output
REFUSED_BY_RULE = (
    (r"larger than max-filesize", "body_too_large"),
    (r"Requested format is not available", "no_small_format"),
    (r"(?i)timed out", "deadline_exceeded"),
)


def find_command() -> list[str] | None:
    """The command of yt-dlp: the program on PATH, or the module of this Python; None without either."""
    if program := shutil.which("yt-dlp"):
        return [program]
    return [sys.executable, "-m", "yt_dlp"] if importlib.util.find_spec("yt_dlp") else None


def check_command(config: DownloadConfig, where: str) -> list[str]:
    """The command; SourceUnavailable with the remedy if it is not installed. [] if the config does not use it."""
    if not (config.allow_yt_dlp and config.yt_dlp_domains):
        return []
    if command := find_command():
        return command
    raise SourceUnavailable(
        f"{where}: videos of {', '.join(config.yt_dlp_domains)} are fetched through yt-dlp, which is not here. "
        "Install it on every machine that downloads (`pip install 'x2vlm[yt-dlp]'`), set `allow_yt_dlp: false` to "
        "count these rows as dropped, or give the source a `media_root` with the videos you hold"
    )


def arguments(config: DownloadConfig, proxy_url: str, url: str) -> list[str]:
    """The arguments of yt-dlp. The file is media.<ext> in its working folder; the URL is never parsed as an option."""
    small = f"[ext=mp4][height<=?{config.yt_dlp_max_height}]"
    return [
        *("--ignore-config", "--no-plugin-dirs", "--no-js-runtimes", "--no-remote-components", "--no-cache-dir"),
        *("--no-cookies", "--no-cookies-from-browser", "--xff", "never", "--no-playlist", "--playlist-items", "1"),
        *("--proxy", proxy_url, "--add-headers", f"User-Agent:{config.user_agent}"),
        *("--limit-rate", str(int(config.yt_dlp_bytes_per_second)), "--max-filesize", str(config.max_video_bytes)),
        *("--socket-timeout", f"{config.connect_timeout_seconds:g}", "--concurrent-fragments", "1"),
        *("--retries", "0", "--extractor-retries", "0", "--fragment-retries", "0", "--abort-on-unavailable-fragments"),
        *("--no-part", "--no-mtime", "--no-progress", "--fixup", "never", "--format", f"b{small}/bv{small}"),
        *("--output", "media.%(ext)s", "--", url),
    ]


class YtDlp:
    """Fetches videos as `Fetcher` does, with the same outcomes. Thread-safe."""

    def __init__(self, command: list[str], config: DownloadConfig, policy: Policy) -> None:
        self._command, self._config, self._policy = command, config, policy
        self._limits, self._crawler_policy = config.limits("video"), config.crawler_policy()
        self._resolver = Resolver()
        self._gate = HostGate(config.video_threads, config.yt_dlp_videos_per_second)
        self._robots = RobotsCache(self._crawler_policy.user_agent_token, bool(self._crawler_policy.directives))
        # Fetches robots.txt only, so it must not check robots.txt itself.
        self._pages = Fetcher(policy, config.limits("image"), replace(self._crawler_policy, reads_robots=False))
        self._suspended_domains: set[str] = set()  # domains that have answered 429
        self._lock = threading.Lock()

    def fetch(self, url: str) -> Outcome:
        """The outcome of `url`. Never raises Refusal: that is in the outcome. HTTP status 0: not reported by yt-dlp."""
        outcome, domain = Outcome(url, final_url=url), registered_domain(url)
        try:
            target = parse_target(url)
            self._crawler_policy.denied.check(target)
            if self._crawler_policy.reads_robots:
                outcome.robots = self._robots.check(target, self._robots_txt)
            with self._gate:
                if domain in self._suspended_domains:
                    raise Refusal("http_429", f"{domain} has said 429 before; not asked again in this part")
                outcome.body = self._run(url)
                outcome.content_type = "video/mp4"
        except Refusal as refusal:
            outcome.status, outcome.reason = refusal.rule, refusal.reason
            if refusal.rule == "http_429":
                with self._lock:
                    self._suspended_domains.add(domain)
        return outcome

    def _robots_txt(self, url: str) -> tuple[int, bytes]:
        outcome = self._pages.fetch(url)
        if outcome.status in NO_TALK_RULES:
            raise Refusal(outcome.status, outcome.reason)
        return outcome.http_status, outcome.body or b""

    def _run(self, url: str) -> bytes:
        limits, max_bytes = self._limits, self._config.max_video_bytes + PAGE_ALLOWANCE_BYTES
        with (
            tempfile.TemporaryDirectory(prefix="x2vlm-yt-dlp-") as folder,
            guarded_proxy(
                self._policy, self._resolver, self._crawler_policy.denied, max_bytes, limits.connect_seconds
            ) as proxy,
        ):
            status, output = self._execute(arguments(self._config, proxy.url, url), Path(folder))
            files = sorted(Path(folder).glob("media.*"))
            if status != 0 or len(files) != 1:
                raise _refusal(status, output, proxy, limits.total_seconds)
            if files[0].stat().st_size > self._config.max_video_bytes:
                raise Refusal("body_too_large", f"more than {self._config.max_video_bytes} bytes")
            if not (body := files[0].read_bytes()):
                raise Refusal("empty_body", "0 bytes")
            return body

    def _execute(self, options: list[str], folder: Path) -> tuple[int | None, str]:
        """Exit status (None: timed out) and output. It has no access to a home folder or settings."""
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        environment |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "PYTHONNOUSERSITE": "1", "NO_COLOR": "1"}
        with (folder / "words").open("w+b") as output:
            process = subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,  # so that its child processes end with it
            )
            try:
                status: int | None = process.wait(timeout=self._limits.total_seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # all of them have ended
                process.wait()
            output.seek(0)
            return status, output.read(MAX_OUTPUT_BYTES).decode("utf-8", "replace")


def _refusal(status: int | None, output: str, proxy: GuardedProxy, deadline_seconds: float) -> Refusal:
    """Why there is no video: our own rule if one refused it, else the error of the program."""
    if proxy.refusals:
        return Refusal(proxy.refusals[0].rule, proxy.refusals[0].reason)
    if status is None:
        return Refusal("deadline_exceeded", f"not done in {deadline_seconds:g} seconds")
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    last = (errors or output.splitlines() or [f"exit status {status}"])[-1][:300]
    if found := re.search(r"HTTP Error (\d{3})", output):
        return Refusal(f"http_{found[1]}", last, int(found[1]))
    for pattern, rule in REFUSED_BY_RULE:
        if re.search(pattern, output):
            return Refusal(rule, last)
    return Refusal("yt_dlp_failed", last)
