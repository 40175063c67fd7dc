"""Small pictures, captions, and the tars, tables and folders that hold them."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image


def picture(number: int, size: tuple[int, int] = (48, 32), image_format: str = "JPEG") -> bytes:
    """A picture of its own for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number * 13 % 256)).save(buffer, image_format)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of plain files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(numbers: Iterable[int], **facts: object) -> list[tuple[str, bytes]]:
    """Members `000003.jpg`, `000003.txt` and, with `facts`, `000003.json`."""
    members = []
    for number in numbers:
        members += [(f"{number:06d}.jpg", picture(number)), (f"{number:06d}.txt", f"picture {number}".encode())]
        if facts:
            members.append((f"{number:06d}.json", json.dumps({"key": f"{number:06d}", **facts}).encode()))
    return members


def write_files(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files by path below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder
