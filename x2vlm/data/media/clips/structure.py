"""What the structure of a clip's file says before and after decoding: header tricks, and whether the file breaks off.

Frames' times say nothing about a truncated file: sound may be longer, the first frame late, the last one held. Evidence
is a box, cluster, page, chunk or packet that ends behind the end of the file, or an index that names one.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from x2vlm.data.media.clips.budget import ClipLimits
from x2vlm.data.media.clips.containers import ts_packet_size
from x2vlm.errors import InvalidSample

MAX_ELEMENTS = 1_000_000  # looked at, in Python: about a second
MAX_BOX_DEPTH = 10  # FFmpeg's own limit
MAX_MATROSKA_INDEX = 16 << 20  # bytes of cues, tags or chapters: FFmpeg keeps 100 bytes for each entry of 10

Box = tuple[bytes, int, int, int]  # type, where its content begins, where it ends by its own size, its depth

_PARENTS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex"))
_SEGMENT, _CLUSTER, _TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
_CUES, _TAGS, _CHAPTERS, _TRACK_ENTRY, _TRACK_TYPE = 0x1C53BB6B, 0x1254C367, 0x1043A770, 0xAE, 0x83
_TOP_LEVEL = frozenset((_CLUSTER, _TRACKS, _CUES, _TAGS, _CHAPTERS, 0x114D9B74, 0x1549A966, 0x1941A469, 0xEC))
MAX_VIDEO_STREAMS = 8  # FFmpeg opens a decoder, with frames of its own, for each


def check_header(data: bytes, demuxer: str, limits: ClipLimits) -> None:
    """InvalidSample for a header that would cost too much to read, or that is the header of a still image."""
    if demuxer == "mov":
        _check_boxes(data, limits)
    elif demuxer == "matroska":
        _check_matroska(data, limits)


def breaks_off(data: bytes, demuxer: str, stream: Any) -> str:
    """What shows that the file lacks its end, "" if nothing does; for a `stream` that ran out before the asked end."""
    match demuxer:
        case "mov":
            return _mov_breaks_off(data, stream)
        case "matroska":
            return _matroska_breaks_off(data)
        case "avi":
            return _riff_breaks_off(data)
        case "flv":
            return _flv_breaks_off(data)
        case "ogg":
            return _ogg_breaks_off(data)
        case "asf":
            return _asf_breaks_off(data)
        case "mpeg":
            return _ps_breaks_off(data)
        case "mpegts":
            size = ts_packet_size(data)
            left = len(data) % size if size else 0
            is_packet = data[len(data) - left :].startswith(b"G") or size == 192
            return f"its last packet has {left} of {size} bytes" if left and is_packet else ""
    return ""


def _boxes(data: bytes, start: int, end: int, depth: int = 0) -> Iterator[Box]:
    """Every box of ISO base media from `start` on, parents before their children."""
    count = 0
    stack = [(start, end, depth)]
    while stack:
        position, end, depth = stack.pop()
        while position + 8 <= end:
            size, kind = struct.unpack_from(">I4s", data, position)
            header = 8
            if size == 1 and position + 16 <= end:
                size, header = struct.unpack_from(">Q", data, position + 8)[0], 16
            elif size == 0:
                size = end - position
            if size < header:
                break
            if (count := count + 1) > MAX_ELEMENTS:
                raise InvalidSample("decode_budget_exceeded", f"more than {MAX_ELEMENTS} boxes")
            yield kind, position + header, position + size, depth
            if kind in _PARENTS and depth < MAX_BOX_DEPTH:
                stack.append((position + size, end, depth))
                position, end, depth = position + header, min(position + size, end), depth + 1
                continue
            position += size


def _check_boxes(data: bytes, limits: ClipLimits) -> None:
    kinds = set()
    num_tracks = num_video = 0
    total, handler = 0, b""
    for kind, start, end, depth in _boxes(data, 0, len(data)):
        kinds.add(kind)
        if kind == b"cmov":
            _check_boxes(_unpacked_moov(data[start:end]), limits)
        elif kind == b"trak":
            num_tracks, handler = num_tracks + 1, b""
        elif kind == b"hdlr" and depth == 3:
            handler = data[start + 8 : start + 12]
            num_video += handler == b"vide"
        else:
            total += _announced(data, kind, start, min(end, len(data)), handler)
        if max(num_tracks, num_video * limits.max_streams // MAX_VIDEO_STREAMS) > limits.max_streams:
            raise InvalidSample("decode_budget_exceeded", f"{num_tracks} tracks, {num_video} of them video")
        if total > limits.max_index_entries:
            raise InvalidSample("decode_budget_exceeded", f"the header announces {total} samples or more")
    if b"meta" in kinds and not kinds & {b"moov", b"moof"}:
        raise InvalidSample("not_a_video", f"a still image (HEIF or AVIF, brand {data[8:12]!r})")


def _announced(data: bytes, kind: bytes, start: int, end: int, handler: bytes) -> int:
    """How many entries of an index FFmpeg would make for a box of few bytes."""
    if kind in (b"stsz", b"stz2") and start + 12 <= end and handler != b"soun":
        return int(struct.unpack_from(">I", data, start + 8)[0])
    if kind in (b"trun", b"stsc", b"elst") and start + 8 <= end:
        return int(struct.unpack_from(">I", data, start + 4)[0])
    if kind in (b"stts", b"ctts") and start + 8 <= end:
        pairs = np.frombuffer(data[start + 8 : end - (end - start) % 8], ">u4")
        # Sound that is not compressed has a "sample" for each value, all alike: FFmpeg indexes its chunks.
        is_plain = handler == b"soun" and len(pairs) <= 2
        return 0 if is_plain else int(pairs[::2].astype(np.int64).sum())
    return 0


def _unpacked_moov(cmov: bytes) -> bytes:
    """The header that a QuickTime file of the nineties keeps packed; at most 16 MB of it."""
    at = cmov.find(b"cmvd")
    try:
        return zlib.decompressobj().decompress(cmov[at + 8 :], 16 << 20) if at >= 0 else b""
    except zlib.error:
        return b""


def _mov_breaks_off(data: bytes, stream: Any) -> str:
    beyond = sum(entry.pos + entry.size > len(data) for entry in stream.index_entries)
    if beyond:
        return f"{beyond} frames of its index lie behind the end of the file"
    for kind, start, end, depth in _boxes(data, 0, len(data)):
        if depth:
            continue
        if kind in (b"moof", b"moov") and end > len(data):
            return f"its last {kind.decode()} box is cut"
        if kind == b"sidx" and (missing := end + _sidx_bytes(data[start:end]) - len(data)) > 0:
            return f"its segment index names {missing} bytes behind the end of the file"
    return ""


def _sidx_bytes(body: bytes) -> int:
    """How many bytes behind itself a segment index describes."""
    try:
        wide = body[0] == 1
        first = struct.unpack_from(">Q" if wide else ">I", body, 20 if wide else 16)[0]
        at = 28 if wide else 20
        count = struct.unpack_from(">H", body, at + 2)[0]
        sizes = np.frombuffer(body, ">u4", count * 3, at + 4)[::3] & 0x7FFFFFFF
        return int(first + sizes.astype(np.int64).sum())
    except (struct.error, ValueError, IndexError):
        return 0


def _ebml(data: bytes, position: int) -> tuple[int, int, int] | None:
    """(id, where the content begins, its size or -1 where unknown) of the EBML element at `position`."""
    if position >= len(data) or not data[position]:
        return None
    id_length = 9 - data[position].bit_length()
    size_at = position + id_length
    if id_length > 4 or size_at >= len(data) or not data[size_at]:
        return None
    length = 9 - data[size_at].bit_length()
    if size_at + length > len(data):
        return None
    value = int.from_bytes(data[size_at : size_at + length], "big") & ((1 << 7 * length) - 1)
    is_unknown = value == (1 << 7 * length) - 1
    return int.from_bytes(data[position:size_at], "big"), size_at + length, -1 if is_unknown else value


def _segment_children(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(id, begin, end) of the elements of the segment; end is behind the file where one is cut, -1 after a broken one.

    Clusters of unknown size are gone through element by element.
    """
    head = _ebml(data, 0)
    segment = _ebml(data, head[1] + head[2]) if head and head[2] >= 0 else None
    if segment is None or segment[0] != _SEGMENT:
        return
    position, size = segment[1], segment[2]
    end = len(data) + 1 if size < 0 else position + size
    for _ in range(MAX_ELEMENTS):
        if position >= end or (size < 0 and position == len(data)):
            return
        element = _ebml(data, position)
        if element is None:
            yield 0, position, len(data) + 1 if position <= len(data) else -1
            return
        kind, begin, length = element
        yield kind, begin, begin + max(length, 0)
        position = begin + max(length, 0)  # into a cluster of unknown size


def _check_matroska(data: bytes, limits: ClipLimits) -> None:
    for kind, begin, end in _segment_children(data):
        if kind in (_CUES, _TAGS, _CHAPTERS) and end - begin > MAX_MATROSKA_INDEX:
            raise InvalidSample("decode_budget_exceeded", f"an index of {end - begin} bytes")
        if kind == _TRACKS:
            _check_tracks(data[begin:end], limits)


def _check_tracks(tracks: bytes, limits: ClipLimits) -> None:
    position = num_tracks = num_video = 0
    while (element := _ebml(tracks, position)) is not None and element[2] >= 0:
        kind, begin, size = element
        position = begin + size
        if kind == _TRACK_ENTRY:
            num_tracks += 1
            entry, at = tracks[begin:position], 0
            while (inner := _ebml(entry, at)) is not None and inner[2] >= 0:
                at = inner[1] + inner[2]
                if inner[0] == _TRACK_TYPE:
                    num_video += entry[inner[1] : at] == b"\x01"
                    break
        if num_tracks > limits.max_streams or num_video > MAX_VIDEO_STREAMS:
            raise InvalidSample("decode_budget_exceeded", f"{num_tracks} tracks, {num_video} of them video")


def _matroska_breaks_off(data: bytes) -> str:
    in_cluster = False
    for kind, _, end in _segment_children(data):
        in_cluster = kind == _CLUSTER or (in_cluster and kind not in _TOP_LEVEL)
        if end > len(data) and (in_cluster or not kind):
            return "its last cluster is cut"
    return ""


def _riff_breaks_off(data: bytes) -> str:
    position = 0
    while position + 12 <= len(data) and data[position : position + 4] == b"RIFF":
        size = struct.unpack_from("<I", data, position + 4)[0]
        end = position + 8 + size
        at = position + 12
        while at + 8 <= min(end, len(data)):
            kind, length = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
            if kind == b"LIST" and data[at + 8 : at + 12] == b"movi" and at + 8 + length > len(data):
                return f"its list of frames lacks {at + 8 + length - len(data)} bytes"
            at += 8 + length + length % 2
        position = end + size % 2
    return ""


def _flv_breaks_off(data: bytes) -> str:
    position = struct.unpack_from(">I", data, 5)[0] + 4 if len(data) >= 9 else len(data)
    for _ in range(MAX_ELEMENTS):
        if position >= len(data):
            return ""
        if position + 11 > len(data):
            return "its last tag is cut"
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        if data[position] & 0x1F not in (8, 9, 18):  # not a tag: padding behind the end
            return ""
        position += 11 + size
        if position > len(data):
            return "its last tag is cut"
        position += 4
    return ""


def _ogg_breaks_off(data: bytes) -> str:
    at = data.rfind(b"OggS")
    if len(data) - at < 27 or len(data) - at < 27 + data[at + 26]:
        return "the header of its last page is cut"
    end = at + 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
    return f"its last page lacks {end - len(data)} bytes" if end > len(data) else ""


def _asf_breaks_off(data: bytes) -> str:
    header_size = struct.unpack_from("<Q", data, 16)[0] if len(data) >= 24 else 0
    if header_size + 24 > len(data):
        return "its header is cut"
    size = struct.unpack_from("<Q", data, header_size + 16)[0]  # of the data object, behind the header
    missing = header_size + size - len(data)
    properties = data.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65", 0, header_size)
    is_live = properties >= 0 and bool(data[properties + 88] & 1)
    return f"its data lack {missing} bytes" if missing > 0 and not is_live else ""


def _ps_breaks_off(data: bytes) -> str:
    """The packets of a program stream say their length; behind the last one may be padding."""
    position = 0
    for _ in range(MAX_ELEMENTS):
        if position >= len(data) or data[position : position + 3] != b"\0\0\x01":
            return ""
        kind = data[position + 3] if position + 4 <= len(data) else 0xFF
        if kind == 0xB9:
            return ""
        if kind == 0xBA:  # a pack, of MPEG-2 with stuffing, or of MPEG-1
            is_mpeg2 = position + 14 <= len(data) and data[position + 4] >> 6 == 1
            position += 14 + (data[position + 13] & 7) if is_mpeg2 else 12
        elif position + 6 > len(data):
            return "its last packet is cut"
        else:
            position += 6 + int.from_bytes(data[position + 4 : position + 6], "big")
        if position > len(data):
            return "its last packet is cut"
    return ""
