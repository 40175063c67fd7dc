"""What decoding one clip may cost, and the counters that end it.

Costs are counted (packets, pixels, bytes read), so that the same file has the same verdict on every machine. CPU time
is the last resort, for what no count foresees: it is far above what a clip within the counts takes.
"""

import time
from dataclasses import dataclass, field
from io import BytesIO

from x2vlm.errors import InvalidSample

EXTRA_SECONDS = 60.0  # a late clip is decoded from the keyframe before it, so each is allowed a minute more than asked


@dataclass(frozen=True)
class ClipLimits:
    """Limits above which a clip is refused. Pixels and CPU seconds are those of a clip of `max_seconds`."""

    max_seconds: float = 600.0  # of the clip, not of the whole video
    max_decoded_frames: int = 200_000
    max_pixels: int = 36_000_000  # of a frame; 8K is 33 million. A decoder keeps up to 17 of them, 54 MB each
    max_total_pixels: int = (
        80_000_000_000  # decoded; ten minutes of 1080p at 60 frames a second have 75 thousand million
    )
    max_cpu_seconds: float = 660.0
    max_kept_pixels: int = 200_000_000  # of all kept frames after shrinking, at one a second: 800 MB in Pillow
    max_streams: int = 100  # subtitles and fonts count
    max_index_entries: int = 2_000_000  # that a header announces: samples, fragments, edits
    max_bytes_read: int = 1 << 30  # beside 4 times the file itself: a demuxer that goes back and forth

    def share(self, seconds: float) -> float:
        """The fraction of the totals that a clip of `seconds` may use: it grows with what was asked for."""
        return (min(max(seconds, 0.0), self.max_seconds) + EXTRA_SECONDS) / (self.max_seconds + EXTRA_SECONDS)


@dataclass
class Budget:
    """What one clip has used. Every `spend_*` raises InvalidSample with rule decode_budget_exceeded."""

    limits: ClipLimits
    seconds: float  # asked for, or what of it the file has
    file_bytes: int = 0
    pixels: int = 0
    packets: int = 0
    packet_bytes: int = 0
    kept_pixels: int = 0
    started: float = field(default_factory=time.thread_time)

    def spend_packet(self, num_bytes: int) -> None:
        """One packet of the clip was read."""
        self.packets += 1
        self.packet_bytes += num_bytes
        if self.packets > self.limits.max_decoded_frames + 1000:  # some carry no frame
            raise InvalidSample("too_long", f"more than {self.limits.max_decoded_frames} frames")
        if self.packet_bytes > 2 * self.file_bytes + (64 << 20):  # packets of Matroska may be packed
            raise InvalidSample("decode_budget_exceeded", f"{self.packet_bytes} bytes of packets")

    def check_pixels(self, pixels: int) -> None:
        """Refuse a clip that is known to decode to so many pixels."""
        if pixels > (allowed := self.limits.max_total_pixels * self.limits.share(self.seconds)):
            raise InvalidSample(
                "decode_budget_exceeded",
                f"{pixels:.4g} pixels to decode for {self.seconds:.0f} s, at most {allowed:.4g}",
            )

    def spend_frame(self, pixels: int) -> None:
        """One frame of `pixels` was decoded."""
        self.pixels += pixels
        self.check_pixels(self.pixels)
        self.check_time()

    def keep(self, pixels: int, frames_per_second: float) -> None:
        """One frame is kept in memory until the clip ends; who asks for more a second pays for more."""
        self.kept_pixels += pixels
        if self.kept_pixels > self.limits.max_kept_pixels * max(1.0, frames_per_second):
            raise InvalidSample("decode_budget_exceeded", f"{self.kept_pixels} pixels in frames to keep")

    def check_time(self) -> None:
        """Refuse a clip that takes too much CPU time of this thread."""
        used = time.thread_time() - self.started
        if used > (allowed := self.limits.max_cpu_seconds * self.limits.share(self.seconds)):
            raise InvalidSample("decode_budget_exceeded", f"{used:.0f} CPU seconds, at most {allowed:.0f}")


class MeteredBytes(BytesIO):
    """A file in memory whose reader is stopped when it reads too much or takes too long.

    Demuxers work for a long time inside one call; this is where they can be reached. They read 32 kB at a time.
    """

    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(data)
        self._budget = budget
        self._left = 4 * len(data) + budget.limits.max_bytes_read
        self._refused = False

    def read(self, size: int | None = -1, /) -> bytes:
        """As of BytesIO; InvalidSample once the budget is used up, and the end of the file from then on."""
        if self._refused:  # PyAV keeps the first exception and prints every further one
            return b""
        data = super().read(size)
        self._left -= max(len(data), 1024)
        try:
            if self._left < 0:
                raise InvalidSample("decode_budget_exceeded", "the file is read over and over")
            self._budget.check_time()
        except InvalidSample:
            self._refused = True
            raise
        return data


DEFAULT_LIMITS = ClipLimits()
