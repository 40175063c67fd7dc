"""The batches of any step, for any rank of any world size: a pure function of the step, so resuming needs no state.

The content of a step is decided for all ranks together (`plan`), from metadata; then a rank loads its slice of the
batch. A row with unusable media is replaced by another one that depends on the slot alone, and both are recorded.

So there is no state of reader processes to save, to gather or to restore. torchdata's StatefulDataLoader has to do all
of that: it counts batches and skips as many, or collects the state of data set and sampler from every worker. It
gathers over the workers of a rank and not over ranks, so its checkpoint is tied to the number of both, and is as large
as the state of the data sets (a shuffle buffer, say). Here the step is the checkpoint, and a run with another world
size or number of readers continues with the same samples and pixels.
"""

import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from x2vlm.data.loading.batch import Batch
from x2vlm.data.loading.batching import region_batch, visual_batch
from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.examples import (
    Recipe,
    RegionPlan,
    VisualInput,
    choose_caption,
    plan_regions,
    region_pixels,
    text_row,
    visual_pixels,
)
from x2vlm.data.loading.orders.passes import Place
from x2vlm.data.loading.parent_watch import exit_with_this_process, naming_lost_readers
from x2vlm.data.loading.regions import choose_rows
from x2vlm.data.loading.shard_set import ShardFiles, ShardSet
from x2vlm.data.loading.streams import Slot, Stream, streams_of
from x2vlm.data.randomness import Draws
from x2vlm.data.shards.rows import Row
from x2vlm.data.text.tokenizer import TextTokenizer
from x2vlm.errors import ConfigError, InvalidSample

# Consecutive unusable rows after which the shards are considered broken.
MAX_ATTEMPTS = 50


@dataclass(frozen=True)
class Substitute:
    """A row that could not be used, the reason, and the key of its replacement.

    `slot` tells rows of one image apart, in streams where a pass has several, and with lanes; None in all others.
    """

    stream: str
    key: str
    rule: str
    used: str
    slot: int | None = None


@dataclass(frozen=True)
class Item:
    """One sample of a step's plan; `rows`: chosen rows of a region image, each with its repeat number."""

    slot: Slot
    place: Place
    row: Row
    caption: str = ""
    regions: RegionPlan | None = None
    rows: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class StepData:
    """The batches of one rank for one step, by stream name, and the rows that were replaced."""

    step: int
    batches: dict[str, Batch]
    is_aux: dict[str, bool]
    substitutes: list[Substitute] = field(default_factory=list)

    def pin_memory(self) -> "StepData":
        batches = {name: batch.pin_memory() for name, batch in self.batches.items()}
        return StepData(self.step, batches, self.is_aux, self.substitutes)


class StepLoader(Dataset[StepData]):
    """`loader[step]` is the data of rank `rank` of `world_size` in that step; calls are independent.

    ConfigError unless `world_size` divides every global batch, and if a stream has no rows at all.
    """

    def __init__(
        self,
        shards: Sequence[ShardFiles],
        config: DataConfig,
        tokenizer: TextTokenizer,
        image_res: int,
        patch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for stream in config.streams:
            if stream.batch_size % world_size:
                raise ConfigError(
                    f"stream {stream.label}: {world_size} processes cannot share a batch of {stream.batch_size} rows; "
                    "change batch_size or world_size so that one divides the other"
                )
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.recipe = Recipe(config.examples, tokenizer, image_res, patch_size, config.seed)
        lanes_here = -(-config.lanes // world_size)  # each has a window of its own
        shard_set = ShardSet(shards, max_open=4 * config.window_shards * lanes_here)
        self.streams = streams_of(shard_set, config)

    def __getitem__(self, step: int) -> StepData:
        substitutes: list[Substitute] = []
        batches = {}
        for stream in self.streams:
            items = self.plan(stream, step, substitutes, metadata_only=False)
            load = self._load_regions if stream.config.kind == "region" else self._load_images
            batches[stream.config.label] = load(stream, items, substitutes)
        is_aux = {stream.config.label: stream.is_aux_step(step) for stream in self.streams}
        return StepData(step, batches, is_aux, substitutes)

    def plan(self, stream: Stream, step: int, substitutes: list[Substitute], metadata_only: bool = True) -> list[Item]:
        """The samples of a stream's step, those that are usable by their metadata.

        `metadata_only` plans for all ranks, otherwise for this one. Region streams choose rows over all images of a
        group (`StreamConfig.row_groups_of`), so they plan every group of which this rank has a row.
        """
        slots = stream.slots(step)
        if stream.config.kind != "region":
            mine = slots if metadata_only else slots[self._rank_rows(len(slots))]
            return [self._item(stream, slot, substitutes) for slot in mine]
        num_rows = stream.config.batch_size
        rank_rows = range(num_rows) if metadata_only else range(num_rows)[self._rank_rows(num_rows)]
        groups = stream.config.row_groups_of(stream.num_lanes(step))
        rows_each, images_each = num_rows // groups, len(slots) // groups
        items: list[Item] = []
        for group in range(rank_rows.start // rows_each, -(-rank_rows.stop // rows_each)):
            first_row = group * rows_each
            # Every rank with rows of a group finds the same unusable ones; the first of them records them.
            recorded = substitutes if metadata_only or first_row >= rank_rows.start else []
            images = slots[group * images_each : (group + 1) * images_each]
            draws = Draws(self.config.seed, stream.config.label, "rows", step, group)
            wanted = range(
                max(first_row, rank_rows.start) - first_row, min(first_row + rows_each, rank_rows.stop) - first_row
            )
            items += self._with_chosen_rows(
                [self._item(stream, slot, recorded) for slot in images], rows_each, wanted, draws
            )
        return items

    def _with_chosen_rows(self, items: Sequence[Item], num_rows: int, wanted: range, draws: Draws) -> list[Item]:
        """The images of a group that have a row among the rows `wanted` of the `num_rows` chosen ones."""
        owners = [(number, row) for number, item in enumerate(items) for row in range(_num_rows(item))]
        seen: Counter[int] = Counter()
        rows: dict[int, list[tuple[int, int]]] = {}
        for index, chosen in enumerate(choose_rows(len(owners), num_rows, draws)):
            if index in wanted:
                number, row = owners[chosen]
                rows.setdefault(number, []).append((row, seen[chosen]))
            seen[chosen] += 1
        return [_with_rows(items[number], tuple(picked)) for number, picked in rows.items()]

    def consumed(self, step: int) -> list[tuple[str, str]]:
        """(stream, key) of the samples of `step` over all ranks, before loading replaces any (`substitutes`)."""
        return [(stream, key) for stream, _, key in self.consumed_slots(step)]

    def consumed_slots(self, step: int) -> list[tuple[str, int | None, str]]:
        """(stream, `Substitute.slot`, key) of the samples of `step`, as `consumed`."""
        return [
            (stream.config.label, _slot_of(stream, item.slot), item.row.key)
            for stream in self.streams
            for item in self.plan(stream, step, [])
        ]

    def _rank_rows(self, num_rows: int) -> slice:
        size = num_rows // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def _item(self, stream: Stream, slot: Slot, substitutes: list[Substitute], first_attempt: int = 0) -> Item:
        """The sample of a slot, or the first substitute with usable metadata."""
        failed: list[tuple[str, str]] = []
        for attempt in range(first_attempt, first_attempt + MAX_ATTEMPTS):
            place = stream.place(slot, attempt)
            row = stream.row(slot, place)
            try:
                item = self._decide(stream, slot, place, row)
            except InvalidSample as error:
                failed.append((row.key, error.rule))
                continue
            number = _slot_of(stream, slot)
            substitutes += [Substitute(stream.config.label, key, rule, row.key, number) for key, rule in failed]
            return item
        raise ConfigError(f"stream {stream.config.label}: {MAX_ATTEMPTS} rows in a row are unusable, last {failed[-1]}")

    def _decide(self, stream: Stream, slot: Slot, place: Place, row: Row) -> Item:
        if stream.config.kind == "region":
            return Item(slot, place, row, regions=plan_regions(row, place.epoch, self.recipe))
        return Item(slot, place, row, caption=choose_caption(row, place.epoch, self.recipe))

    def _with_pixels(self, stream: Stream, item: Item, substitutes: list[Substitute]) -> tuple[Item, VisualInput]:
        """The item and its pixels, or the first substitute with usable media."""
        for attempt in range(1, MAX_ATTEMPTS):
            try:
                return item, self._pixels(stream, item)
            except InvalidSample as error:
                other = self._item(stream, item.slot, substitutes, first_attempt=attempt)
                number = _slot_of(stream, item.slot)
                substitutes.append(Substitute(stream.config.label, item.row.key, error.rule, other.row.key, number))
                item = _with_rows(other, _refilled(item.rows, _num_rows(other)))
        raise ConfigError(f"stream {stream.config.label}: {MAX_ATTEMPTS} media in a row are unusable")

    def _pixels(self, stream: Stream, item: Item) -> VisualInput:
        payload = stream.payload(item.slot, item.place)
        if item.regions is not None:
            return region_pixels(item.row, payload, item.regions, self.recipe)
        return visual_pixels(item.row, payload, item.caption, item.place.epoch, self.recipe)

    def _load_images(self, stream: Stream, items: Sequence[Item], substitutes: list[Substitute]) -> Batch:
        rows, images = [], []
        for planned in items:
            item, image = self._with_pixels(stream, planned, substitutes)
            rows.append(text_row(item.caption, item.row, item.place.epoch, self.recipe))
            images.append(image)
        return visual_batch(stream.config.kind, rows, images, self.config.examples.masking.max_masks)

    def _load_regions(self, stream: Stream, items: Sequence[Item], substitutes: list[Substitute]) -> Batch:
        rows, image_of, images = [], [], []
        for number, planned in enumerate(items):
            item, image = self._with_pixels(stream, planned, substitutes)
            assert item.regions is not None
            images.append(image)
            for index, repeat in item.rows:
                region, text = item.regions.rows[index], item.regions.texts[index]
                rows.append(text_row(text, item.row, item.place.epoch, self.recipe, region, repeat))
                image_of.append(number)
        return region_batch(rows, image_of, images, self.config.examples.masking.max_masks)


def iterate_steps(
    loader: StepLoader, first_step: int, end_step: int, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[StepData]:
    """StepData of first_step..end_step-1 in order; prefetched by `num_workers` processes, with equal results.

    ReaderLost if one of them is killed.
    """
    before = {process.pid for process in multiprocessing.active_children()}
    steps = iter(
        DataLoader(
            loader,
            batch_size=None,
            sampler=range(first_step, end_step),
            num_workers=num_workers,
            pin_memory=pin_memory,
            multiprocessing_context="forkserver" if num_workers else None,
            worker_init_fn=exit_with_this_process() if num_workers else None,
        )
    )
    readers = [process for process in multiprocessing.active_children() if process.pid not in before]
    return naming_lost_readers(steps, readers, loader.rank)


def substitutes_to_json(substitutes: Sequence[Substitute]) -> list[dict[str, Any]]:
    """Substitutes as JSON values of a metrics line."""
    return [
        {name: value for name, value in asdict(substitute).items() if value is not None} for substitute in substitutes
    ]


def _slot_of(stream: Stream, slot: Slot) -> int | None:
    return slot.position if stream.tells_slots else None


def _num_rows(item: Item) -> int:
    return 0 if item.regions is None else len(item.regions.rows)


def _with_rows(item: Item, rows: tuple[tuple[int, int], ...]) -> Item:
    return replace(item, rows=rows)


def _refilled(rows: tuple[tuple[int, int], ...], num_rows: int) -> tuple[tuple[int, int], ...]:
    """As many rows as `rows`, out of an image with `num_rows` rows: each depends only on the one it replaces."""
    return tuple((row % num_rows, repeat) for row, repeat in rows)
