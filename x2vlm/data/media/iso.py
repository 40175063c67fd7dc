"""Still images in ISO base media files (AVIF, HEIC): told from clips, and judged before libavif sees them.

An AVIF names the size of its image, but its AV1 data have a size of their own, which the decoder allocates before
anybody compares the two. So the data of every item are read up to their sequence headers (AV1 specification 5.5).
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from x2vlm.errors import InvalidSample

AVIF_BRANDS = frozenset((b"avif", b"avis", b"avio", b"MA1B", b"MA1A"))
HEIF_BRANDS = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 mif3 msf1 miaf MiHE MiHB MiHA 1pic jpeg jpgs j2ki j2is "
    b"avci avcs vvic vvis evbi evmi unif".split()
)
RAW_BRANDS = frozenset((b"crx ",))
MAX_BRAND_BYTES = 1024
MAX_BOXES = 5000  # of a file, and of entries in its tables
METADATA_ITEMS = (b"Exif", b"mime", b"uri ")
SEQUENCE_HEADER, FRAMES = 1, (3, 6)  # types of AV1 units
HIDDEN = b"free"  # a type of item that no reader looks at


@dataclass
class Items:
    """The items of a file: type and extents (first byte, end) by id, and where the type of each is written."""

    types: dict[int, bytes] = field(default_factory=dict)
    type_positions: dict[int, int] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    primary: int | None = None


def still_format(data: bytes) -> str:
    """ "avif", "heic" (any other still image of the family) or "cr3" (a raw photo) by the brands; "" for a clip.

    A file whose major brand is that of a clip is one, unless it has the brands of an image and no movie box.
    """
    if data[4:8] != b"ftyp":
        return ""
    start, end = _box_extent(data, 0)
    brands = [data[start : start + 4]]
    stop = min(end, start + MAX_BRAND_BYTES)
    brands += [data[at : at + 4] for at in range(start + 8, stop - 3, 4)]
    known = AVIF_BRANDS | HEIF_BRANDS
    if brands[0] in RAW_BRANDS:
        return "cr3"
    if brands[0] not in known and (known.isdisjoint(brands) or _has_movie(data)):
        return ""
    return "heic" if AVIF_BRANDS.isdisjoint(brands) else "avif"


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(type, first byte, first byte of the body, end) of each box; the last may be cut off.

    InvalidSample with rule decode_budget_exceeded after MAX_BOXES, because each costs time.
    """
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        body, stop = _box_extent(data, start)
        yield data[start + 4 : start + 8], start, body, min(stop, end)
        if stop <= start:
            return
        start = stop
    raise InvalidSample("decode_budget_exceeded", f"more than {MAX_BOXES} boxes in an ISO file")


def _box_extent(data: bytes, start: int) -> tuple[int, int]:
    """First byte of the body and end of the box at `start`; the end is before the start of a box with a false size."""
    (size,) = struct.unpack_from(">I", data, start)
    if size == 1 and start + 16 <= len(data):
        (size,) = struct.unpack_from(">Q", data, start + 8)
        return start + 16, start + size if size >= 16 else 0
    if size == 0:
        return start + 8, len(data)
    return start + 8, start + size if size >= 8 else 0


def _has_movie(data: bytes) -> bool:
    try:
        return any(kind in (b"moov", b"moof") for kind, *_ in boxes(data, 0, len(data)))
    except InvalidSample:
        return True


def read_items(data: bytes) -> Items:
    """The items of the first `meta` box; none for a file without one. InvalidSample (decode_failed) if it is broken."""
    items = Items()
    try:
        for kind, _, body, end in boxes(data, 0, len(data)):
            if kind == b"meta":
                children = {name: (first, stop) for name, _, first, stop in boxes(data, body + 4, end)}
                _read_meta(data, children, items)
                break
    except (struct.error, IndexError) as error:
        raise InvalidSample("decode_failed", f"items of the AVIF: {error}") from None
    if sum(end - first for extents in items.extents.values() for first, end in extents) > 2 * len(data):
        raise InvalidSample("decode_budget_exceeded", "the items of the AVIF share their bytes")
    return items


def _read_meta(data: bytes, children: Mapping[bytes, tuple[int, int]], items: Items) -> None:
    if b"pitm" in children:
        first, _ = children[b"pitm"]
        (items.primary,) = struct.unpack_from(">H" if data[first] == 0 else ">I", data, first + 4)
    if b"iinf" in children:
        first, stop = children[b"iinf"]
        for kind, _, body, _ in boxes(data, first + (6 if data[first] == 0 else 8), stop):
            if kind == b"infe" and data[body] >= 2:
                wide = data[body] > 2
                (number,) = struct.unpack_from(">I" if wide else ">H", data, body + 4)
                position = body + (10 if wide else 8)
                items.types[number], items.type_positions[number] = data[position : position + 4], position
    if b"iloc" in children:
        _read_locations(data, children[b"iloc"][0], children.get(b"idat", (0, 0))[0], items)


def _read_locations(data: bytes, first: int, idat: int, items: Items) -> None:
    version, sizes = data[first], int.from_bytes(data[first + 4 : first + 6], "big")
    offset_size, length_size, base_size, index_size = (
        (sizes >> 12) & 15,
        (sizes >> 8) & 15,
        (sizes >> 4) & 15,
        sizes & 15,
    )
    position, entries = first + 6, 0

    def number(size: int) -> int:
        nonlocal position
        position += size
        if position > len(data):
            raise IndexError("the table of places ends early")
        return int.from_bytes(data[position - size : position], "big")

    for _ in range(number(2 if version < 2 else 4)):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)  # the data are in this file, or libavif refuses
        base = number(base_size) + (idat if method == 1 else 0)
        extents = items.extents.setdefault(item, [])
        for _ in range(number(2)):
            number(index_size if version in (1, 2) else 0)
            start = base + number(offset_size)
            length = number(length_size) or len(data)
            extents.append((min(start, len(data)), min(start + length, len(data))))
            entries += 1
            if entries > MAX_BOXES:
                raise InvalidSample("decode_budget_exceeded", f"more than {MAX_BOXES} extents in an AVIF")


def with_hidden_metadata(data: bytes, items: Items, blanks_unused: bool = False) -> bytes:
    """The AVIF without its EXIF, XMP and other metadata items, and as a still image if it was an animation.

    Every byte stays in its place, so that no table has to be written again: the type of such an item becomes one that
    readers pass over. With `blanks_unused` all bytes outside the tables and the image's own data become 0. `data`
    itself if nothing changes. The orientation of an AVIF is a property of its image (irot, imir), not EXIF's.
    """
    hidden = [number for number, kind in items.types.items() if kind in METADATA_ITEMS]
    changed = bytearray(data)
    if blanks_unused:
        changed = bytearray(len(data))
        for kind, start, body, end in boxes(data, 0, len(data)):
            is_kept = kind in (b"ftyp", b"meta", b"mdat")
            changed[start:body] = data[start:body]
            if not is_kept:
                changed[start + 4 : start + 8] = HIDDEN
            elif kind != b"mdat":
                changed[body:end] = data[body:end]
        for number, extents in items.extents.items():
            for first, end in extents:
                changed[first:end] = bytes(end - first) if number in hidden else data[first:end]
    for number in hidden:
        position = items.type_positions[number]
        changed[position : position + 4] = HIDDEN
    major, _ = _box_extent(data, 0)
    changed[major : major + 4] = b"avif"  # libavif then reads the image, not a track
    return data if changed == data else bytes(changed)


def av1_pixels(data: bytes, items: Items) -> int:
    """Pixels that decoding all AV1 items may take: of each its largest sequence header, times its frames."""
    total = num_units = 0
    for number, kind in items.types.items():
        if kind != b"av01":
            continue
        payload = b"".join(data[first:end] for first, end in items.extents.get(number, ()))
        largest = num_frames = 0
        for unit, content in _units(payload):
            num_units += 1
            if num_units > MAX_BOXES:
                raise InvalidSample("decode_budget_exceeded", f"more than {MAX_BOXES} units of AV1 data in an AVIF")
            if unit == SEQUENCE_HEADER:
                largest = max(largest, sequence_pixels(content))
            num_frames += unit in FRAMES
        total += largest * max(1, num_frames)
    return total


def _units(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, first kilobyte) of each unit of AV1 data ("OBU")."""
    position = 0
    while position < len(payload):
        header = payload[position]
        position += 2 if header & 4 else 1
        size = len(payload) - position
        if header & 2:
            size, position = _leb128(payload, position)
        yield (header >> 3) & 15, payload[position : position + min(size, 1024)]
        position += size


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        if position >= len(data):
            break
        octet = data[position]
        position += 1
        value |= (octet & 127) << (7 * index)
        if not octet & 128:
            break
    return value, position


class _Bits:
    """Reads bits from the front; 0 behind the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else 0
        return shifted & ((1 << count) - 1)

    def take_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        self.take(zeros)


def sequence_pixels(header: bytes) -> int:
    """Pixels of the largest frame that an AV1 sequence header allows (AV1 specification 5.5.1).

    A frame may override the size unless the header is that of a still image; then all that its fields can say counts.
    """
    bits = _Bits(header)
    bits.take(4)  # profile, still image
    if bits.take(1):  # reduced header of a still image
        bits.take(5)
        width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
        return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)
    has_model, delay_bits = 0, 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.take_uvlc()
        if has_model := bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if has_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return 1 << (width_bits + height_bits)
