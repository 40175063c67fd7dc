"""Which shards the machines of a run fetch, with lanes and without: `python -m tests.benchmarks.lanes`.

No file is read: the order says which shard every slot of a step reads. Machines have consecutive rows of a batch; of a
region stream they read the images of every group of which they have a row, of which rows may come from any image.
Shards are fetched whole and are as large as each other, so bytes are shards: printed are the different shards that each
machine reads in some steps, added up, over the different shards that all of them read. 1.0: no byte is fetched twice.
Streams are those of the first phase of `base_1b_paper`, and of its second one without clips; `together` counts a shard
once that a machine reads for both streams.
"""

import argparse
import json

import numpy as np

from x2vlm.data.loading.config import StreamConfig
from x2vlm.data.loading.orders.lanes import LanedOrder, num_lanes
from x2vlm.data.loading.orders.passes import Order
from x2vlm.data.loading.orders.windowed import WindowedOrder

WINDOW, SEED = 16, 42
# By phase: streams, and how many rows of each shard they can use.
PHASES = {
    "phase1": [
        (StreamConfig(kind="image", batch_size=3072), 13_230),
        (StreamConfig(kind="region", batch_size=1536, num_images=624), 25),
    ],
    "phase2": [
        (StreamConfig(kind="image", batch_size=1024), 150),
        (StreamConfig(kind="region", batch_size=1024, num_images=416), 25),
    ],
}


def order_of(lanes: int, items: int, rows: int, num_shards: int) -> Order:
    """The order of a stream with equally many rows in each shard, as `RowGroups.order` makes it."""
    counts = np.full(num_shards, rows)
    number = num_lanes(lanes, items, WINDOW, counts, SEED)
    if number == 1:
        return WindowedOrder(counts.tolist(), SEED, "stream", WINDOW)

    def make(shards: np.ndarray, name: str) -> WindowedOrder:
        return WindowedOrder(counts[shards].tolist(), SEED, name, WINDOW, True)

    return LanedOrder(num_shards, number, items, SEED, "stream", make)


def slots_of(stream: StreamConfig, lanes: int, machine: int, machines: int) -> slice:
    """The slots of a step whose images a machine reads, as `StepLoader.plan` says."""
    groups = stream.row_groups_of(lanes) if stream.kind == "region" else stream.batch_size
    first, end = machine * groups // machines, -(-(machine + 1) * groups // machines)
    return slice(first * stream.items_per_step // groups, end * stream.items_per_step // groups)


def shards_read(stream: StreamConfig, order: Order, machines: int, steps: int) -> list[np.ndarray]:
    """The different shards that each machine reads in the first steps."""
    items = stream.items_per_step
    shards = np.concatenate([block.shard for block in order.places(0, steps * items)]).reshape(steps, items)
    lanes = order.num_lanes if isinstance(order, LanedOrder) else 1
    return [np.unique(shards[:, slots_of(stream, lanes, machine, machines)]) for machine in range(machines)]


def ratio(of_machines: list[np.ndarray]) -> dict[str, float]:
    """Shards of each machine, added up, of all machines together, and the first over the second."""
    of_each, of_all = sum(map(len, of_machines)), len(np.unique(np.concatenate(of_machines)))
    return {"of_each": of_each, "of_all": of_all, "ratio": round(of_each / of_all, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=99_999)
    parser.add_argument("--machines", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    for phase, streams in PHASES.items():
        for lanes in (1, 64):
            found = []
            for stream, rows in streams:
                order = order_of(lanes, stream.items_per_step, rows, options.shards)
                found.append(shards_read(stream, order, options.machines, options.steps))
                what = {"phase": phase, "stream": stream.label, "items": stream.items_per_step, "lanes": lanes}
                print(json.dumps({**what, **ratio(found[-1])}), flush=True)
            joint = [np.union1d(*of_both) for of_both in zip(*found, strict=True)]
            print(json.dumps({"phase": phase, "stream": "together", "lanes": lanes, **ratio(joint)}), flush=True)


if __name__ == "__main__":
    main()
