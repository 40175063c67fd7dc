"""Rows of images as the search for duplicates reads them, drawn at random."""

from typing import Any

import numpy as np
import pyarrow as pa

from x2vlm.data.duplicates.duplicates import ROW_SCHEMA
from x2vlm.data.media.phash import THUMBNAIL_BYTES

Row = dict[str, Any]


def digits(draws: np.random.Generator, count: int) -> str:
    return draws.bytes(count // 2).hex()


def random_rows(seed: int, size: int) -> pa.Table:
    """Rows of which most are near, equal or related to others in every way that the search distinguishes."""
    draws = np.random.default_rng(seed)
    images: list[Row] = []
    rows: list[Row] = []
    for _ in range(size):
        if not images or draws.random() < 0.4:
            look = draws.integers(0, 256, THUMBNAIL_BYTES, dtype=np.uint8)
            phash = int(draws.integers(0, 2**64, dtype=np.uint64))
        else:  # a copy of an image before, some bits and grey levels away; or an unlike one with its hash
            other = images[int(draws.integers(len(images)))]
            look = other["look"]
            noise = draws.normal(0, (0, 20, 30, 90)[int(draws.integers(4))], THUMBNAIL_BYTES)
            look, phash = np.clip(look + noise, 0, 255).astype(np.uint8), other["hash"]
            for bit in draws.choice(64, int(draws.integers(0, 6)), replace=False):
                phash ^= 1 << int(bit)
        kind = "video" if draws.random() < 0.2 else "image"
        frames = [phash, *(int(one) for one in draws.integers(0, 2**64, 1, dtype=np.uint64))][: 1 + (kind == "video")]
        unread = draws.random() < 0.05
        images.append({"look": look, "hash": phash})
        shown: Row = {"kind": kind}
        if not unread:
            shown |= {"pixel_sha256": digits(draws, 64), "phash": phash, "phash_flat": bool(draws.random() < 0.1)}
            shown |= {"thumbnail": look.tobytes(), "frame_phashes": frames}
        media = [digits(draws, 64) for _ in range(1 if unread else 2)]
        for _ in range(int(draws.integers(1, 4))):
            values: Row = {"key": digits(draws, 32), "source": str(draws.choice(["coco", "cc3m", "laion", "refcoco"]))}
            values |= {"sha256": media[int(draws.integers(len(media)))], "num_captions": int(draws.integers(3))}
            values |= {"width": int(draws.integers(1, 4)) * 100, "height": 100}
            if draws.random() < 0.03:
                values["sha256"] = None
            rows.append(shown | values)
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
