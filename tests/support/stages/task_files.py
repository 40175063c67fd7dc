"""A user's own files of a task: images in a folder, and a table of labels for each split."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.training.finetuning import toy_image

NUMBERS = {"train": range(14), "val": range(100, 108), "test": range(200, 208)}


def write_labels(folder: Path, splits: Mapping[str, Sequence[int]] = NUMBERS) -> dict[str, Path]:
    """`<split>.csv` of every split and `photos/` below `folder`; the tables by split."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    tables = {}
    for split, numbers in splits.items():
        tables[split] = folder / f"{split}.csv"
        with tables[split].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image", "text", "label"])
            for number in numbers:
                colour, data = toy_image(number)
                (folder / "photos" / f"{number}.jpg").write_bytes(data)
                writer.writerow([f"{split}-{number}", f"photos/{number}.jpg", "a plate on grey", colour])
    return tables
