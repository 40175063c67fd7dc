"""Annotation files of any size, in the order that costs a reader most."""

import json
from collections.abc import Callable
from pathlib import Path


def write_instances(path: Path, num_bytes: int) -> int:
    """A COCO instances file of at least that size whose annotations come before images and categories; their number."""
    outline = ",".join(["12.5"] * 200)
    number = 0
    with path.open("w") as file:
        file.write('{"annotations": [')
        while file.tell() < num_bytes:
            rows = (
                f'{{"segmentation": [[{outline}]], "area": 1.5, "iscrowd": 0, "image_id": {n % 5000}, '
                f'"bbox": [1.5, 2, 3, 4], "category_id": 1, "id": {n}}}'
                for n in range(number, number + 1000)
            )
            file.write((", " if number else "") + ", ".join(rows))
            number += 1000
        images = (image | {"file_name": f"patch0/{image['id']}.jpg"} for image in IMAGES)
        file.write(f'], "images": {json.dumps(list(images))}, "categories": [{{"id": 1, "name": "dog"}}]}}')
    return number


def write_captions(path: Path, num_bytes: int) -> int:
    """A COCO captions file whose annotations come before the images; their number."""
    return write_records(path, num_bytes, '{"annotations": [', _caption, f'], "images": {json.dumps(list(IMAGES))}}}')


IMAGES = [{"id": n, "coco_url": f"http://x/{n}.jpg", "width": 9, "height": 9} for n in range(5000)]
LONG = "a man on a horse " * 60  # about a kilobyte: two gigabytes are then some million records


def _caption(number: int) -> str:
    return f'{{"image_id": {number % 5000}, "id": {number}, "caption": "{LONG}{number}"}}'


def write_regions(path: Path, num_bytes: int) -> int:
    """Visual Genome's region_descriptions.json, fifty phrases an image; the number of phrases."""
    images = write_records(path, num_bytes, "[", _regions, "]")
    table = [{"image_id": n, "url": f"http://x/{n}.jpg", "width": 9, "height": 9} for n in range(images)]
    path.with_name("image_data.json").write_text(json.dumps(table))
    return images * 50


def _regions(image: int) -> str:
    place = f'"x": 1, "y": 2, "width": 3, "height": 4, "image_id": {image}'
    regions = (f'{{"region_id": {image * 50 + n}, {place}, "phrase": "{LONG}{n}"}}' for n in range(50))
    return f'{{"regions": [{", ".join(regions)}], "id": {image}}}'


def write_transcripts(path: Path, num_bytes: int) -> int:
    """HowTo100M's raw_caption.json, a hundred clips a video; the number of clips."""
    return 100 * write_records(path, num_bytes, "{", _transcript, "}")


def _transcript(video: int) -> str:
    texts = ", ".join([f'"{LONG}"'] * 100)
    starts, ends = ", ".join(map(str, range(100))), ", ".join(map(str, range(1, 101)))
    return f'"v{video}": {{"text": [{texts}], "start": [{starts}], "end": [{ends}]}}'


def write_records(path: Path, num_bytes: int, head: str, record: Callable[[int], str], tail: str) -> int:
    """A file of at least that size; the number of records."""
    number = 0
    with path.open("w") as file:
        file.write(head)
        while file.tell() < num_bytes:
            file.write((", " if number else "") + ", ".join(record(n) for n in range(number, number + 20)))
            number += 20
        file.write(tail)
    return number
