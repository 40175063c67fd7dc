"""The loaders that ours is compared with: three implementations of image-text batches in the usual style.

* `reference_batches`: the released data set class, rebuilt from its description: JSON lines with base64 JPEGs, files
  shuffled and split, Pillow, torchvision's RandomResizedCrop, OpenCV's RandAugment, the Python BertTokenizer.
* `webdataset_batches`: webdataset over our own tars, with our own transforms and collation.
* `mapped_batches`: a folder of JPEGs and a list of captions behind a map-style DataLoader, likewise.

The last two draw at random where our loader draws from (seed, epoch, key); none of the three can be resumed.
"""

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision import transforms
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from x2vlm.data.loading.batch import MEAN, STD, Batch
from x2vlm.data.loading.batching import visual_batch
from x2vlm.data.loading.examples import Recipe, TextRow, VisualInput, choose_caption, text_row, visual_pixels
from x2vlm.data.shards.rows import Row
from x2vlm.data.text.captions import pre_caption

RES, MAX_TOKENS, MAX_MASKS, MASK_FRACTION = 224, 40, 12, 0.5
GREY = (128, 128, 128)


class RandAugment:
    """Two of ten operations, each with probability one half, at level 7 of 10, on bytes by OpenCV."""

    def __call__(self, pil_image: Image.Image) -> np.ndarray:
        image = np.asarray(pil_image)
        for name in random.choices(list(OPERATIONS), k=2):
            if random.random() < 0.5:
                image = OPERATIONS[name](image)
        return image


def _per_channel(table_of: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def change(image: np.ndarray) -> np.ndarray:
        channels = []
        for channel in cv2.split(image):
            counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel()
            channels.append(cv2.LUT(channel, table_of(counts)))
        return cv2.merge(channels)

    return change


def _stretching(counts: np.ndarray) -> np.ndarray:
    used = np.flatnonzero(counts)
    low, high = used[0], used[-1]
    if low == high:
        return np.arange(256, dtype=np.uint8)
    scale = 255 / (high - low)
    return np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)


def _equalizing(counts: np.ndarray) -> np.ndarray:
    used = counts[counts > 0]
    step = (used.sum() - used[-1]) // 255
    if len(used) < 2 or not step:
        return np.arange(256, dtype=np.uint8)
    return np.clip((step // 2 + np.r_[0, np.cumsum(counts)[:-1]]) // step, 0, 255).astype(np.uint8)


def _sharper(image: np.ndarray) -> np.ndarray:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, -1, kernel).astype(np.float32)
    changed = (smooth + 1.36 * (image.astype(np.float32) - smooth)).astype(np.uint8)
    result = image.copy()
    result[1:-1, 1:-1] = changed[1:-1, 1:-1]
    return result


def _warped(image: np.ndarray, matrix: Sequence[Sequence[float]]) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, np.float32(matrix), (width, height), borderValue=GREY, flags=cv2.INTER_LINEAR)


def _sign() -> int:
    return random.choice((-1, 1))


def _rotated(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return _warped(image, cv2.getRotationMatrix2D((width / 2, height / 2), 21 * _sign(), 1))


OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda image: image,
    "AutoContrast": _per_channel(_stretching),
    "Equalize": _per_channel(_equalizing),
    "Brightness": lambda image: cv2.LUT(image, np.clip(np.arange(256) * 1.36, 0, 255).astype(np.uint8)),
    "Sharpness": _sharper,
    "ShearX": lambda image: _warped(image, [[1, 0.21 * _sign(), 0], [0, 1, 0]]),
    "ShearY": lambda image: _warped(image, [[1, 0, 0], [0.21 * _sign(), 1, 0]]),
    "TranslateX": lambda image: _warped(image, [[1, 0, 7 * _sign()], [0, 1, 0]]),
    "TranslateY": lambda image: _warped(image, [[1, 0, 0], [0, 1, 7 * _sign()]]),
    "Rotate": _rotated,
}


class ReferenceImages(IterableDataset):  # type: ignore[type-arg]
    """Examples one by one, file by file; endless."""

    def __init__(self, files: Sequence[Path], vocabulary: Path) -> None:
        self.files = list(files)
        self.tokenizer = BertTokenizerLegacy(str(vocabulary))
        self.words = list(self.tokenizer.vocab)
        bicubic = transforms.InterpolationMode.BICUBIC
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(RES, scale=(0.2, 1.0), interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
                RandAugment(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        info = get_worker_info()
        while True:
            random.shuffle(self.files)
            for path in self.files[info.id :: info.num_workers] if info else self.files:
                with path.open() as lines:
                    for line in lines:
                        yield self._example(json.loads(line))

    def _example(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        image = Image.open(BytesIO(base64.b64decode(record["binary"]))).convert("RGB")
        pixels = self.transform(image)
        tokens = self.tokenizer.tokenize(pre_caption(record["desc"], MAX_TOKENS))
        tokens = ["[CLS]", *tokens[: MAX_TOKENS - 2], "[SEP]"]
        masked, positions = self._masked(tokens)
        ids, masked_ids = (self.tokenizer.convert_tokens_to_ids(words) for words in (tokens, masked))
        labels = [ids[position] for position in positions]
        padding, unused = [0] * (MAX_TOKENS - len(ids)), MAX_MASKS - len(positions)
        return (
            pixels,
            ids + padding,
            [1] * len(ids) + padding,
            masked_ids + padding,
            positions + [0] * unused,
            labels + [-100] * unused,
        )

    def _masked(self, tokens: list[str]) -> tuple[list[str], list[int]]:
        wanted = min(MAX_MASKS, max(1, round(len(tokens) * MASK_FRACTION)))
        candidates = list(range(1, len(tokens)))
        random.shuffle(candidates)
        chosen: set[int] = set()
        for position in candidates:
            if len(chosen) >= wanted:
                break
            if position in chosen:
                continue
            start, end = position, position + (random.randint(2, 3) if random.random() < 0.2 else 1)
            while start > 0 and tokens[start].startswith("##"):
                start -= 1
            while end < len(tokens) and tokens[end].startswith("##"):
                end += 1
            chosen.update(range(max(start, 1), min(end, len(tokens))))
        positions = list(chosen)
        random.shuffle(positions)
        masked = list(tokens)
        for position in positions[:wanted]:
            if random.random() < 0.8:
                masked[position] = "[MASK]"
            elif random.random() < 0.5:
                masked[position] = random.choice(self.words)
        return masked, positions[:wanted]


def _collate_reference(examples: Sequence[tuple[Any, ...]]) -> list[torch.Tensor]:
    columns = list(zip(*examples, strict=True))
    return [torch.stack(columns[0]), *(torch.tensor(column, dtype=torch.long) for column in columns[1:])]


def reference_batches(
    files: Sequence[Path], vocabulary: Path, batch_size: int, num_workers: int
) -> Iterator[list[torch.Tensor]]:
    """Pixels, ids, attention, masked ids, positions, labels."""
    data = ReferenceImages(files, vocabulary)
    return iter(_data_loader(data, batch_size, num_workers, _collate_reference))


def example_of(row: Row, payload: bytes, recipe: Recipe, draw: int) -> tuple[TextRow, VisualInput]:
    """Text and pixels of a row by our own functions; `draw` is used as the epoch."""
    caption = choose_caption(row, draw, recipe)
    return text_row(caption, row, draw, recipe), visual_pixels(row, payload, caption, draw, recipe)


def _collate_ours(examples: Sequence[tuple[TextRow, VisualInput]]) -> Batch:
    rows, images = zip(*examples, strict=True)
    return visual_batch("image", rows, images, MAX_MASKS)


class _FromTar:
    """A member pair of a tar to an example."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, member: Mapping[str, Any]) -> tuple[TextRow, VisualInput]:
        record = json.loads(member["json"])
        media = record["media"]
        captions = tuple(caption["text"] for caption in record["captions"])
        row = Row(record["key"], record["kind"], media["sha256"], media["width"], media["height"], captions)
        return example_of(row, member["jpg"], self.recipe, random.getrandbits(32))


def webdataset_batches(tars: Sequence[Path], recipe: Recipe, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """Shuffled by shards and in a buffer of a thousand, endless."""
    data = webdataset.WebDataset([str(path) for path in tars], resampled=True, shardshuffle=False).shuffle(1000)
    return iter(_data_loader(data.map(_FromTar(recipe)), batch_size, num_workers, _collate_ours))


class _Folder(Dataset[tuple[TextRow, VisualInput]]):
    def __init__(self, rows: Sequence[tuple[Row, Path]], recipe: Recipe) -> None:
        self.rows, self.recipe = rows, recipe

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[TextRow, VisualInput]:
        row, path = self.rows[number]
        return example_of(row, path.read_bytes(), self.recipe, random.getrandbits(32))


def mapped_batches(
    rows: Sequence[tuple[Row, Path]], recipe: Recipe, batch_size: int, num_workers: int
) -> Iterator[Batch]:
    """Shuffled by torch's sampler, epoch after epoch."""
    loader = _data_loader(_Folder(rows, recipe), batch_size, num_workers, _collate_ours, shuffle=True)
    while True:
        yield from loader


def _data_loader(data: Any, batch_size: int, num_workers: int, collate: Any, **more: Any) -> DataLoader[Any]:
    context = "forkserver" if num_workers else None
    return DataLoader(
        data,
        batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        multiprocessing_context=context,
        drop_last=True,
        **more,
    )
