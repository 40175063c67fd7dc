"""The frames of the asked seconds of a container that FFmpeg reads.

Packets are read before they are decoded: that costs a thousandth of decoding, finds the keyframe before the asked
start without trusting an index, and tells what decoding would cost before it begins.
"""

import errno
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from x2vlm.data.media.clips.budget import Budget, ClipLimits, MeteredBytes
from x2vlm.data.media.clips.containers import CODEC_WHITELIST, CONTAINERS, VIDEO_CODECS
from x2vlm.data.media.clips.frames import FrameConverter, display_size
from x2vlm.data.media.clips.structure import breaks_off, check_header
from x2vlm.data.media.images import BROKEN_FILE_ERRORS
from x2vlm.errors import InvalidSample

# The times of a file count from its video's first frame: sound begins some hundredths of a second before or after it.
# A video that begins this much later is meant to: a player shows nothing until then, and captions count those seconds.
LATE_START_SECONDS = 1.0


@dataclass(frozen=True)
class Wanted:
    """What is asked of a clip: seconds from `start` (0 at the beginning of the file) to before `end`."""

    start: float
    end: float  # infinite: to the end of the video
    frames_per_second: float
    max_short_edge: int | None
    choose: Callable[[int], Sequence[int]] | None = None  # of how many frames, which; the others are not kept


@dataclass(frozen=True)
class SampledClip:
    """Upright frames with their times in the file in seconds, and the upright, displayed size of the original."""

    frames: tuple[Image.Image, ...]
    timestamps: tuple[float, ...]
    width: int
    height: int


@dataclass
class _Progress:
    """What the decoding of one clip has seen: whether the file ended, and whether what it ended with was whole."""

    ran_out: bool = False
    is_last_corrupt: bool = False
    previous: tuple[float, Any] | None = None


class _Recount(Exception):
    """The clip has another number of frames than its packets made expect."""


def decode_clip(data: bytes, demuxer: str, wanted: Wanted, limits: ClipLimits) -> SampledClip:
    """The frames of `wanted`; InvalidSample with a rule of `x2vlm.data.media.video.sample_clip`."""
    import av  # FFmpeg: training reads stored frames, on machines that need not have it

    check_header(data, demuxer, limits)
    budget = Budget(limits, min(wanted.end - wanted.start, limits.max_seconds), len(data))
    options = {
        "protocol_whitelist": "none",
        "codec_whitelist": CODEC_WHITELIST,
        "max_streams": str(limits.max_streams),
    }
    count = None
    try:
        for _ in range(2):
            file = MeteredBytes(data, budget)
            with av.open(file, format=demuxer, options=options, metadata_errors="replace") as container:
                try:
                    return _decode(data, container, demuxer, wanted, budget, count)
                except _Recount as error:
                    count = error.args[0]
    except InvalidSample:
        raise
    except (av.error.FFmpegError, *BROKEN_FILE_ERRORS) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN):
            raise InvalidSample("out_of_memory", str(error)) from None
        raise InvalidSample("decode_failed", f"{type(error).__name__}: {error}") from None
    raise InvalidSample("decode_failed", "the number of its frames changes from one reading to the next")


def _decode(data: bytes, file: Any, demuxer: str, wanted: Wanted, budget: Budget, count: int | None) -> SampledClip:
    stream = _video_stream(file, budget.limits)
    origin = _origin(file, stream)
    ends = _declared_end(file, stream, origin)
    seconds = min(wanted.end, ends) - wanted.start
    if budget.limits.max_seconds < seconds < math.inf:
        raise InvalidSample("too_long", f"{seconds:.0f} seconds, at most {budget.limits.max_seconds}")
    budget.seconds = min(budget.seconds, max(seconds, 0.0))
    packets = _Packets(file, stream, demuxer, origin, wanted, budget)
    count = packets.expected_frames(wanted) if count is None else count
    chosen = None if wanted.choose is None else wanted.choose(count)
    progress = _Progress()
    converter = FrameConverter(stream.sample_aspect_ratio, wanted.max_short_edge)
    images: dict[int, Image.Image] = {}
    times, size = [], (0, 0)
    frames = _frames(packets, stream, origin, wanted.start, budget, progress)
    for number, (time, frame) in enumerate(_nearest(frames, wanted, progress)):
        times.append(time)
        if chosen is None or number in chosen:
            _check_frame(*display_size(frame.width, frame.height, stream.sample_aspect_ratio), budget.limits)
            images[number], *shown = converter.image_of(frame)
            size = (shown[0], shown[1])
            budget.keep(images[number].width * images[number].height, wanted.frames_per_second)
    _check_end(data, demuxer, stream, wanted, progress, len(times))
    if chosen is None:
        return SampledClip(tuple(images.values()), tuple(times), *size)
    if len(times) != count:
        raise _Recount(len(times))
    return SampledClip(tuple(images[n] for n in chosen), tuple(times[n] for n in chosen), *size)


def _check_end(data: bytes, demuxer: str, stream: Any, wanted: Wanted, progress: _Progress, num_frames: int) -> None:
    """InvalidSample unless there are frames, and if they ran out, they did so at the end of a whole file."""
    if progress.ran_out:
        evidence = "its last frame is incomplete" if progress.is_last_corrupt else breaks_off(data, demuxer, stream)
        if evidence:
            seen = f"after {progress.previous[0]:.1f} seconds" if progress.previous else "before the first frame"
            raise InvalidSample("decode_failed", f"the file breaks off {seen}: {evidence}")
    if not num_frames:
        rule = "clip_out_of_range" if wanted.start > 0 or progress.previous else "decode_failed"
        raise InvalidSample(rule, f"no frame from {wanted.start} seconds on")


def _video_stream(file: Any, limits: ClipLimits) -> Any:
    """The first video that is no cover image; its decoder limited, all other streams discarded."""
    from av.stream import Discard, Disposition

    videos = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        kinds = ", ".join(sorted({stream.type for stream in file.streams})) or "nothing"
        raise InvalidSample("not_a_video", f"the file has no video stream but {kinds}")
    stream = videos[0]
    if stream.codec_context is None:
        raise InvalidSample("format_unsupported", "FFmpeg does not know its video codec")
    if (name := stream.codec_context.codec.canonical_name) not in VIDEO_CODECS:
        raise InvalidSample("format_unsupported", f"video codec {name}; read are {', '.join(VIDEO_CODECS)}")
    _check_frame(stream.codec_context.width, stream.codec_context.height, limits)
    for other in file.streams:
        if other is not stream:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1
    # A size may change in the middle. Decoders count their margins, too.
    stream.codec_context.options = {"max_pixels": str(2 * limits.max_pixels + 1_000_000)}
    return stream


def _check_frame(width: int, height: int, limits: ClipLimits) -> None:
    if width * height > limits.max_pixels:
        raise InvalidSample("too_many_pixels", f"frames of {width} x {height}, at most {limits.max_pixels} pixels")


def _origin(file: Any, stream: Any) -> float:
    """The second of the file's own clock that counts as 0."""
    if stream.start_time is None:
        return 0.0
    video = float(stream.start_time * stream.time_base)
    begins = (file.start_time or 0) / 1e6 if file.start_time is not None else video
    return begins if video - begins > LATE_START_SECONDS else video


def _declared_end(file: Any, stream: Any, origin: float) -> float:
    """Where the video (not its sound) ends by the file's own words, in seconds; infinite if it does not say."""
    if stream.duration:
        begins = float(stream.start_time * stream.time_base) - origin if stream.start_time is not None else 0.0
        return begins + float(stream.duration * stream.time_base)
    if clock := stream.metadata.get("DURATION", ""):  # Matroska: the end on the clock of the file
        try:
            hours, minutes, seconds = (float(text) for text in clock.split(":"))
            return hours * 3600 + minutes * 60 + seconds - origin
        except ValueError:
            pass
    return (file.duration or math.inf) / 1e6 if len(file.streams) == 1 else math.inf


class _Packets:
    """The packets that the asked seconds need, from the last keyframe at or before the start on."""

    def __init__(self, file: Any, stream: Any, demuxer: str, origin: float, wanted: Wanted, budget: Budget) -> None:
        self._stream, self._origin, self._budget = stream, origin, budget
        base = float(stream.time_base)
        self.has_times = CONTAINERS[demuxer].has_times
        self._start = math.floor((wanted.start + origin) / base)
        self._stop = (wanted.end + origin) / base
        self._too_late = (wanted.start + budget.limits.max_seconds + 1.0 + origin) / base
        self.ran_out = False
        self.first: deque[Any] = deque()
        self._demux = file.demux(stream)
        if wanted.start > 0 and CONTAINERS[demuxer].is_indexed and self._seek(file):
            return
        self._fill()

    def __iter__(self) -> Iterator[Any]:
        """Those that were looked at, then what else is asked for; after the last one `ran_out` is true."""
        while self.first:
            yield self.first.popleft()
        for packet in self._demux:
            if packet.size:
                self._budget.spend_packet(packet.size)
            yield packet
        self.ran_out = True

    def expected_frames(self, wanted: Wanted) -> int:
        """How many frames will be taken, by the times of the packets: exact for a video without errors."""
        base = float(self._stream.time_base)
        times = [_order(packet, shown=True) * base - self._origin for packet in self.first if packet.size]
        known = [time for time in times if math.isfinite(time)]
        last = max(known) if known else len(times) / float(self._stream.average_rate or 25)
        skipped = max(0, math.ceil((min(known, default=0.0) - wanted.start) * wanted.frames_per_second) - 1)
        return max(1, math.floor((min(last, wanted.end) - wanted.start) * wanted.frames_per_second) + 1 - skipped)

    def _seek(self, file: Any) -> bool:
        """Go to the keyframe before the start by the index; false, at the beginning, if it led behind the start."""
        import av

        try:
            file.seek(self._start, stream=self._stream)
            self._fill()
        except av.error.FFmpegError:
            self.first.clear()
        if self.first and self.first[0].is_keyframe and _order(self.first[0], shown=True) <= self._start:
            return True
        file.seek(self._stream.start_time or 0, stream=self._stream, backward=True)
        self.first.clear()
        self._demux = file.demux(self._stream)
        return False

    def _fill(self) -> None:
        """Read until the packets up to the end are there, keeping those from the last usable keyframe on.

        Decoding times never lie behind the times of display: behind the first packet that is decoded after the start
        no keyframe before the start can come.
        """
        area = self._stream.codec_context.width * self._stream.codec_context.height
        may_skip = True
        for packet in self._demux:
            if packet.size:
                self._budget.spend_packet(packet.size)
            order = _order(packet)
            if self.has_times and may_skip and packet.is_keyframe and _order(packet, shown=True) <= self._start:
                self.first.clear()
            may_skip = may_skip and not self._start < order
            self.first.append(packet)
            if not may_skip:
                self._budget.check_pixels(len(self.first) * area)
            if order > self._too_late and self._stop > self._too_late:
                raise InvalidSample("too_long", f"more than {self._budget.limits.max_seconds} seconds")
            if order > self._stop:
                return


def _order(packet: Any, shown: bool = False) -> float:
    """When a packet is decoded (or `shown`), in units of its stream; before everything where it has no time."""
    value = packet.pts if shown and packet.pts is not None else packet.dts
    value = packet.pts if value is None else value
    return -math.inf if value is None else value


def _frames(
    packets: _Packets, stream: Any, origin: float, start: float, budget: Budget, progress: _Progress
) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) in the order of display. A time that goes back is left out: the file's parts were joined."""
    import av

    limits, rate = budget.limits, float(stream.average_rate or 25)
    counted_from, count = 0.0, 0  # for frames without a time
    for number, packet in enumerate(packets):
        if packets.has_times and not number and packet.pts is None and packet.dts is not None:
            counted_from = float(packet.dts * stream.time_base) - origin
        try:
            decoded = packet.decode()
        except av.error.FFmpegError as error:
            _check_frame(stream.codec_context.width, stream.codec_context.height, limits)
            if isinstance(error, av.error.InvalidDataError) and not count and not packet.is_keyframe:
                continue  # a recording that begins between two keyframes
            raise
        if packet.size:
            progress.is_last_corrupt = packet.is_corrupt
        for frame in decoded:
            _check_frame(frame.width, frame.height, limits)
            budget.spend_frame(frame.width * frame.height)
            is_timed = packets.has_times and frame.pts is not None
            time = float(frame.pts * frame.time_base) - origin if is_timed else counted_from + count / rate
            count += 1
            if count > limits.max_decoded_frames or time - start > limits.max_seconds + 1.0:
                raise InvalidSample("too_long", f"{count} frames, {time - start:.0f} seconds and no end")
            progress.is_last_corrupt = progress.is_last_corrupt or frame.is_corrupt
            if progress.previous is None or time >= progress.previous[0]:
                yield time, frame
    progress.ran_out = True


def _nearest(frames: Iterator[tuple[float, Any]], wanted: Wanted, progress: _Progress) -> Iterator[tuple[float, Any]]:
    """(time, frame) nearest to every target, the earlier one on a tie.

    Targets that lie a whole step or more before the first frame have none. Where the last frame is still shown at the
    start, it is taken.
    """
    start, end, rate = wanted.start, wanted.end, wanted.frames_per_second
    step, found = 0, False
    for time, frame in frames:
        target = start + step / rate
        while progress.previous is None and target + 1 / rate <= time and target < end:
            step += 1
            target = start + step / rate
        while time >= target and target < end:
            previous = progress.previous
            is_previous_nearer = previous is not None and target - previous[0] <= time - target
            found = True
            yield previous if previous is not None and is_previous_nearer else (time, frame)
            step += 1
            target = start + step / rate
        progress.previous = (time, frame)
        if time >= end:
            return
    previous = progress.previous
    if not found and previous is not None and previous[0] < start < previous[0] + _shown_seconds(previous[1]):
        yield previous


def _shown_seconds(frame: Any) -> float:
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
