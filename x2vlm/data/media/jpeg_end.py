"""JPEGs that lack nothing but their end marker, told from those that break off.

Browsers and OpenCV show a file without its last two bytes as a whole; Pillow refuses it. Whether all pixels are there
cannot be seen in the bytes, so it is tried: the decoder gets an end marker, and once more arbitrary bytes before it. If
it needed them, the pixels differ. A progressive file must also have had a scan for every bit of every coefficient.
"""

import hashlib
from collections.abc import Callable

from PIL import Image

END = b"\xff\xd9"
# More than the rest of a block can take, so that other blocks would change too. Never 0xFF, which would end the data.
OTHER_BYTES = bytes(
    octet for number in range(64) for octet in hashlib.sha256(bytes((number,))).digest() if octet != 0xFF
)
# With restart marks the decoder passes over all bytes up to the mark that it waits for.
RESTARTS = b"".join(bytes((0xFF, 0xD0 + number % 8)) + OTHER_BYTES[:300] for number in range(16))
RESTART_INTERVAL = b"\xff\xdd\0\4"
MAX_PIXELS = 32_000_000  # two images are compared
BAND_ROWS = 256
NUM_COEFFICIENTS = 64


def without_end_only(data: bytes, decode: Callable[[bytes], Image.Image]) -> bytes | None:
    """`data` with an end marker if that is all it lacks; None if pixels are missing.

    `decode` gives the pixels of a JPEG; what it raises for broken ones is raised.
    """
    body = data.rstrip(b"\xff")  # the first byte of the end marker, and fill bytes
    if not _has_every_scan(body):
        return None
    ended = body + END
    image = decode(ended)
    if image.width * image.height > MAX_PIXELS:
        return None
    others = OTHER_BYTES + (RESTARTS if RESTART_INTERVAL in body else b"")
    return ended if _is_same(image, decode(body + others + END)) else None


def _is_same(left: Image.Image, right: Image.Image) -> bool:
    if left.size != right.size or left.mode != right.mode:
        return False
    for top in range(0, left.height, BAND_ROWS):
        box = (0, top, left.width, min(top + BAND_ROWS, left.height))
        if left.crop(box).tobytes() != right.crop(box).tobytes():
            return False
    return True


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans of the JPEG, taken together, send every coefficient of every component to its last bit."""
    missing_bits: dict[int, list[int | None]] = {}
    position, is_progressive = 2, False
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        code, end = data[position + 1], position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and end <= len(data):
            is_progressive = code in (0xC2, 0xC6, 0xCA, 0xCE)
            components = data[position + 10 : end : 3]
            missing_bits = {component: [None] * NUM_COEFFICIENTS for component in components}
        position = end
    while position >= 0 and position + 5 <= len(data):
        num_components = data[position + 4]
        parameters = data[position + 5 + 2 * num_components :][:3]
        if len(parameters) < 3:
            return False
        first, last = (parameters[0], parameters[1]) if is_progressive else (0, NUM_COEFFICIENTS - 1)
        for component in data[position + 5 : position + 5 + 2 * num_components : 2]:
            for index in range(first, min(last, NUM_COEFFICIENTS - 1) + 1):
                if component in missing_bits:
                    missing_bits[component][index] = parameters[2] & 15 if is_progressive else 0
        position = data.find(b"\xff\xda", position + 2)
    return bool(missing_bits) and all(bits == 0 for one in missing_bits.values() for bits in one)
