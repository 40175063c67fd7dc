"""Photos of the usual size of web data sets, each with unique bytes, from a few real ones."""

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from x2vlm.data.media.images import open_image

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = ROOT / "datasets/sample/media/photos"
LONG_EDGE_PIXELS = 1200
TARGET_BYTES = 116_000
EXIF_BYTES = 2_000  # typical of a camera, without thumbnail


def real_photos() -> list[Path]:
    """The photos of the shipped corpus, in a fixed order."""
    return sorted(SHIPPED.glob("*.jpg"))


def web_photos(paths: Sequence[Path]) -> list[bytes]:
    """Each photo as a JPEG of at most 1200 pixels and about 116 KB, with EXIF.

    Small photos are enlarged: the cost of decoding depends on pixels and bytes, which are then those of a larger photo.
    """
    return [_web_photo(path) for path in paths if min(Image.open(path).size) >= 300]


def _web_photo(path: Path) -> bytes:
    image = open_image(path.read_bytes())
    scale = LONG_EDGE_PIXELS / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[0x010E] = "x" * EXIF_BYTES  # ImageDescription
    best = b""
    for quality in (60, 70, 75, 80, 85, 90, 95):
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality, exif=exif)
        if best and buffer.tell() > TARGET_BYTES:
            break
        best = buffer.getvalue()
    return best


def numbered(photo: bytes, number: int) -> bytes:
    """`photo` with `number` in a comment, so that no two are the same media. The pixels are equal."""
    comment = f"photo {number:08d}".encode()
    return photo[:2] + struct.pack(">HH", 0xFFFE, 2 + len(comment)) + comment + photo[2:]
