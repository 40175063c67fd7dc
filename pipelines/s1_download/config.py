"""Decisions of the download stage."""

from typing import Literal

import pydantic

from pipelines.project import project_path
from pipelines.s1_download.http.deny_list import DenyList, read_deny_list
from pipelines.s1_download.http.guard import Policy
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.resolver import parse_name_server
from pipelines.s1_download.http.transport import CrawlerPolicy, crawler_policy
from pipelines.s1_download.media.encoding import ImageEncoding, OriginalBytes
from pipelines.s1_download.media.placeholders import read_placeholders
from pipelines.s1_download.retry import parse_classes
from pipelines.s1_download.routes import LocalMedia
from x2vlm.config import FrozenConfig
from x2vlm.data.cards import UrlBase
from x2vlm.data.media.video import ClipLimits

HashMismatch = Literal["keep", "drop"]


class DownloadConfig(FrozenConfig):
    """How media are fetched. Fields marked as excluded are speed and placement and never change a fingerprint."""

    url_base: UrlBase | None = None
    local_media: LocalMedia | None = None  # the user's own copy: then nothing is asked of the web
    # Where the files of a set lie whose rows were read with the places of their media: those bytes are taken. Rows and
    # places decide what comes out, so the folder may move.
    set_root: str | None = pydantic.Field(default=None, exclude=True)
    allow_networks: tuple[str, ...] = ()  # beyond public addresses, for example a mirror in ("10.1.0.0/16",)
    allow_ports: tuple[int, ...] = (80, 443)
    user_agent: str = "x2vlm-download/1.0 (research data set builder; honours robots.txt and X-Robots-Tag)"
    user_agent_token: str = "x2vlm-download"
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex", "noml")
    reads_robots: bool = True  # robots.txt of every site but our own server
    # A file in the project: domains and URL prefixes, one a line. Its bytes count in fingerprints.
    deny_list: str | None = None
    yt_dlp_domains: tuple[str, ...] = ()  # of the card: their pages hold videos
    allow_yt_dlp: bool = False  # whoever says true has read the card's `terms` and may have these videos
    yt_dlp_max_height: int = pydantic.Field(default=360, gt=0)
    # "drop" takes out rows whose bytes are not those the source published a hash of; "keep" only writes them down.
    hash_mismatch: HashMismatch = "keep"
    # A file in the project: sha256 of images that stand for none, one a line. Its bytes count in fingerprints.
    placeholders: str | None = None
    retry: tuple[str, ...] = ()  # of a later round: the classes of failures that it tries again
    max_redirects: int = pydantic.Field(default=5, ge=0)
    retries: int = pydantic.Field(default=1, ge=0, le=10)
    host_max_failures: int = pydantic.Field(default=10, ge=0)  # in a row, then a host is given up; 0: never
    connect_timeout_seconds: float = pydantic.Field(default=5.0, gt=0)
    image_deadline_seconds: float = pydantic.Field(default=20.0, gt=0)
    video_deadline_seconds: float = pydantic.Field(default=300.0, gt=0)
    part_deadline_seconds: float = pydantic.Field(default=4 * 3600.0, gt=0)
    min_bytes_per_second: float = pydantic.Field(default=8192.0, ge=0)
    rate_grace_seconds: float = pydantic.Field(default=5.0, ge=0)
    max_image_bytes: int = pydantic.Field(default=32 << 20, gt=0)
    max_video_bytes: int = pydantic.Field(default=256 << 20, gt=0)
    max_expansion_ratio: float = pydantic.Field(default=200.0, gt=1)
    store: ImageEncoding = OriginalBytes()  # of images: their bytes, or {kind: reencoded, short_edge: 256}
    strip_metadata: bool = True  # GPS and all else but the orientation, from original bytes
    frames_per_second: float = pydantic.Field(default=1.0, gt=0)
    max_frame_short_edge: int = pydantic.Field(default=256, gt=0)
    max_clip_seconds: float = pydantic.Field(default=600.0, gt=0)
    # What decoding a clip of that length may take; a shorter one its share, and that of a minute more.
    max_clip_pixels: int = pydantic.Field(default=80_000_000_000, gt=0)  # 1080p at 60 frames a second has 75e9
    max_clip_cpu_seconds: float = pydantic.Field(default=660.0, gt=0)
    host_connections: int = pydantic.Field(default=8, gt=0, exclude=True)
    host_requests_per_second: float = pydantic.Field(default=20.0, ge=0, exclude=True)  # 0: no limit
    yt_dlp_bytes_per_second: float = pydantic.Field(default=2 << 20, gt=0, exclude=True)
    yt_dlp_videos_per_second: float = pydantic.Field(default=0.5, ge=0, exclude=True)  # 0: no limit
    # Name servers to ask ("192.0.2.1", "[2001:db8::1]:5353"); none: what the system's resolver asks.
    name_servers: tuple[str, ...] = pydantic.Field(default=(), exclude=True)
    # They wait, they do not work: 64 that trickle 1 byte a second hold 64 for as long as the rate's grace lasts.
    threads: int = pydantic.Field(default=64, gt=0, exclude=True)
    video_threads: int = pydantic.Field(default=2, gt=0, exclude=True)
    clip_grace_seconds: float = pydantic.Field(default=30.0, gt=0, exclude=True)  # until the process ends itself
    # What the child may map beyond what its imports need; 0 sets no limit.
    address_space_headroom_bytes: int = pydantic.Field(default=6 << 30, ge=0, exclude=True)

    @pydantic.field_validator("allow_networks")
    @classmethod
    def _networks_are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        import ipaddress

        for network in networks:
            ipaddress.ip_network(network)  # ValueError names the text
        return networks

    @pydantic.field_validator("name_servers")
    @classmethod
    def _name_servers_are_addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            parse_name_server(server)  # ValueError names the text
        return servers

    @pydantic.field_validator("retry")
    @classmethod
    def _classes_are_known(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        return parse_classes(",".join(classes)) if classes else ()

    @property
    def has_own_server(self) -> bool:
        """Whether media come from a folder or bucket of the user's, through a server of our own."""
        return self.url_base is not None or self.local_media is not None

    def policy(self, endpoints: tuple[tuple[str, int], ...] = ()) -> Policy:
        """What may be contacted; `endpoints` are our own servers."""
        return Policy(self.allow_networks, self.allow_ports, endpoints)

    def limits(self, kind: str) -> Limits:
        """Caps and deadlines of one image or video. Our own server needs no restraint."""
        is_video = kind == "video"
        return Limits(
            max_bytes=self.max_video_bytes if is_video else self.max_image_bytes,
            max_ratio=self.max_expansion_ratio,
            connect_seconds=self.connect_timeout_seconds,
            total_seconds=self.video_deadline_seconds if is_video else self.image_deadline_seconds,
            min_bytes_per_second=self.min_bytes_per_second,
            rate_grace_seconds=self.rate_grace_seconds,
            max_redirects=self.max_redirects,
            retries=self.retries,
            host_max_failures=self.host_max_failures,
            host_connections=self.host_connections,
            host_requests_per_second=0.0 if self.has_own_server else self.host_requests_per_second,
        )

    def crawler_policy(self) -> CrawlerPolicy:
        """Who we say we are and what a site may forbid us. Our own server needs no asking."""
        reads_robots = self.reads_robots and not self.has_own_server
        denied, _ = self.denied()
        return crawler_policy(self.user_agent, self.user_agent_token, self.opt_out_directives, reads_robots, denied)

    def denied(self) -> tuple[DenyList, str]:
        """What is never fetched, and the sha256 of the list's file ("" without one)."""
        return (DenyList(), "") if self.deny_list is None else read_deny_list(project_path(self.deny_list))

    def known_placeholders(self) -> tuple[frozenset[str], str]:
        """sha256 of images that stand for none, and the sha256 of the list's file ("" without one)."""
        return (frozenset(), "") if self.placeholders is None else read_placeholders(project_path(self.placeholders))

    def clip_limits(self) -> ClipLimits:
        """What a clip may cost to decode."""
        return ClipLimits(
            max_seconds=self.max_clip_seconds,
            max_total_pixels=self.max_clip_pixels,
            max_cpu_seconds=self.max_clip_cpu_seconds,
        )
